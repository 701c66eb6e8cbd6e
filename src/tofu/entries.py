"""Entries of a TOFU log, in open-unlearning's layout and under its names, from one set's losses."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from src.tofu import metrics as scores
from src.tofu.logs import Log
from src.tofu.passes import Scored


@dataclass(frozen=True)
class SetScores:
    """One set after its pass: a `Scored` for each answer, for its paraphrase and for each wrong answer."""

    answers: list[Scored]
    paraphrases: list[Scored]
    perturbed: list[list[Scored]]


def metric(values: Sequence[dict[str, Any]], aggregated: str) -> dict[str, Any]:
    """An entry of the log whose value is the mean of one field over the rows."""
    mean = statistics.fmean(value[aggregated] for value in values)
    return {"agg_value": mean, "value_by_index": {str(index): value for index, value in enumerate(values)}}


def _probability(rows: Sequence[Scored]) -> dict[str, Any]:
    return metric([{"prob": scores.probability(row.loss), "avg_loss": row.loss} for row in rows], "prob")


def likelihoods(name: str, rows: SetScores) -> Log:
    """Probability and truth ratio of one set, under open-unlearning's names."""
    wrong = [[scored.loss for scored in group] for group in rows.perturbed]
    means = [statistics.fmean(losses) for losses in wrong]
    ratios = [scores.truth_ratio(p.loss, losses) for p, losses in zip(rows.paraphrases, wrong, strict=True)]
    aggregate = scores.forget_truth_ratio if name == "forget" else scores.kept_truth_ratio
    log: Log = {
        f"{name}_Q_A_Prob": _probability(rows.answers),
        f"{name}_Q_A_PERT_Prob": metric([{"prob": scores.probability(m), "avg_loss": m} for m in means], "prob"),
        "forget_truth_ratio" if name == "forget" else f"{name}_Truth_Ratio": {
            "agg_value": aggregate(ratios),
            "value_by_index": {str(index): {"score": ratio} for index, ratio in enumerate(ratios)},
        },
    }
    if name in ("forget", "retain"):
        log[f"{name}_Q_A_PARA_Prob"] = _probability(rows.paraphrases)
    else:
        pairs = zip(rows.answers, wrong, strict=True)
        normalised = [{"prob": scores.normalised_probability(a.loss, losses)} for a, losses in pairs]
        log[f"{name}_Q_A_Prob_normalised"] = metric(normalised, "prob")
    return log


def memorization(rows: SetScores) -> Log:
    hits = [scored.hits.tolist() for scored in rows.answers]
    return {
        "extraction_strength": metric([{"score": scores.extraction_strength(h)} for h in hits], "score"),
        "exact_memorization": metric([{"score": scores.exact_memorization(h)} for h in hits], "score"),
    }


def attack(forget: Sequence[float], holdout: Sequence[float]) -> dict[str, Any]:
    sides = {
        name: {"value_by_index": {str(index): {"score": score} for index, score in enumerate(values)}}
        for name, values in (("forget", forget), ("holdout", holdout))
    }
    return {"agg_value": scores.membership_auc(forget, holdout), **sides}
