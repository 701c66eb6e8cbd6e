"""The page of all unlearning runs: forget quality against model utility in one plot, and each task's table.

Of a task whose models were attacked the page also draws what came back while they relearned a few rows.
"""

from __future__ import annotations

import html
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from src.pages import INK, document, svg
from src.tofu.runs import Column, side_by_side
from src.utils import UserError

MARKERS = {"before": "s", "retain": "D", "plain": "o", "PUM": "^"}
COMMON = ("before", "retain")  # one of each for all tasks
LEAST = 1e-30  # p-values below are drawn there
NOTE = (
    "Up and right is better. A line joins a task's plain run with its PUM run. A forget quality below 1e-30 is"
    " drawn at 1e-30."
)


def write_page(path: Path, tasks: Mapping[str, Mapping[str, Column]]) -> None:
    """Write the page of {task: {"before", "plain", "PUM": scores}}; raises `UserError` where it cannot."""
    body = ""
    for task, columns in tasks.items():
        body += f'<div class="wide"><pre>{html.escape(side_by_side(task, columns))}</pre></div>'
        if (curves := relearning(columns)) is not None:
            body += f'<div class="drawing">{curves}</div>'
    text = document("Unlearning", f'<h1>Unlearning</h1><div class="drawing">{plot(tasks)}</div>{body}')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write the page {path}: {error.strerror}") from error


def points(tasks: Mapping[str, Mapping[str, Column]]) -> list[tuple[str, str, float, float]]:
    """(task, kind, utility, forget quality) of each model that has both; `COMMON` once, as of no task."""
    found: dict[tuple[str, str], tuple[float, float]] = {}
    for task, columns in tasks.items():
        for kind, column in columns.items():
            utility, quality = column.get("model_utility"), column.get("forget_quality")
            if utility is not None and quality is not None:
                found["" if kind in COMMON else task, kind] = (utility, quality)
    return [(task, kind, *both) for (task, kind), both in found.items()]


def plot(tasks: Mapping[str, Mapping[str, Column]]) -> str:
    """An SVG and what it says: a colour for each task, a shape for each kind of run."""
    found = points(tasks)
    if not found:
        return "<p>No run has a forget quality: give a retain log.</p>"
    names = [task for task in tasks if any(task == point[0] for point in found)]
    shared = prefix(names)
    figure = Figure(figsize=(4.8, 4.2))
    axes = figure.subplots()
    for index, task in enumerate(["", *names]):
        mine = [(kind, u, math.log10(max(q, LEAST))) for name, kind, u, q in found if name == task]
        color, style = INK if not task else f"C{(index - 1) % 10}", "--" if index > 10 else "-"
        if task:
            label, both = task.removeprefix(shared), zip(*(point[1:] for point in mine), strict=True)
            axes.plot(*both, style, color=color, linewidth=0.9, label=label)
        for kind, utility, quality in mine:
            axes.plot(utility, quality, MARKERS[kind], color=color, fillstyle="none" if index > 10 else "full")
    for kind in (kind for kind in MARKERS if any(kind == point[1] for point in found)):
        axes.plot([], [], MARKERS[kind], color=INK, label=kind)
    axes.axhline(math.log10(0.05), color="grey", linestyle=":", linewidth=0.8)
    low, high = axes.get_xlim()
    axes.set_xlim(max(low, -0.02), max(high, 0.2))  # a utility is never negative
    axes.set_xlabel("model utility")
    axes.set_ylabel("log10 of forget quality (p-value; dotted: 0.05)")
    axes.set_title(shared.rstrip("_"), fontsize=9)
    axes.legend(loc="upper left", bbox_to_anchor=(0.0, -0.13), ncols=3 if len(shared) else 1, fontsize=8)
    return f"<div>{svg(figure)}<p>{NOTE}</p></div>"


def prefix(names: Sequence[str]) -> str:
    """What several names begin with, up to a "_"; nothing of one."""
    parts = zip(*(name.split("_")[:-1] for name in names), strict=False) if len(names) > 1 else ()
    return "".join(f"{part[0]}_" for part in itertools.takewhile(lambda part: len(set(part)) == 1, parts))


def relearning(columns: Mapping[str, Column]) -> str | None:
    """An SVG: probability of forget rows against steps on a few others of them; None where no model has that."""
    curves = {title: column["relearning"] for title, column in columns.items() if column.get("relearning")}
    if not curves:
        return None
    figure = Figure(figsize=(4.8, 2.6))
    axes = figure.subplots()
    for title, curve in curves.items():
        axes.plot(curve["steps"], curve["prob"], MARKERS[title] + "-", label=title)
    axes.set_xlabel("steps of relearning on a few forget rows")
    axes.set_ylabel("probability of the others")
    axes.legend()
    return svg(figure)
