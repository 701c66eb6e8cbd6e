"""The report's drawings, as SVG text that goes into the page."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

from matplotlib.figure import Figure

from paczo.bounds import posterior_success
from paczo.cells import DP_METHODS, Cell
from paczo.report.tables import Matched, attack_success, family, score
from src.pages import INK, legend, svg

Draw = Callable[..., str]


def _figure() -> Figure:
    return Figure(figsize=(4.8, 3.0))


def _scores(cells: list[Cell], matched: Matched, key: Callable[[Cell], Any]) -> dict[Any, list[float]]:
    found: dict[Any, list[float]] = {}
    for cell in cells:
        if cell["run_id"] in matched:
            found.setdefault(key(cell), []).append(score(matched[cell["run_id"]].figures))
    return dict(sorted(found.items()))


def _spread(values: dict[Any, list[float]]) -> list[float]:
    """Standard deviations over seeds; NaN, which is not drawn, where there is one run."""
    return [statistics.stdev(v) if len(v) > 1 else math.nan for v in values.values()]


def _curve(axes: Any, values: dict[Any, list[float]], label: str) -> None:
    means = [statistics.mean(v) for v in values.values()]
    axes.errorbar(list(values), means, yerr=_spread(values), marker="o", capsize=3, label=label)


def plateau(rows: list[Cell], matched: Matched) -> str:
    """Score against nats, with the bound's attack success on a second axis; "" without a run."""
    figure = _figure()
    axes = figure.subplots()
    chosen = [cell for cell in rows if cell["run_id"].startswith("plateau_")]
    drawn = False
    for track in ("lora", "ft"):
        mine = [cell for cell in chosen if cell["track"] == track]
        values = _scores(mine, matched, lambda cell: float(cell["mi"]))
        if values:
            _curve(axes, values, track)
            drawn = True
    if not drawn:
        return ""
    axes.set(xscale="log", xlabel="budget (nats)", ylabel="test accuracy (%)")
    legend(axes)
    nats = sorted({float(cell["mi"]) for cell in chosen})
    second = axes.twinx()
    second.plot(nats, [posterior_success(value) for value in nats], color=INK, linestyle=":", linewidth=1)
    second.grid(False)
    second.spines["right"].set_visible(True)
    second.set(ylabel="attack success at most (dotted)", ylim=(0.45, 1.05))
    return svg(figure)


def _model(cell: Cell) -> str:
    return f"{cell['model'].rpartition('/')[2]} {cell['track']}"


def _series(
    prefix: str, column: str, title: str, *, curve: Callable[[Cell], str] = _model, log: bool = False
) -> Draw:
    """Scores over a numeric column of the table; cells of one `curve` differ in nothing else but the seed."""

    def draw(rows: list[Cell], matched: Matched) -> str:
        figure = _figure()
        axes = figure.subplots()
        drawn = False
        chosen = [cell for cell in rows if cell["run_id"].startswith(prefix)]
        for name in dict.fromkeys(map(curve, chosen)):
            mine = [cell for cell in chosen if curve(cell) == name]
            values = _scores(mine, matched, lambda cell: float(cell[column]))
            if values:
                _curve(axes, values, name)
                drawn = True
        if not drawn:
            return ""
        axes.set(xlabel=title, ylabel="test accuracy (%)")
        if log:
            axes.set_xscale("log")
        legend(axes)
        return svg(figure)

    return draw


def mechanism(rows: list[Cell], matched: Matched) -> str:
    """Bars, one a release and number of steps."""
    chosen = [cell for cell in rows if cell["run_id"].startswith("mech_")]
    values = _scores(chosen, matched, lambda cell: f"{cell['ablation']}, T={cell['steps']}")
    return _bars(values, "test accuracy (%)")


def _bars(values: dict[str, list[float]], label: str, line: float | None = None) -> str:
    if not values:
        return ""
    figure = Figure(figsize=(4.8, 0.5 + 0.32 * len(values)))
    axes = figure.subplots()
    names = [name.replace("$", r"\$") for name in values]
    means = [statistics.mean(v) for v in values.values()]
    axes.barh(names, means, xerr=_spread(values), capsize=3)
    axes.invert_yaxis()  # the first on top
    axes.set(xlabel=label, xlim=(0, 100))
    if line is not None:
        axes.axvline(line, color=INK, linestyle=":", linewidth=1)
    return svg(figure)


def equal_success(rows: list[Cell], matched: Matched) -> str:
    """Score against the attack success that is allowed, one curve a method, and number of steps where DP."""
    figure = _figure()
    axes = figure.subplots()
    chosen = [
        cell
        for cell in rows
        if (cell["task"], cell["model"], cell["track"]) == ("SST2", "facebook/opt-1.3b", "ft")
        and cell["method"] != "non-private"
        and not cell["run_id"].startswith(("kabl_", "zpl"))
    ]
    drawn = False

    def curve(cell: Cell) -> str:
        return f"{cell['method']}, T={cell['steps']}" if cell["method"] in DP_METHODS else family(cell)

    for name in dict.fromkeys(map(curve, chosen)):
        mine = [cell for cell in chosen if curve(cell) == name]
        values = _scores(mine, matched, attack_success)
        if values:
            _curve(axes, values, name)
            drawn = True
    if not drawn:
        return ""
    axes.set(xlabel="attack success at most", ylabel="test accuracy (%)")
    legend(axes)
    return svg(figure)


def learning(measured: dict[str, Any]) -> str:
    """Accuracy of each method on the learning task; the dotted line is the start."""
    values = {row["method"]: [100 * v for v in row["accuracy"]] for row in measured["rows"]}
    return _bars(values, "accuracy (%)", 100 * statistics.mean(measured["before"]))


def ledger_plot(steps: list[dict[str, Any]]) -> str:
    """Noise, spent nats and unanimity over a run's steps. Private."""
    figure = Figure(figsize=(4.8, 6))
    noise, spent, free = figure.subplots(3, 1, sharex=True)
    numbers = [line["step"] for line in steps]
    first = [line["releases"][0] for line in steps]
    sigma = [math.nan if release.get("noise_std") is None else release["noise_std"] for release in first]
    noise.plot(numbers, sigma, ".", markersize=2)
    noise.set(ylabel="sigma of the first release")
    if any(math.isfinite(value) for value in sigma):
        noise.set_yscale("log")
    spent.plot(numbers, [line.get("spent_nats") or 0.0 for line in steps])
    spent.set(ylabel="spent nats")
    shares = [statistics.mean(release["kind"] == "unanimous" for release in line["releases"]) for line in steps]
    running = [statistics.mean(shares[max(0, at - 49) : at + 1]) for at in range(len(shares))]
    free.plot(numbers, running)
    free.set(ylabel="unanimous, last 50 steps", xlabel="step", ylim=(-0.05, 1.05))
    return svg(figure)


PLOTS: dict[str, Draw] = {
    "plateau": plateau,
    "ladder": _series("zplladder_", "steps", "steps"),
    "directions": _series("kabl_", "K", "directions a step"),
    "rank": _series("rankabl_", "lora_r", "LoRA rank"),
    "clip": _series("clipabl_", "clip", "clip", curve=lambda cell: f"{_model(cell)}, {cell['mi']} nats"),
    "learning_rate": _series(
        "zpl_lrsweep_", "lr", "learning rate", curve=lambda cell: f"{_model(cell)}, clip {cell['clip']}", log=True
    ),
    "mechanism": mechanism,
    "equal_success": equal_success,
    "learning": learning,
}
