"""Was a sample among the N at all? What the canaries of the universe audit say, method by method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paczo.report.curves import MOST
from paczo.report.page import Section, Table
from paczo.roc import roc_svg

NOTE = (
    "No budget about the secret subset bounds that. Canaries, sentences with the wrong label, are in or out by a"
    " coin; an attacker tells them apart by how much each one's loss fell. In brackets 95 % intervals; epsilon:"
    " below it no pure DP would let so many guesses be right."
)


def universe_table(published: dict[str, Any]) -> Table:
    """A row a method of `universe_audit.json`."""
    rows = published["universe"]
    lines = [
        (
            row["row"],
            _interval(row["auc"]),
            *(_interval(found) for found in row["tpr"].values()),
            f"{row['epsilon']:.2f}",
            f"{100 * row['accuracy'][0]:.1f} %",
        )
        for row in rows
    ]
    shares = (f"true positives at {float(rate):.0%} false" for rate in (rows[0]["tpr"] if rows else ()))
    return Table(("method", "AUC (95 %)", *shares, "epsilon at least", "accuracy"), lines)


def universe(published: dict[str, Any]) -> Section:
    """The table, and the ROC curves, no more in a drawing than a reader can tell apart."""
    rows = published["universe"]
    drawn = [roc_svg(rows[at : at + MOST]) for at in range(0, len(rows), MOST)]
    return Section("Who was among the N?", NOTE, universe_table(published), drawn)


def _interval(found: Sequence[float]) -> str:
    return f"{found[0]:.3f} ({found[1]:.3f} to {found[2]:.3f})"
