"""Plain and PUM runs side by side: `python -m src.tofu.table saves/unlearn [--before EVALS] [--tasks NAME ...]`.

A task is a folder with a plain run; its PUM run lies beside it under the same name and "_PUM". Plain Python, so
that a table takes no time.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SUFFIX = "_PUM"
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
    metrics = _read(folder / "metrics.json")
    if metrics is None:
        return None
    return {
        **metrics["scores"],
        "seconds": metrics["seconds"]["train"],
        "peak_memory": metrics["peak_memory"]["mib"],
    }


def side_by_side(folder: Path, task: str, before: Column | None) -> str:
    """The table of one task: before unlearning, after the plain run, after PUM."""
    columns = [("before", before), ("plain", read_run(folder / task)), ("PUM", read_run(folder / (task + SUFFIX)))]
    lines = [task, f"{'':<22}" + "".join(f"{title:>12}" for title, _ in columns)]
    for title, name in ROWS:
        lines.append(f"{title:<22}" + "".join(f"{_cell(column, name):>12}" for _, column in columns))
    missing = [title for title, column in columns if column is None]
    if missing:
        lines.append(f"({', '.join(missing)}: not run; tofu_unlearn.sh makes the plain runs, tofu_pum.sh PUM's)")
    return "\n".join(lines)


def _cell(column: Column | None, name: str) -> str:
    if column is None or name not in column:
        return "-"
    value = column[name]
    if value is None:
        return "open"
    return f"{value:.1f}" if name in ("seconds", "peak_memory", "privleak") else f"{value:.4g}"


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    return value if isinstance(value, dict) else None


def tasks_in(folder: Path) -> list[str]:
    """Every task with a finished run."""
    found = {path.parent.name.removesuffix(SUFFIX) for path in folder.glob("*/metrics.json")}
    return sorted(found)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Plain and PUM runs side by side.")
    parser.add_argument("folder", type=Path, help="saves/unlearn")
    parser.add_argument("--before", type=Path, help="folder with TOFU_SUMMARY.json of the model before unlearning")
    parser.add_argument("--tasks", nargs="*", help="names of plain runs; default: all")
    parser.add_argument("--json", type=Path, help="write the columns there, too")
    args = parser.parse_args(argv)
    before = _read(args.before / "TOFU_SUMMARY.json") if args.before else None
    tasks = args.tasks or tasks_in(args.folder)
    for task in tasks:
        print("\n" + side_by_side(args.folder, task, before))
    if args.json:
        columns = {
            task: {"plain": read_run(args.folder / task), "PUM": read_run(args.folder / (task + SUFFIX))}
            for task in tasks
        }
        args.json.write_text(json.dumps({"before": before, "tasks": columns}, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
