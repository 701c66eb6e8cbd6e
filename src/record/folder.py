"""A run's folder: when it may be used, and what is in it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from src.record.digest import digest_path
from src.utils import UserError

RUN_FILES = ("metrics.json", "transcript.jsonl", "checkpoints", "private", "hub", "model")


def _runs_files(run_dir: Path) -> list[Path]:
    return [path for name in RUN_FILES if (path := run_dir / name).exists()]


def check_run_dir(run_dir: Path, *, overwrite: bool) -> None:
    """Refuse a folder that cannot be used, or holds a run that is no smoke check and not to be overwritten."""
    there = next(path for path in (run_dir, *run_dir.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UserError(f"cannot use the output folder {run_dir}: {there} is no folder that can be written to")
    found = _runs_files(run_dir)
    if found and not overwrite and not (run_dir / "SMOKE").exists():
        names = ", ".join(path.name for path in found)
        raise UserError(
            f"{run_dir} already holds a run ({names}); choose another --output_dir or add --overwrite_output_dir"
        )


def prepare_run_dir(run_dir: Path, *, overwrite: bool, smoke: bool) -> None:
    """Make the run's folder. A run that is in it is removed if `check_run_dir` lets it."""
    check_run_dir(run_dir, overwrite=overwrite)
    marker = run_dir / "SMOKE"
    try:
        for path in [*_runs_files(run_dir), *([marker] if marker.exists() else [])]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        run_dir.mkdir(parents=True, exist_ok=True)
        if smoke:
            marker.touch()
    except OSError as error:
        raise UserError(f"cannot use the output folder {run_dir}: {error.strerror}") from error


def check_resumable(run_dir: Path, *, overwrite: bool) -> None:
    """Refuse a folder without a run that was interrupted."""
    if overwrite:
        raise UserError("a run is either resumed or overwritten: drop one of the two options")
    if (run_dir / "metrics.json").exists():
        raise UserError(f"the run in {run_dir} is finished; there is nothing to resume")
    if not any((run_dir / name).exists() for name in ("transcript.jsonl", "private")):
        raise UserError(f"{run_dir} holds no run to resume")


def write_digest(run_dir: Path, digest: str) -> None:
    """Before `metrics.json`, which marks the run as finished."""
    path = digest_path(run_dir)
    path.parent.mkdir(exist_ok=True, mode=0o700)
    path.touch(mode=0o600)
    path.write_text(digest + "\n", encoding="utf-8")
