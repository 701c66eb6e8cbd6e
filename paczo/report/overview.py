"""What ran, at a glance: the best score at each bound on an attack, with the paper's figure beside it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from paczo.bounds import posterior_success
from paczo.report.evidence import TUNING_SEED
from paczo.report.page import Section, Table
from paczo.report.runs import Run, grouped, natural
from paczo.report.tables import PAPER, mean_and_spread, method, score, setting
from src.pages import legend, svg

NOTE = (
    "Score: accuracy or F1 in percent on the test set, mean and standard deviation over seeds. At each bound the"
    " best of all methods and settings that ran, chosen by that same score: what was reached, not what to expect."
    " Smoke runs are left out. Dotted in the drawing: the best without a bound; hollow: the paper's."
)


@dataclass(frozen=True)
class Entry:
    """Runs that differ in their seeds only.

    Attributes:
        setting: task, model and track.
        method: what they did.
        bound: on a balanced membership attack's success; None where nothing is guaranteed.
        scores: in percent, one a run.
    """

    setting: str
    method: str
    bound: float | None
    scores: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.mean(self.scores)


def of_runs(runs: Iterable[Run]) -> list[Entry]:
    found = []
    for name, members in grouped(run for run in runs if run.metrics is not None).items():
        metrics = members[0].figures
        if not metrics["configuration"].get("smoke"):
            bound = metrics["privacy"].get("posterior_success_bound")
            scores = tuple(score(run.figures) for run in members)
            found.append(Entry(setting(metrics), f"{method(metrics)}: {name}", bound, scores))
    return found


def of_evidence(published: dict[str, Any]) -> list[Entry]:
    """The rows of `sst2_evidence.json`."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for run in published["runs"]:
        if run["seed"] != TUNING_SEED:
            rows.setdefault(run["row"], []).append(run)
    return [
        Entry(
            "SST2 smollm2-135m lora",
            name + (", reproducible secrets" if "reproducible" in mine[0]["privacy"].get("secrets", "") else ""),
            mine[0]["privacy"].get("posterior_success_bound"),
            tuple(100 * run["after"]["test"]["accuracy"] for run in mine),
        )
        for name, mine in rows.items()
    ]


def papers() -> list[Entry]:
    """The paper's figures, where they are known."""
    return [
        Entry(
            f"{task} {model.rpartition('/')[2]} {track}",
            f"{kind} {nats}".strip(),
            posterior_success(float(nats)) if nats else 0.5,
            (mean,),
        )
        for (task, model, track, kind, nats), (mean, _) in PAPER.items()
    ]


def overview(entries: Sequence[Entry]) -> Section:
    """A drawing of all, and a table of the best at each bound."""
    best: dict[tuple[str, float], Entry] = {}
    for entry in entries:
        key = (entry.setting, math.inf if entry.bound is None else round(entry.bound, 4))
        if key not in best or _rank(entry) > _rank(best[key]):
            best[key] = entry
    lines = [
        (
            where,
            "no bound" if bound == math.inf else f"{bound:.4f}",
            mean_and_spread(entry.scores),
            str(len(entry.scores)),
            _paper(where, bound),
            entry.method,
        )
        for (where, bound), entry in sorted(best.items(), key=lambda item: (natural(item[0][0]), item[0][1]))
    ]
    head = ("task and model", "attack success at most", "best score", "n", "paper", "of")
    drawing = overview_svg(entries)
    return Section(
        "Best score against the bound on an attack", NOTE, Table(head, lines), [drawing] if drawing else []
    )


def _rank(entry: Entry) -> float:
    return entry.mean if math.isfinite(entry.mean) else -math.inf


def _paper(where: str, bound: float) -> str:
    found = [one for one in papers() if one.setting == where and abs((one.bound or 0.0) - bound) < 1e-4]
    return "; ".join(f"{one.mean:.2f} ({one.method})" for one in found)


def overview_svg(entries: Sequence[Entry]) -> str:
    """Every entry at its bound, one colour a task and model."""
    drawn = [entry for entry in entries if math.isfinite(entry.mean)]
    if not drawn:
        return ""
    figure = Figure(figsize=(4.8, 3.2))
    axes = figure.subplots()
    for at, where in enumerate(sorted({entry.setting for entry in drawn}, key=natural)):
        color = f"C{at % 10}"
        mine = [entry for entry in drawn if entry.setting == where]
        bounded = sorted((entry.bound, entry.mean, _spread(entry)) for entry in mine if entry.bound is not None)
        label = where.replace("$", r"\$")
        x, y, error = zip(*bounded, strict=True) if bounded else ((), (), ())
        axes.errorbar(x, y, yerr=error, fmt="o", color=color, capsize=2, label=label)
        free = [entry.mean for entry in mine if entry.bound is None]
        if free:
            axes.axhline(max(free), color=color, linestyle=":", linewidth=1)
        for paper in (one for one in papers() if one.setting == where):
            axes.plot([paper.bound or 0.5], [paper.mean], "D", color=color, markerfacecolor="none", markersize=7)
    axes.set(xlabel="attack success at most", ylabel="test score (%)", xlim=(0.48, 1.02))
    legend(axes)
    return svg(figure)


def _spread(entry: Entry) -> float:
    return statistics.stdev(entry.scores) if len(entry.scores) > 1 else 0.0
