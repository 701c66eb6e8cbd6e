"""A digest of what a run was asked to do and on which data: two runs with one digest would do the same.

Plain Python, so that planning a sweep does not load the libraries that run it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

# Options that say where the result goes, not what it is.
PLACES = ("--output_dir", "--overwrite_output_dir", "--resume_from_checkpoint")


def options(words: Sequence[str]) -> list[tuple[str, str]]:
    """A command line's options and their values ("" for a flag alone), sorted by name, the later of two kept."""
    found: dict[str, str] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name, _, value = word.partition("=")
            found[name] = value
        elif name:
            found[name] = f"{found[name]} {word}".strip()
    return sorted((name, value) for name, value in found.items() if name not in PLACES)


def digest_path(run_dir: Path) -> Path:
    """Where a run keeps its digest: beside its secrets, since it depends on every training sample."""
    return run_dir / "private" / "configuration.sha256"


def finished_digest(run_dir: Path) -> str | None:
    """The digest of the finished run in a folder; None where there is none."""
    try:
        return digest_path(run_dir).read_text("utf-8").strip() if (run_dir / "metrics.json").exists() else None
    except OSError:
        return None


def configuration_digest(words: Sequence[str], data_dir: str | None) -> str:
    """SHA-256 in hexadecimal over the options, the task's local data files and a local model's files.

    Args:
        words: the command line after the module's name.
        data_dir: folder with `<task>/<split>.jsonl`; None for the hub, whose content is not looked at.
    """
    chosen = options(words)
    values = dict(chosen)
    task = values.get("--task_name", "SST2").lower()
    content = {
        "options": chosen,
        "data": _data(Path(data_dir) / task) if data_dir else "hub",
        "model": _files(Path(values.get("--model_name", ""))),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _data(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.glob("*.jsonl")):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _files(folder: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of a local model's files: their content would take minutes to read."""
    if not folder.name or not folder.is_dir():
        return []
    stats = ((path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file())
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
