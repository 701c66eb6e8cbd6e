"""What each run guarantees, and for the data's owner what was really learned from it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from paczo.report.page import Section, Table
from paczo.report.plots import ledger_plot
from paczo.report.runs import Run
from paczo.report.tables import method
from src.record.chain import read_records
from src.utils import UserError

NOTE = (
    "Bounds on what the strongest adversary learns, on average over the runs that could have been: success of a"
    " membership attack (over its prior), true positives at a false-positive rate (FPR), and naming the secret"
    " subset S*."
)
PRIVATE_NOTE = (
    "Beside each bound what an adversary who knows the data could really tell from this run: the mean posterior of"
    " his guesses whether a sample is in S* and the share of them that are right; the posterior of the subset he"
    " would name. One run may be above a bound, which is on the mean."
)
HEAD = (
    *("run", "mechanism", "nats: budget", "attack success at most", "prior"),
    *("TPR at FPR 0", "TPR at FPR 0.001", "naming S* at most"),
)
MANY = 12  # runs beyond which the table is folded


def privacy(runs: Sequence[Run]) -> Section:
    """The bounds of each run that has any."""
    lines = [_bounds(run) for run in runs if _is_bounded(run)]
    return Section("Privacy of each run", NOTE, Table(HEAD, lines), folded=len(lines) > MANY)


def _is_bounded(run: Run) -> bool:
    return run.metrics is not None and run.metrics["privacy"].get("posterior_success_bound") is not None


def _bounds(run: Run) -> tuple[str, ...]:
    found = run.figures["privacy"]
    rates = found.get("tpr_bounds", {})
    reproducible = ", reproducible secrets" if "reproducible" in found.get("secrets", "") else ""
    return (
        run.name,
        method(run.figures) + reproducible,
        _text(found.get("budget_nats"), "g"),
        _text(found["posterior_success_bound"]),
        _text(found.get("prior_success")),
        _text(rates.get("0")),
        _text(rates.get("0.001")),
        _text(found.get("naming_success_bound")),
    )


def _text(value: float | None, digits: str = ".4f") -> str:
    return "" if value is None else format(value, digits)


def private_sections(runs: Iterable[Run]) -> list[Section]:
    """For the data's owner: the exact posteriors, and noise, spent nats and unanimity of each run with a ledger.

    Raises:
        UserError: a run's private files are damaged.
    """
    runs = list(runs)
    lines = [(*_bounds(run), *_exact(run)) for run in runs if _is_bounded(run)]
    head = (*HEAD, "members: mean posterior", "members: right", "S*: posterior", "S*: right")
    ledgers = []
    for run in runs:
        path = run.folder / "private" / "ledger.jsonl"
        if run.metrics is not None and path.exists():
            steps = [line for line in read_records(path)[1:] if "releases" in line]
            ledgers.append(Section(run.name, drawings=[ledger_plot(steps)] if steps else []))
    return [Section("Privacy of each run", PRIVATE_NOTE, Table(head, lines)), Section("Ledgers", parts=ledgers)]


def _exact(run: Run) -> tuple[str, ...]:
    path = run.folder / "private" / "attack.json"
    if not path.exists():
        return ("", "", "", "")
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        member, naming = found["member"], found["naming"]
        values = (member["mean_posterior"], member["right"], naming["posterior"], naming["right"])
        return tuple(_text(float(value)) for value in values)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a run's exact attack: {type(error).__name__} {error}") from error
