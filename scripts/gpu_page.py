"""The page and the one JSON of `scripts/gpu_day.sh`, written from the parts' records and figures. Plain Python."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripts.readme_tables import directions, generation, processes, speed

TABLES = (
    ("One step", speed, "memory"),
    ("Exact derivatives along K directions", directions, "directions"),
    ("Generation", generation, "identical_answers"),
    ("Several processes", processes, "processes"),
)


def write_page(folder: Path, machine: Mapping[str, Any], outcome: Mapping[str, str]) -> None:
    """Write `gpu_day.md` and `gpu_day.json`, each whole or not at all.

    Args:
        outcome: what became of each part of this start, in words.
    """
    content = figures(folder)
    records = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("parts/*.json"))}
    whole = {"machine": dict(machine), "outcome": dict(outcome), "parts": records, "figures": content}
    _write(folder / "gpu_day.json", json.dumps(whole, indent=1) + "\n")
    _write(folder / "gpu_day.md", page(machine, outcome, records, content))


def figures(folder: Path) -> dict[str, dict[str, Any]]:
    """What the parts measured, by part and file."""
    paths = sorted(folder.glob("figures/*/*.json"))
    return {f"{path.parent.name}/{path.stem}": json.loads(path.read_text("utf-8")) for path in paths}


def page(
    machine: Mapping[str, Any],
    outcome: Mapping[str, str],
    records: Mapping[str, Mapping[str, Any]],
    content: Mapping[str, dict[str, Any]],
) -> str:
    """The page in Markdown."""
    text = ["# Measured in one go", "", _where(machine), ""]
    for title, table, key in TABLES:
        found = {name: values for name, values in content.items() if key in values}
        if found:
            text += [f"## {title}", "", table(found)]
    text += ["## Parts", "", "| part | this start | last line |", "| --- | --- | --- |"]
    for name, words in outcome.items():
        last = str(records.get(name, {}).get("last_line", "")).replace("|", "\\|")
        text.append(f"| {name} | {words} | {'' if last.startswith('wrote ') or last in words else last} |")
    waiting = [name for name, words in outcome.items() if words.startswith(("not", "failed", "ended"))]
    text += ["", f"Without figures here: {', '.join(waiting) or 'none'}. The same command goes on"]
    text += ["with what can be run here; `logs/` holds each part's output."]
    return "\n".join(text) + "\n"


def _where(machine: Mapping[str, Any]) -> str:
    versions = f"torch {machine['torch']}, transformers {machine['transformers']}"
    if not machine["gpus"]:
        return f"On a CPU, at tiny shapes, {versions}: a check of the commands. **Nothing here is of a GPU.**"
    memory = ", ".join(f"{size / 2**30:.0f} GiB" for size in machine["memory"])
    names = ", ".join(machine["gpus"])
    tiny = " At tiny shapes: a check of the commands, no measurement." if machine["tiny"] else ""
    return f"{len(machine['gpus'])} GPU: {names} ({memory}), CUDA {machine['cuda']}, {versions}.{tiny}"


def _write(path: Path, text: str) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
