"""A drawing of unlearning on TOFU: where each method comes to, and what perturbed copies change of that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from scripts.tables import Figures
from scripts.tofu_tables import FULL, POINT, PROBABILITIES, RETAIN, changes, shown
from src.pages import COLOURS, INK, LINE_STYLES, legend, svg

FORGET, KEPT = PROBABILITIES
NOISES = {"0.01": "none", "0.1": "full"}  # how dots are filled


def tofu_svg(runs: Sequence[Figures]) -> str:
    """Two panels, "" where nothing has run.

    Left, forget against retain probability: each method's plain runs, its rates joined from low to high, and the
    models before unlearning and without the forget rows. Right, by method, how both change with each noise, in
    points, and the band of one point to both sides.
    """
    plain = [run for run in runs if run["row"].endswith(", plain")]
    if not plain:
        return ""
    figure = Figure(figsize=(9.6, 4.2))
    left, right = figure.subplots(1, 2, gridspec_kw={"wspace": 0.45})
    _reached(left, plain, shown(runs))
    _changed(right, runs)
    return svg(figure)


def _reached(axes: Any, plain: Sequence[Figures], rows: dict[str, Figures]) -> None:
    methods = dict.fromkeys(run["row"].partition(", ")[0] for run in plain)
    for number, method in enumerate(methods):
        mine = sorted((run for run in plain if run["row"] == f"{method}, plain"), key=lambda run: run["rate"])
        colour, style = COLOURS[number % len(COLOURS)], LINE_STYLES[number // len(COLOURS)]
        axes.plot(*_places(mine), color=colour, linestyle=style, marker=".", linewidth=0.8, alpha=0.6)
        axes.plot(*_places([rows[f"{method}, plain"]]), color=colour, linestyle=style, marker="o", label=method)
    for name, mark in ((RETAIN, "*"), (FULL, "X")):
        if name in rows:
            axes.plot(*_places([rows[name]]), mark, color=INK, markersize=9, label=name)
    axes.set(xlabel="forget probability", ylabel="retain probability")
    legend(axes, columns=3)


def _places(runs: Sequence[Figures]) -> tuple[list[float], list[float]]:
    return [run["scores"][FORGET] for run in runs], [run["scores"][KEPT] for run in runs]


def _changed(axes: Any, runs: Sequence[Figures]) -> None:
    found = changes(runs, tuple(NOISES))
    axes.axvspan(-100 * POINT, 100 * POINT, color=INK, alpha=0.08, linewidth=0)
    for key, name, colour, above in ((FORGET, "forget", COLOURS[0], -0.12), (KEPT, "retain", COLOURS[1], 0.12)):
        for noise, fill in NOISES.items():
            dots = [(100 * one, line + above) for line, by in enumerate(found.values()) for one in by[noise, key]]
            x, y = [dot[0] for dot in dots], [dot[1] for dot in dots]
            axes.plot(x, y, "o", color=colour, fillstyle=fill, label=f"{name}, kappa {noise}")
    axes.set_yticks(range(len(found)), [*found])
    axes.invert_yaxis()
    axes.set(xlabel="change of probability by PUM's noise, in points")
    legend(axes, columns=2)
