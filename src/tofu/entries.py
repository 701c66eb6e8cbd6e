"""Entries of a TOFU log, in open-unlearning's layout and under its names, from one set's losses."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from src.tofu import metrics as scores
from src.tofu.logs import Log
from src.tofu.passes import Scored
from src.tofu.rows import Row

PARAPHRASED = ("forget", "retain")  # sets whose rows have a paraphrased answer


@dataclass(frozen=True)
class SetScores:
    """One set after its pass: a `Scored` for each answer, for its paraphrase and for each wrong answer."""

    answers: list[Scored]
    paraphrases: list[Scored]
    perturbed: list[list[Scored]]


def metric(values: Sequence[dict[str, Any]], aggregated: str) -> dict[str, Any]:
    """An entry of the log whose value is the mean of one field over the rows that have it.

    A field that is a list, one value for each wrong answer, counts as its mean.
    """
    present = [value[aggregated] for value in values if value[aggregated] is not None]
    means = [statistics.fmean(value) if isinstance(value, list) else value for value in present]
    mean = statistics.fmean(means) if means else None
    return {"agg_value": mean, "value_by_index": {str(index): value for index, value in enumerate(values)}}


def _probability(rows: Sequence[Scored]) -> dict[str, Any]:
    return metric([{"prob": scores.probability(row.loss), "avg_loss": row.loss} for row in rows], "prob")


def likelihoods(name: str, rows: SetScores) -> Log:
    """Probability and truth ratio of one set, under open-unlearning's names."""
    wrong = [[scored.loss for scored in group] for group in rows.perturbed]
    truths = [(p.loss, losses) for p, losses in zip(rows.paraphrases, wrong, strict=True)]
    ratios = [scores.truth_ratio(*truth) for truth in truths]
    aggregate = scores.forget_truth_ratio if name == "forget" else scores.kept_truth_ratio
    pert = [{"prob": [scores.probability(loss) for loss in losses], "avg_loss": losses} for losses in wrong]
    log: Log = {
        f"{name}_Q_A_Prob": _probability(rows.answers),
        f"{name}_Q_A_PERT_Prob": metric(pert, "prob"),
        "forget_truth_ratio" if name == "forget" else f"{name}_Truth_Ratio": {
            "agg_value": aggregate(ratios),
            "value_by_index": {str(index): {"score": ratio} for index, ratio in enumerate(ratios)},
        },
    }
    if name in PARAPHRASED:
        log[f"{name}_Q_A_PARA_Prob"] = _probability(rows.paraphrases)
    else:
        pairs = zip(rows.answers, wrong, strict=True)
        normalised = [{"prob": scores.normalised_probability(a.loss, losses)} for a, losses in pairs]
        log[f"{name}_Q_A_Prob_normalised"] = metric(normalised, "prob")
    if name == "forget":
        shares = [{"score": scores.share_of_right(*truth)} for truth in truths]
        log["forget_truth_ratio_prob_mean"] = metric(shares, "score")
    return log


def rouge(name: str, rows: Sequence[Row], generations: Sequence[str]) -> Log:
    """ROUGE-L recall of what the model says to each question: of the answer, the paraphrase, the wrong answers."""
    answers = scores.rouge_recalls([row["answer"] for row in rows], generations)
    told = [
        {**value, "input": row["question"], "ground_truth": row["answer"], "generation": text}
        for value, row, text in zip(answers, rows, generations, strict=True)
    ]
    log = {f"{name}_Q_A_ROUGE": metric(told, "rougeL_recall")}
    if name in PARAPHRASED:
        paraphrases = scores.rouge_recalls([row["paraphrased_answer"] for row in rows], generations)
        log[f"{name}_Q_A_PARA_ROUGE"] = metric(paraphrases, "rougeL_recall")
        wrong = []
        for row, text in zip(rows, generations, strict=True):
            found = scores.rouge_recalls(row["perturbed_answer"], [text] * len(row["perturbed_answer"]))
            wrong.append({key: [value[key] for value in found] for key in found[0]})
        log[f"{name}_Q_A_PERT_ROUGE"] = metric(wrong, "rougeL_recall")
    return log


def memorization(rows: SetScores) -> Log:
    hits = [scored.hits[:-1].tolist() for scored in rows.answers]
    return {
        "extraction_strength": metric([{"score": scores.extraction_strength(h)} for h in hits], "score"),
        "exact_memorization": metric([{"score": scores.exact_memorization(h)} for h in hits], "score"),
    }


def attack(forget: Sequence[float], holdout: Sequence[float]) -> dict[str, Any]:
    sides = {
        name: {"value_by_index": {str(index): {"score": score} for index, score in enumerate(values)}}
        for name, values in (("forget", forget), ("holdout", holdout))
    }
    auc = scores.membership_auc(forget, holdout)
    return {"agg_value": auc, "auc": auc, **sides}
