"""Finished unlearning runs as columns of scores, and one task's table. Plain Python, so that it takes no time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SUFFIX = "_PUM"
SCRIPTS = {"plain": "tofu_unlearn.sh", "PUM": "tofu_pum.sh"}
ROWS = (
    ("forget probability", "forget_Q_A_Prob"),
    ("retain probability", "retain_Q_A_Prob"),
    ("forget quality", "forget_quality"),
    ("model utility", "model_utility"),
    ("forget truth ratio", "forget_truth_ratio"),
    ("forget ROUGE-L", "forget_Q_A_ROUGE"),
    ("extraction strength", "extraction_strength"),
    ("privleak", "privleak"),
    ("seconds", "seconds"),
    ("peak memory, MiB", "peak_memory"),
)

Column = dict[str, float | None]


def read_run(folder: Path) -> Column | None:
    """Scores, training seconds and peak memory of a run, or None where there is no finished run."""
    metrics = read_json(folder / "metrics.json")
    if metrics is None:
        return None
    return {
        **metrics["scores"],
        "seconds": metrics["seconds"]["train"],
        "peak_memory": metrics["peak_memory"]["mib"],
    }


def columns_of(folder: Path, task: str, before: Column | None) -> dict[str, Column]:
    """What there is of: before unlearning, after the plain run, after PUM."""
    found = {"before": before, "plain": read_run(folder / task), "PUM": read_run(folder / (task + SUFFIX))}
    return {title: column for title, column in found.items() if column is not None}


def side_by_side(task: str, columns: Mapping[str, Column]) -> str:
    """The table of one task; a column for each run that is there, a row for each score that a run has."""
    lines = [task, f"{'':<22}" + "".join(f"{title:>12}" for title in columns)]
    for title, name in ROWS:
        if any(name in column for column in columns.values()):
            lines.append(f"{title:<22}" + "".join(f"{_cell(column, name):>12}" for column in columns.values()))
    missing = [f"{title} ({script})" for title, script in SCRIPTS.items() if title not in columns]
    if missing:
        lines.append(f"not run: {', '.join(missing)}")
    return "\n".join(lines)


def _cell(column: Column, name: str) -> str:
    if name not in column:
        return "-"
    value = column[name]
    if value is None:
        return "open"
    return f"{value:.1f}" if name in ("seconds", "peak_memory", "privleak") else f"{value:.4g}"


def read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    return value if isinstance(value, dict) else None


def tasks_in(folder: Path) -> list[str]:
    """Every task with a finished run."""
    found = {path.parent.name.removesuffix(SUFFIX) for path in folder.glob("*/metrics.json")}
    return sorted(found)
