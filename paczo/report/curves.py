"""Learning curves: a line a method, the mean over its seeds, and a band about it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from paczo.report.runs import QUANTITIES, Points, Run
from src.pages import legend, svg

Floats = NDArray[np.float64]
Kind = Literal["range", "error"]
BANDS: dict[Kind, str] = {"range": "smallest to largest", "error": "standard error"}
MOST = 8  # curves in a drawing, beyond which nobody tells them apart


@dataclass(frozen=True)
class Series:
    """A method's course.

    Attributes:
        label: in the legend.
        runs: of each seed the points (x, y), x ascending.
    """

    label: str
    runs: Sequence[Points]


@dataclass(frozen=True)
class Band:
    """Mean and band, each (n,), at the n values `x`."""

    x: Floats
    mean: Floats
    low: Floats
    high: Floats


def band(runs: Sequence[Points], kind: Kind = "range") -> Band:
    """The mean over runs wherever one of them has a point, as far as all have come.

    Between its points a run is taken as a straight line. NaN, a gap in the drawing, where a run is not finite.

    Args:
        runs: points (x, y) of each run, x ascending; runs without points are left out.
        kind: "range", smallest to largest, or "error", a standard error to both sides. No width with one run.
    """
    curves = [np.array(points, dtype=np.float64) for points in runs if points]
    if not curves:
        return Band(*(np.empty(0) for _ in range(4)))
    first, last = max(curve[0, 0] for curve in curves), min(curve[-1, 0] for curve in curves)
    x = np.unique(np.concatenate([curve[:, 0] for curve in curves]))
    x = x[(first <= x) & (x <= last)]
    y = np.array([_between(x, curve) for curve in curves])
    mean = y.mean(0)
    if kind == "range":
        return Band(x, mean, y.min(0), y.max(0))
    error = y.std(0, ddof=1) / math.sqrt(len(y)) if len(y) > 1 else np.zeros_like(mean)
    return Band(x, mean, mean - error, mean + error)


def _between(x: Floats, curve: Floats) -> Floats:
    """A run's values at `x`, NaN beside a point that is not finite."""
    bad = ~np.isfinite(curve[:, 1])
    values = np.interp(x, curve[:, 0], np.where(bad, 0.0, curve[:, 1]))
    values[np.interp(x, curve[:, 0], bad.astype(np.float64)) > 0] = np.nan
    return values


def draw(axes: Any, series: Sequence[Series], kind: Kind = "range") -> None:
    """The lines and their bands, with labels but no legend, into axes of Matplotlib.

    A series without points takes its colour all the same, so that each has one colour in all drawings.
    """
    for one in series:
        found = band(one.runs, kind)
        (line,) = axes.plot(found.x, found.mean, marker="." if len(found.x) < 30 else None, label=_label(one))
        if sum(1 for points in one.runs if points) > 1:
            axes.fill_between(found.x, found.low, found.high, color=line.get_color(), alpha=0.18, linewidth=0)


def _label(series: Series) -> str:
    """A label that says how many runs there are, and that some left the finite numbers. "$" is no formula."""
    runs = [points for points in series.runs if points]
    if not runs:
        return "_nolegend_"
    wild = sum(1 for points in runs if not all(math.isfinite(y) for _, y in points))
    count = f" ({len(runs)} runs)" if len(runs) > 1 else ""
    label = series.label.replace("$", r"\$")
    label = f"\N{ZERO WIDTH SPACE}{label}" if label.startswith("_") else label  # Matplotlib hides those
    return label + count + (f" (not finite: {wild} of {len(runs)})" if wild else "")


def curves_svg(series: Sequence[Series], *, x_label: str, y_label: str, title: str, kind: Kind = "range") -> str:
    """A drawing of the series as an SVG element; "" where none has a point."""
    if not any(any(one.runs) for one in series):
        return ""
    figure = Figure(figsize=(4.8, 2.8))
    axes = figure.subplots()
    draw(axes, series, kind)
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.set_title(title.replace("$", r"\$"), fontsize=9, loc="left")
    legend(axes)
    return svg(figure)


def drawings(groups: dict[str, list[Run]], title: str, *, x: str = "steps", kind: Kind = "range") -> list[str]:
    """Drawings of all that was measured of some groups of runs, at most `MOST` groups in each.

    Args:
        groups: of `grouped`.
        title: of what the runs have in common.
        x: "steps", or "passes" for bare forward passes, which exact derivatives do not have.
    """
    label = "step" if x == "steps" else "forward passes"
    drawn = [(name, members) for name, members in groups.items() if any(_points(run, None, x) for run in members)]
    found = []
    for at in range(0, len(drawn), MOST):
        for quantity in QUANTITIES:
            series = [
                Series(_name(name, members), [_points(run, quantity, x) for run in members])
                for name, members in drawn[at : at + MOST]
            ]
            found.append(curves_svg(series, x_label=label, y_label=quantity, title=title, kind=kind))
    return [drawing for drawing in found if drawing]


def _name(name: str, members: Sequence[Run]) -> str:
    going = sum(run.metrics is None for run in members)
    return name if not going else f"{name}, {going} not finished"


def _points(run: Run, quantity: str | None, x: str) -> Points:
    """Of one quantity, or of all."""
    wanted = QUANTITIES if quantity is None else (quantity,)
    points = [point for name in wanted for point in run.points.get(name, [])]
    if x == "steps":
        return points
    return [] if run.passes_a_step is None else [(run.passes_a_step * step, y) for step, y in points]
