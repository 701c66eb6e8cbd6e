"""All results beside the paper, as Markdown and as one self-contained HTML page: `bash scripts/report.sh`.

Reads `result/runs/*/metrics.json` and `result/published/*.json`. A run counts as a cell of the paper only where
its settings are those of the cell's row in `scripts/cells.tsv`; any other is listed with its own settings. With
`--private` the page also shows noise, spent nats and unanimity over the steps from the private ledgers; it is
written to `private.html` (mode 0600) then, and must stay with the data's owner.
"""

from __future__ import annotations

import argparse
import html
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paczo.cells import cells
from paczo.report import tables
from paczo.report.plots import PLOTS, ledger_plot
from paczo.report.tables import Result, Table
from src.record.chain import read_records
from src.utils import UserError, run_cli

STYLE = (
    "body{font:15px sans-serif;max-width:1100px;margin:2em auto;padding:0 1em}"
    "table{border-collapse:collapse;margin:1em 0}td,th{border:1px solid #bbb;padding:3px 8px;text-align:left}"
    "svg{max-width:100%;height:auto}"
)
# What a flat file of scores holds.
FLAT = {"accuracy", "f1", "dev_accuracy", "dev_f1"}


@dataclass(frozen=True)
class Section:
    title: str
    note: str
    table: Table | None
    drawing: str = ""


def load_results(folder: Path) -> list[Result]:
    """Every finished run with scores below `folder`; one that is none raises `UserError` with its path."""
    found = []
    for path in sorted(folder.glob("*/metrics.json")):
        try:
            metrics = json.loads(path.read_text("utf-8"))
            if metrics.get("after") and not metrics["after"].get("test"):
                continue  # a run that was not to be evaluated
            if metrics and metrics.keys() <= FLAT:
                continue  # the sources' file of scores, beside the run's own
            found.append(Result(path.parent.name, metrics, path.parent))
            tables.score(found[-1])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is not a run's metrics: {type(error).__name__} {error}") from error
    return found


def load_published(folder: Path) -> dict[str, Any]:
    """Tables measured by scripts of the project, by file name."""
    try:
        return {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))}
    except (OSError, ValueError) as error:
        raise UserError(f"a file in {folder} is not JSON: {error}") from error


def sections(results: list[Result], published: dict[str, Any]) -> list[Section]:
    """What the page shows, in order."""
    rows = cells()
    matched = tables.match(rows, results)
    makers: list[tuple[str, str, str]] = [
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
    ]
    found = []
    for title, note, name in makers:
        drawing = PLOTS[name](rows, matched) if name in PLOTS else ""
        found.append(Section(title, note, getattr(tables, name)(rows, matched), drawing))
    if "learning_table" in published:
        measured = published["learning_table"]
        drawing = PLOTS["learning"](measured)
        found.append(Section("Learning task", tables.learning_note(measured), tables.learning(measured), drawing))
    known = {result.name for result in matched.values()}
    others = [result for result in results if result.name not in known]
    found.append(Section("Runs with other settings", "", tables.other_runs(others)))
    return found


def private_sections(results: Iterable[Result]) -> list[Section]:
    """Noise, spent nats and unanimity of each run that has a ledger."""
    found = []
    for result in results:
        path = result.folder / "private" / "ledger.jsonl"
        if path.exists():
            steps = [line for line in read_records(path)[1:] if "releases" in line]
            found.append(Section(result.name, "", None, ledger_plot(steps)))
    return found


def as_markdown(content: list[Section]) -> str:
    parts = ["# PACZero: results beside the paper (arXiv 2605.06505)"]
    for section in content:
        parts.append(f"## {section.title}")
        parts += [text for text in (section.note, section.table and section.table.markdown()) if text]
    return "\n\n".join(parts) + "\n"


def as_html(content: list[Section], warning: str = "") -> str:
    body = ["<h1>PACZero: results beside the paper (arXiv 2605.06505)</h1>", warning]
    for section in content:
        body.append(f"<h2>{html.escape(section.title)}</h2>")
        body.append(f"<p>{html.escape(section.note)}</p>" if section.note else "")
        body.append(section.drawing)
        body.append(section.table.html() if section.table else "")
    head = f'<meta charset="utf-8"><title>PACZero results</title><style>{STYLE}</style>'
    return f"<!doctype html><html><head>{head}</head><body>{''.join(body)}</body></html>\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="report.sh", description="Tables and plots of all results.")
    parser.add_argument("--runs", type=Path, default=Path("result/runs"))
    parser.add_argument("--published", type=Path, default=Path("result/published"))
    parser.add_argument("--output", type=Path, default=Path("result/report"))
    parser.add_argument("--private", action="store_true", help="also draw the private ledgers")
    given = parser.parse_args(argv)
    results = load_results(given.runs)
    content = sections(results, load_published(given.published))
    try:
        given.output.mkdir(parents=True, exist_ok=True)
        (given.output / "report.md").write_text(as_markdown(content), encoding="utf-8")
        (given.output / "report.html").write_text(as_html(content), encoding="utf-8")
        if given.private:
            _write_private(given.output / "private.html", private_sections(results))
    except OSError as error:
        raise UserError(f"cannot write to {given.output}: {error.strerror}") from error
    print(f"{len(results)} runs; wrote {given.output}/report.md and report.html")


def _write_private(path: Path, content: list[Section]) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(as_html(content, "<p><strong>Private: depends on the secrets. Do not publish.</strong></p>"))


if __name__ == "__main__":
    run_cli(main)
