"""The page of all unlearning runs: forget quality against model utility in one plot, and each task's table.

Of a task whose models were attacked the page also draws what came back while they relearned a few rows.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure

from src.pages import INK, document, svg
from src.tofu.runs import Column, side_by_side
from src.utils import UserError

MARKERS = {"before": "s", "retain": "D", "plain": "o", "PUM": "^"}
COMMON = ("before", "retain")  # one of each for all tasks
LEAST = 1e-30  # p-values below are drawn there


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
    """An SVG: up and right is better. A line joins a task's plain run with its PUM run."""
    found = points(tasks)
    if not found:
        return "<p>No run has a forget quality: give a retain log.</p>"
    names = [task for task in tasks if any(task == point[0] for point in found)]
    figure = Figure(figsize=(4.8, 4.2))
    axes = figure.subplots()
    for index, task in enumerate(["", *names]):
        mine = [(kind, u, math.log10(max(q, LEAST))) for name, kind, u, q in found if name == task]
        color = INK if not task else f"C{(index - 1) % 10}"
        if task:
            axes.plot([u for _, u, _ in mine], [q for _, _, q in mine], color=color, linewidth=0.7)
        for kind, utility, quality in mine:
            label = " ".join(part for part in (task, kind) if part)
            axes.plot(utility, quality, MARKERS[kind], color=color, label=label)
    axes.axhline(math.log10(0.05), color="grey", linestyle=":", linewidth=0.8)
    axes.set_xlabel("model utility")
    axes.set_ylabel("log10 of forget quality (p-value; dotted: 0.05)")
    axes.legend(loc="upper left", bbox_to_anchor=(0.0, -0.15), ncols=2, fontsize=7)
    return svg(figure)


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
