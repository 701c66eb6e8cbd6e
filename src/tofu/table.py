"""Plain and PUM runs side by side: `python -m src.tofu.table saves/unlearn [--before EVALS] [--retain MODEL]`.

A task is a folder with a plain run; its PUM run lies beside it under the same name and "_PUM".
What attacks on the models found (`src.tofu.attacks`) stands below the scores.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from src.tofu.attacked import read_json
from src.tofu.runs import SCRIPTS, columns_of, read_evaluated, side_by_side, tasks_in


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Plain and PUM runs side by side.")
    parser.add_argument("folder", type=Path, help="saves/unlearn")
    parser.add_argument("--before", type=Path, help="folder with TOFU_SUMMARY.json of the model before unlearning")
    parser.add_argument("--retain", type=Path, help="folder of the model that never saw the forget set")
    parser.add_argument("--tasks", nargs="*", help="names of plain runs; default: all")
    parser.add_argument("--json", type=Path, help="write the columns there, too")
    parser.add_argument("--page", type=Path, help="write tables and the plot of all runs in the folder there")
    args = parser.parse_args(argv)
    before = read_json(args.before / "TOFU_SUMMARY.json") if args.before else None
    retain = read_evaluated(args.retain) if args.retain else None
    tasks = args.tasks or tasks_in(args.folder)
    found = {task: columns_of(args.folder, task, before, retain) for task in tasks}
    for task, columns in found.items():
        print("\n" + side_by_side(task, columns))
    if args.json:
        runs = {task: {title: columns.get(title) for title in SCRIPTS} for task, columns in found.items()}
        args.json.write_text(
            json.dumps({"before": before, "retain": retain, "tasks": runs}, indent=2, sort_keys=True) + "\n"
        )
    if args.page:
        from src.tofu.page import write_page  # drawing takes a second to load

        others = [task for task in tasks_in(args.folder) if task not in found]
        everything = found | {task: columns_of(args.folder, task, None) for task in others}
        write_page(args.page, {task: everything[task] for task in sorted(everything)})
        print(f"\nplot of forget quality against utility: {args.page}")


if __name__ == "__main__":
    main()
