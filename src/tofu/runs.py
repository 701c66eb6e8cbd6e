"""Finished unlearning runs as columns of scores, and one task's table. Plain Python, so that it takes no time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from src.tofu.attacked import attack_rows, read_json, relearning_curve, verdict

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

# Scores by name; where the model was attacked also "attacks", its lines, "verdict", in words
# or None, and "relearning", the curve or None.
Column = dict[str, Any]


def read_run(folder: Path) -> Column | None:
    """Scores, training seconds and peak memory of a run, or None where there is no finished run."""
    metrics = read_json(folder / "metrics.json")
    if metrics is None:
        return None
    return {
        **metrics["scores"],
        "seconds": metrics["seconds"]["train"],
        "peak_memory": metrics["peak_memory"]["mib"],
        **_attacks(folder),
    }


def read_evaluated(folder: Path) -> Column | None:
    """Likewise of a model that no run here left, from its evaluation."""
    scores = read_json(folder / "evals" / "TOFU_SUMMARY.json")
    return None if scores is None else {**scores, **_attacks(folder)}


def _attacks(folder: Path) -> Column:
    evals = folder / "evals"
    lines = attack_rows(evals)
    if not lines:
        return {}
    return {"attacks": lines, "verdict": verdict(evals), "relearning": relearning_curve(evals)}


def columns_of(folder: Path, task: str, before: Column | None, retain: Column | None = None) -> dict[str, Column]:
    """What there is of: before unlearning, the retain model, after the plain run, after PUM."""
    plain, pum = read_run(folder / task), read_run(folder / (task + SUFFIX))
    found = {"before": before, "retain": retain, "plain": plain, "PUM": pum}
    return {title: column for title, column in found.items() if column is not None}


def side_by_side(task: str, columns: Mapping[str, Column]) -> str:
    """The table of one task: a column for each model that is there, a row for each score or attack that one has.

    Below it stands what the attacks say of each run.
    """
    rows = [(t, [_cell(c, n) for c in columns.values()]) for t, n in ROWS if any(n in c for c in columns.values())]
    attacks = [column.get("attacks", {}) for column in columns.values()]
    for title in dict.fromkeys(title for found in attacks for title in found):
        rows.append((title, ["-" if (v := found.get(title)) is None else f"{v:.4g}" for found in attacks]))
    wide = max([22, *(len(title) + 1 for title, _ in rows)])
    lines = [task, " " * wide + "".join(f"{title:>12}" for title in columns)]
    lines += [f"{title:<{wide}}" + "".join(f"{cell:>12}" for cell in cells) for title, cells in rows]
    lines += [
        f"{title}: {columns[title]['verdict']}" for title in SCRIPTS if columns.get(title, {}).get("verdict")
    ]
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


def tasks_in(folder: Path) -> list[str]:
    """Every task with a finished run."""
    found = {path.parent.name.removesuffix(SUFFIX) for path in folder.glob("*/metrics.json")}
    return sorted(found)
