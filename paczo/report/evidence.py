"""The published course of the SST-2 runs: accuracy, loss and agreement against forward passes, by method."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.figure import Figure

from paczo.report.curves import MOST, Series, curves_svg, draw
from paczo.report.runs import Points
from src.pages import legend, svg

TUNING_SEED = 100  # of the draw that rates are chosen on; it is not among those that are reported
X_LABEL = "passes over 1,000 samples"
DIRECTIONS_TITLE = "K directions a step, at zero nats"
MAIN = "PAC-ZPL abstain, K = 256"
PRIVATE_MEANS = ("PAC-MI", "DPZero", "DP-AggZO")
SIZES = ("N = ", "dev set", "rows")
Published = dict[str, Any]
Panels = dict[str, dict[str, list[Series]]]


def panels(published: Published) -> Panels:
    """Group of methods -> quantity -> a series a method, in the order of the plan, the same in all quantities.

    Groups and quantities without a point are left out.

    Args:
        published: `sst2_evidence.json`: "runs", each with its "row" (the method's name), "seed", "steps", "passes"
            of the whole run, the steps "curve" at which "dev_loss" and "dev_accuracy" were measured, those
            "before" training, and "agreement", the unanimous share of each step's releases.
    """
    rows: dict[str, list[Published]] = {}
    for run in reported(published["runs"]):
        rows.setdefault(run["row"], []).append(run)
    found: Panels = {}
    for title, belongs in GROUPS.items():
        members = {name: rows[name] for name in rows if belongs(name)}
        if title == DIRECTIONS_TITLE:
            members = dict(sorted(members.items(), key=lambda item: directions_of(item[0]) or 0))
            members = members if len(members) > 1 else {}
        drawn = {
            quantity: [Series(name, [of(run) for run in mine]) for name, mine in members.items()]
            for quantity, of in QUANTITIES.items()
        }
        drawn = {name: series for name, series in drawn.items() if any(any(one.runs) for one in series)}
        if drawn:
            found[title] = drawn
    return found


def reported(runs: Sequence[Published]) -> list[Published]:
    """The draws that tables and curves show: a row's at the rate that its tuning draw chose, where it has one.

    A sweep that was widened may have chosen another rate than an earlier one, whose draws are then left out.
    """
    tuned: dict[str, tuple[float, float]] = {}
    for run in runs:
        if run["seed"] == TUNING_SEED:
            found = (run["after"]["dev"]["loss"], run["rate"])
            tuned[run["row"]] = min(tuned.get(run["row"], found), found)
    draws = [run for run in runs if run["seed"] != TUNING_SEED]
    return [run for run in draws if run["row"] not in tuned or run["rate"] == tuned[run["row"]][1]]


def directions_of(name: str) -> int | None:
    """K of a row that differs from others in it alone, at zero nats; None of any other row."""
    found = re.fullmatch(r"PAC-ZPL abstain, K = (\d+)", name)
    return int(found[1]) if found else None


def _is_budget(name: str) -> bool:
    return name.startswith(PRIVATE_MEANS)


def _is_size(name: str) -> bool:
    return any(word in name for word in SIZES)


def _is_plain(name: str) -> bool:
    """At one number of directions, of one size, without a budget."""
    return not (_is_budget(name) or _is_size(name) or (directions_of(name) and name != MAIN))


GROUPS: dict[str, Callable[[str], bool]] = {
    "Zero nats, and not private": _is_plain,
    DIRECTIONS_TITLE: lambda name: directions_of(name) is not None,
    "With a budget": _is_budget,
    "Sizes of the training and dev sets": _is_size,
}


def _evaluated(quantity: str) -> Callable[[Published], Points]:
    def points(run: Published) -> Points:
        values, steps = run[f"dev_{quantity}"], run["curve"]
        kept = run["best_step"] not in (None, *steps[-1:]) and run["dev_loss"][-1:] == [
            run["after"]["dev"]["loss"]
        ]
        pairs = [*zip(steps, values, strict=True)][: -1 if kept else None]  # the end may be of the kept checkpoint
        start = run["before"].get("dev", {}).get(quantity)
        pairs = [(0, start), *pairs] if pairs else []
        each = run["passes"] / run["steps"]
        return [(each * step, float(value)) for step, value in pairs if value is not None]

    return points


def _agreement(run: Published) -> Points:
    """Means over a twentieth of the run each, which a reader can follow."""
    shares, each = run["agreement"], run["passes"] / run["steps"]
    width = max(1, len(shares) // 20)
    blocks = [(at, shares[at : at + width]) for at in range(0, len(shares), width)]
    return [(each * (at + len(block) / 2), sum(block) / len(block)) for at, block in blocks]


QUANTITIES: dict[str, Callable[[Published], Points]] = {
    "dev accuracy": _evaluated("accuracy"),
    "dev loss": _evaluated("loss"),
    "all subsets agree": _agreement,
}


def evidence_drawings(published: Published) -> list[str]:
    """Small drawings for a page that may be read on a phone."""
    found = [
        curves_svg(series[at : at + MOST], x_label=X_LABEL, y_label=quantity, title=title)
        for title, quantities in panels(published).items()
        for quantity, series in quantities.items()
        for at in range(0, len(series), MOST)
    ]
    return [drawing for drawing in found if drawing]


def evidence_svg(published: Published) -> str:
    """All in one drawing, a row a group of methods; "" where nothing has run."""
    rows = panels(published)
    if not rows:
        return ""
    figure = Figure(figsize=(9.6, 3.6 * len(rows)))
    figure.subplots_adjust(hspace=0.7, wspace=0.28)
    grid = figure.subplots(len(rows), len(QUANTITIES), squeeze=False)
    for (title, quantities), line in zip(rows.items(), grid, strict=True):
        for axes, quantity in zip(line, QUANTITIES, strict=True):
            if quantity in quantities:
                draw(axes, quantities[quantity])
                axes.set(xlabel=X_LABEL, ylabel=quantity)
            else:
                axes.set_axis_off()
        line[0].set_title(title, loc="left", fontweight="bold")
        legend(*line, columns=3)
    return svg(figure)
