"""What a run's folder keeps: its figures, and its course, scores on the dev set and how often all subsets agreed.

A finished run keeps the evaluations in `metrics.json`; every checkpoint keeps the trainer's log so far in
`trainer_state.json`, which is all there is of a run that has not ended. Nothing private is read.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.utils import UserError

Points = list[tuple[float, float]]
# Of the trainer's log -> as it is called here.
EVALUATED = {"eval_loss": "dev loss", "eval_accuracy": "dev accuracy", "eval_f1": "dev F1"}
LOGGED = {"unanimous": "unanimous"}
QUANTITIES = (*EVALUATED.values(), *LOGGED.values())
SEEDS = {"seed", "train_set_seed", "pac_secret_seed", "dp_secret_seed"}
# What may differ between runs that are the same but for their seeds: seeds, folders, and how a run was started.
INCIDENTAL = SEEDS | {
    "output_dir",
    "run_name",
    "result_file",
    "resume_from_checkpoint",
    "overwrite_output_dir",
    "tag",
}
SEED_IN_NAME = re.compile(r"[-_]s(?:eed)?\d+(?=[-_]|$)")


@dataclass(frozen=True)
class Run:
    """A run's figures and its course.

    Attributes:
        name: of the folder.
        folder: where it lies.
        metrics: its `metrics.json`; None where it has not ended.
        points: (step, value) of each of `QUANTITIES` that was measured, steps ascending.
    """

    name: str
    folder: Path
    metrics: dict[str, Any] | None
    points: dict[str, Points]

    @property
    def figures(self) -> dict[str, Any]:
        """The metrics of a run that has ended."""
        assert self.metrics is not None, self.name
        return self.metrics

    @property
    def settings(self) -> dict[str, Any]:
        """What must be equal in runs that are put together; empty where it is not known yet."""
        found = {} if self.metrics is None else self.metrics.get("configuration", {})
        return {name: value for name, value in found.items() if name not in INCIDENTAL}

    @property
    def passes_a_step(self) -> float | None:
        """Bare forward passes over what a step takes: 2 K with central differences; exact derivatives are none."""
        settings = self.settings
        if settings.get("zo_derivative") != "central" or settings.get("zo_batch_size"):
            return None
        directions = settings.get("pac_k") or settings.get("dp_k") or 1
        return 2.0 * directions * (settings.get("dp_sample_rate") or 1.0)


def find_runs(patterns: Iterable[str]) -> list[Path]:
    """Folders of runs, in natural order: each pattern is a run's folder, a folder of such, or a glob of either.

    Raises:
        UserError: a glob matches nothing. A folder that is not there has no runs.
    """
    found: dict[Path, Path] = {}
    for pattern in patterns:
        matches = [Path(pattern)] if Path(pattern).exists() else [Path(path) for path in glob.glob(pattern)]
        if not matches and set("*?[") & set(pattern):
            raise UserError(f"no folder matches --runs {pattern}")
        for path in matches:
            for folder in [path] if is_run(path) else path.glob("*"):
                if is_run(folder):
                    found[folder.resolve()] = folder
    return sorted(found.values(), key=lambda folder: natural(str(folder)))


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run, finished or not."""
    return any((folder / name).exists() for name in ("metrics.json", "transcript.jsonl", "checkpoints"))


def evaluations(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """A finished run's evaluations, one a step, without that of the kept checkpoint at the end."""
    entries: list[dict[str, Any]] = metrics.get("evaluations", [])
    if entries and metrics["best_step"] not in (None, entries[-1]["step"]):
        entries = entries[:-1]
    return [entry for at, entry in enumerate(entries) if entry["step"] not in {e["step"] for e in entries[:at]}]


def read_run(folder: Path, metrics: dict[str, Any] | None = None) -> Run:
    """A run with its course.

    Args:
        metrics: of its `metrics.json`; None where it has not ended.

    Raises:
        KeyError, TypeError, ValueError: the metrics or the checkpoint's log are not a run's.
    """
    history = _history(folder)
    evaluated = history if metrics is None else evaluations(metrics)
    points = {**_points(evaluated, EVALUATED), **_points(history, LOGGED)}
    before = {} if metrics is None else metrics.get("before", {}).get("dev", {})
    for name in points.keys() & EVALUATED.values():
        start = before.get(name.removeprefix("dev ").lower())
        if start is not None:
            points[name].insert(0, (0.0, float(start)))
    return Run(folder.name, folder, metrics, points)


def grouped(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Runs that differ in nothing but their seeds, by a name without the seed, in natural order of the names.

    A run that has not ended has no settings yet: its name alone decides.
    """
    found: list[tuple[str, list[Run]]] = []
    for run in sorted(runs, key=lambda run: (run.metrics is None, natural(run.name))):
        stem = SEED_IN_NAME.sub("", run.name)
        like = (members for name, members in found if name == stem and run.settings in ({}, members[0].settings))
        members = next(like, None)
        if members is None:
            members = []
            found.append((stem, members))
        members.append(run)
    stems = [stem for stem, _ in found]
    named: dict[str, list[Run]] = {}
    for stem, members in found:
        name = stem if stems.count(stem) == 1 else ", ".join(run.name for run in members)
        while name in named:  # folders of one name in several places
            name += "'"
        named[name] = members
    return dict(sorted(named.items(), key=lambda item: natural(item[0])))


def natural(text: str) -> list[str | float]:
    """A key that sorts the numbers in texts by their value: K4 before K16, lr5em5 before lr1em4, 0p5 as 0.5."""
    parts = re.split(r"(\d+(?:[.p]\d+)?(?:em?-?\d+)?)", text)
    return [_number(part) if at % 2 else part for at, part in enumerate(parts)]


def _number(text: str) -> float:
    return float(text.replace("em", "e-").replace("p", "."))


def _points(entries: Iterable[dict[str, Any]], names: dict[str, str]) -> dict[str, Points]:
    """Of a step that stands twice, the first."""
    found: dict[str, dict[float, float]] = {}
    for entry in entries:
        for name in names.keys() & entry.keys():
            found.setdefault(names[name], {}).setdefault(float(entry["step"]), float(entry[name]))
    return {name: sorted(values.items()) for name, values in found.items()}


def _history(folder: Path) -> list[dict[str, Any]]:
    """The log of the newest checkpoint whose state can be read: one that is being written is passed over."""
    paths = sorted(folder.glob("checkpoints/*/trainer_state.json"), key=lambda path: natural(path.parent.name))
    for path in reversed(paths):
        try:
            history: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))["log_history"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        return history
    return []
