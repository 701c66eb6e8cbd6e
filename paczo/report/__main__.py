"""All results beside the paper, as Markdown and as one self-contained HTML page: `bash scripts/report.sh`.

Reads the runs in `result/runs`, or those that `--runs` names, and `result/published/*.json`. A run counts as a
cell of the paper only where its settings are those of the cell's row in `scripts/cells.tsv`; any other is listed
with its own settings. With `--private` there is also a page of exact posteriors, noise, spent nats and unanimity
over the steps from the private ledgers; it is `private.html` (mode 0600) and must stay with the data's owner.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paczo.cells import Cell, cells
from paczo.report import tables
from paczo.report.curves import BANDS, drawings
from paczo.report.evidence import evidence_drawings
from paczo.report.overview import of_evidence, of_runs, overview
from paczo.report.page import Section, Table, as_html, as_markdown
from paczo.report.plots import PLOTS
from paczo.report.privacy import privacy, private_sections
from paczo.report.runs import Run, find_runs, grouped, read_run
from paczo.report.universe import universe
from src.utils import UserError, run_cli

# What a flat file of scores holds.
FLAT = {"accuracy", "f1", "dev_accuracy", "dev_f1"}
SHOWN = 3  # drawings of learning curves of one task and model, beyond which the rest is folded
CELL_TABLES = (
    ("Table 1: headline cells", tables.TABLE_1_NOTE, "headline"),
    ("Plateau: score against the budget", tables.PLATEAU_NOTE, "plateau"),
    ("PAC-ZPL: number of steps", "", "ladder"),
    ("Directions a step, K", "", "directions"),
    ("LoRA rank", "", "rank"),
    ("Clipping", "", "clip"),
    ("PAC-ZPL: learning rate", "", "learning_rate"),
    ("What each part of the mechanism costs", "", "mechanism"),
    ("Non-private SQuAD", "", "nonprivate_squad"),
    ("Table 3: PACZero and DP at equal attack success", tables.TABLE_3_NOTE, "equal_success"),
)
# Published figures -> what measures them.
MEASURED_BY = {
    "learning_table": "python -m scripts.learning_table",
    "universe_audit": "bash scripts/audit.sh universe --out result/published",
    "sst2_evidence": "DATA_DIR=FOLDER bash scripts/evidence.sh sst2 --hours 12",
}


def load_runs(patterns: Sequence[str]) -> tuple[list[Run], Table]:
    """Runs that ended with scores and those that have not ended, and a row for each that is damaged.

    Files of scores beside the runs' own, and runs that were not to be evaluated, are passed over.
    """
    found, damaged = [], []
    for folder in find_runs(patterns):
        path = folder / "metrics.json"
        try:
            metrics = json.loads(path.read_text("utf-8")) if path.exists() else None
            if metrics and (metrics.keys() <= FLAT or (metrics.get("after") and not metrics["after"].get("test"))):
                continue
            run = read_run(folder, metrics)
            if metrics is not None:
                tables.other_run(run)
            found.append(run)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            damaged.append((str(path), f"not a run's metrics: {type(error).__name__} {error}"))
    return found, Table(("file", "what is wrong"), damaged)


def load_published(folder: Path) -> dict[str, Any]:
    """Tables measured by scripts of the project, by file name."""
    try:
        return {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))}
    except (OSError, ValueError) as error:
        raise UserError(f"a file in {folder} is not JSON: {error}") from error


def curves(runs: Sequence[Run], x: str, kind: Any) -> Section:
    """Learning curves, a part each task and model; runs that have not ended go with those of their name."""
    by_setting: dict[str, dict[str, list[Run]]] = {}
    for name, members in grouped(runs).items():
        ended = next((run.figures for run in members if run.metrics is not None), None)
        where = "Not finished" if ended is None else tables.setting(ended)
        by_setting.setdefault(where, {})[name] = members
    parts = []
    for where, groups in sorted(by_setting.items()):
        drawn = drawings(groups, where, x=x, kind=kind)
        rest = Section(f"{len(drawn) - SHOWN} more drawings", drawings=drawn[SHOWN:], folded=True)
        parts.append(Section(where, drawings=drawn[:SHOWN], parts=[rest]))
    note = f"Mean over the runs that differ in their seeds only; the band: {BANDS[kind]}."
    if x == "passes":
        note += " Runs with exact derivatives have no count of passes and are left out."
    return Section("Learning curves", note, parts=parts)


def sections(runs: list[Run], published: dict[str, Any], x: str = "steps", kind: Any = "range") -> list[Section]:
    """What the page shows, in order: what ran, then what is missing."""
    rows = cells()
    ended = [run for run in runs if run.metrics is not None]
    matched = tables.match(rows, ended)
    entries = of_runs(ended) + (of_evidence(published["sst2_evidence"]) if "sst2_evidence" in published else [])
    found = [overview(entries)]
    if "sst2_evidence" in published:
        note = "Mean over seeds; the band: smallest to largest. Rows without a dev set have no curve."
        found.append(
            Section("SST-2, method by method", note, drawings=evidence_drawings(published["sst2_evidence"]))
        )
    found += [curves(runs, x, kind), privacy(ended)]
    missing = []
    for title, note, name in CELL_TABLES:
        table: tables.Cells = getattr(tables, name)(rows, matched)
        drawing = PLOTS[name](rows, matched) if name in PLOTS else ""
        found.append(Section(title, note if table.ran.rows else "", table.ran, [drawing] if drawing else []))
        missing.append(Section(title, table=table.missing))
    if "learning_table" in published:
        measured = published["learning_table"]
        note, drawn = tables.learning_note(measured), [PLOTS["learning"](measured)]
        found.append(Section("Learning task", note, tables.learning(measured), drawn))
    if "universe_audit" in published:
        found.append(universe(published["universe_audit"]))
    known = {run.name for run in matched.values()}
    found.append(
        Section("Runs with other settings", "", tables.other_runs(r for r in ended if r.name not in known))
    )
    found.append(_missing(missing, len(rows) - len(matched), len(rows), published))
    return [section for section in found if not section.empty]


def _missing(parts: list[Section], left: int, total: int, published: dict[str, Any]) -> Section:
    lines = [(name, command) for name, command in MEASURED_BY.items() if name not in published]
    parts = [*parts, Section("Measured tables", table=Table(("table", "command"), lines, commands=True))]
    note = "The cells want a GPU; SMOKE=1 before a command tries it on a small scale."
    return Section(f"Missing: {left} of the paper's {total} cells", note, parts=parts, folded=True)


def summary(runs: Sequence[Run], rows: Sequence[Cell]) -> str:
    """One line on how much there is."""
    ended = [run for run in runs if run.metrics is not None]
    matched = len(tables.match(list(rows), ended))
    going = f", {len(runs) - len(ended)} not finished" if len(runs) > len(ended) else ""
    return f"{len(ended)} finished runs{going}; {matched} of the paper's {len(rows)} cells."


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="report.sh", description="Tables and plots of all results.")
    parser.add_argument(
        "--runs", nargs="+", default=["result/runs"], metavar="GLOB", help="runs, or folders of such"
    )
    parser.add_argument("--published", type=Path, default=Path("result/published"))
    parser.add_argument("--output", type=Path, default=Path("result/report"))
    parser.add_argument("--against", choices=("steps", "passes"), default="steps", help="of the learning curves")
    parser.add_argument(
        "--bands", choices=[*BANDS], default="range", help="smallest to largest, or standard error"
    )
    parser.add_argument("--private", action="store_true", help="also a page for the data's owner")
    given = parser.parse_args(argv)
    runs, damaged = load_runs(given.runs)
    content = sections(runs, load_published(given.published), given.against, given.bands)
    if damaged.rows:
        content.append(Section("Damaged runs, left out", table=damaged))
    for path, what in damaged.rows:
        print(f"warning: {path} is left out: {what}", file=sys.stderr)
    line = summary(runs, cells())
    private = private_sections(runs) if given.private else None
    try:
        given.output.mkdir(parents=True, exist_ok=True)
        (given.output / "report.md").write_text(as_markdown(content, line), encoding="utf-8")
        (given.output / "report.html").write_text(as_html(content, line), encoding="utf-8")
        if private is not None:
            _write_private(given.output / "private.html", private)
    except OSError as error:
        raise UserError(f"cannot write to {given.output}: {error.strerror}") from error
    print(f"{line} Wrote {given.output}/report.md and report.html")


def _write_private(path: Path, content: list[Section]) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(as_html(content, "", "Private: depends on the secrets. Do not publish."))


if __name__ == "__main__":
    run_cli(main)
