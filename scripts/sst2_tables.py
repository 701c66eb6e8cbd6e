"""Tables of the runs on SST-2 that `scripts.evidence_sst2` publishes."""

from __future__ import annotations

import statistics

from paczo.report.evidence import TUNING_SEED, directions_of, reported
from scripts.tables import Figures, markdown, mean_and_spread, measured_on

# The record of `scripts/bench.sh directions` that says what a step takes.
COSTS = "directions-smollm2-135m-lora-last10-bfloat16-n1000-cpu"


def sst2_evidence(content: dict[str, Figures]) -> str:
    """A row a method on SST-2, in the order in which they were first run."""
    runs = reported(content.get("sst2_evidence", {}).get("runs", []))
    before = {run["seed"]: run["before"]["test"] for run in runs}.values()
    rows = []
    if runs:
        rows.append(("before training", mean_and_spread([one["accuracy"] for one in before]), "", "", "", ""))
    for name in dict.fromkeys(run["row"] for run in runs):
        mine = [run for run in runs if run["row"] == name]
        scores = [run["after"]["test"] for run in mine]
        bound = mine[0]["privacy"].get("posterior_success_bound")
        rows.append(
            (
                name,
                mean_and_spread([one["accuracy"] for one in scores]),
                f"{statistics.mean(one['loss'] for one in scores):.3f}",
                "not accounted" if bound is None else f"{bound:.3f}",
                f"{mine[0]['rate']:g}",
                f"{mine[0]['steps']}, {mine[0]['passes']:.0f}",
            )
        )
    head = ("method", "test accuracy", "test loss", "attack bound", "rate", "steps, passes")
    what = "Dev accuracy, dev loss and share of agreement against forward passes: mean, smallest and largest"
    drawing = f"\n![{what}](result/published/sst2_evidence.svg)\n" if runs else ""
    return markdown(head, rows) + measured_on(runs) + drawing


def sst2_directions(content: dict[str, Figures]) -> str:
    """A row a number of directions at zero nats: the rates that were tried, and what the better one learns."""
    runs = content.get("sst2_evidence", {}).get("runs", [])
    seconds = content.get(COSTS, {}).get("median", {})
    rows, sources = [], []
    for k in sorted({k for run in runs if (k := directions_of(run["row"])) is not None}):
        mine = [run for run in runs if directions_of(run["row"]) == k]
        tried = {run["rate"]: run for run in mine if run["seed"] == TUNING_SEED}
        draws = reported(mine)
        if not draws:
            continue
        shares = [run["agreement"] for run in draws]
        quarter = max(1, draws[0]["steps"] // 4)
        rows.append(
            (
                str(k),
                f"{draws[0]['steps']}, {draws[0]['passes']:.0f}",
                f"{draws[0]['steps'] * seconds[f'exact {k}']:.0f} s" if seconds else "",
                ", ".join(f"{rate:g}: {tried[rate]['after']['dev']['loss']:.3f}" for rate in sorted(tried)),
                f"{statistics.mean(run['after']['dev']['loss'] for run in draws):.3f}",
                mean_and_spread([run["after"]["test"]["accuracy"] for run in draws]),
                f"{100 * _mean_of(shares, 0, quarter):.0f} %",
                f"{100 * _mean_of(shares, -quarter, None):.0f} %",
            )
        )
        sources += draws
    agree = ("agree in the first quarter", "in the last")
    head = ("K", "steps, passes", "one thread", "rate: dev loss, tuning draw", "dev loss", "test accuracy", *agree)
    return markdown(head, rows) + measured_on(sources)


def _mean_of(shares: list[list[float]], begin: int, end: int | None) -> float:
    return statistics.mean(value for one in shares for value in one[begin:end])
