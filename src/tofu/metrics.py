"""TOFU's scores as functions of numbers and texts (arXiv 2401.06121, section 2.2; arXiv 2506.12618).

Nothing here touches a model; `src/tofu/evaluation.py` asks one for the numbers. Losses are mean negative
log-likelihoods of an answer's tokens, in nats a token. Definitions are open-unlearning's down to its `EPSILON`, so
that a collapsed model gets the number it gets there.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np
from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]
from scipy import stats

EPSILON = 1e-10  # in denominators, as in open-unlearning


def probability(loss: float) -> float:
    """exp(-loss): the geometric mean of the answer tokens' probabilities."""
    return math.exp(-loss)


def truth_ratio(paraphrased_loss: float, perturbed_losses: Sequence[float]) -> float:
    """R = exp(-mean perturbed loss) / exp(-paraphrased loss): above 1 where the wrong answers are likelier.

    Raises:
        ValueError: there is no perturbed loss, or one is NaN.
    """
    right, wrong = _right_and_wrong(paraphrased_loss, perturbed_losses)
    return wrong / (right + EPSILON)


def share_of_right(paraphrased_loss: float, perturbed_losses: Sequence[float]) -> float:
    """right/(right + wrong), the same two probabilities: how well the model knows the answer (arXiv 2506.12618).

    open-unlearning's aggregator "prob_mean" is its mean over the forget set. Raises as `truth_ratio`.
    """
    right, wrong = _right_and_wrong(paraphrased_loss, perturbed_losses)
    return right / (right + wrong + EPSILON)


def _right_and_wrong(paraphrased_loss: float, perturbed_losses: Sequence[float]) -> tuple[float, float]:
    losses = np.asarray(perturbed_losses, dtype=np.float64)
    if losses.size == 0 or np.isnan(losses).any() or math.isnan(paraphrased_loss):
        raise ValueError("a truth ratio needs losses that are numbers, and at least one perturbed one")
    return probability(paraphrased_loss), probability(float(losses.mean()))


def forget_truth_ratio(ratios: Sequence[float]) -> float:
    """mean min(R, 1/R): 1 where wrong and right answers are equally likely, as for a model that never knew."""
    return float(np.mean([min(ratio, 1 / (ratio + EPSILON)) for ratio in ratios]))


def kept_truth_ratio(ratios: Sequence[float]) -> float:
    """mean max(0, 1 - R): how much likelier the right answer is than the wrong ones."""
    return float(np.mean([max(0.0, 1 - ratio) for ratio in ratios]))


def forget_quality(ratios: Sequence[float], retain_ratios: Sequence[float]) -> float:
    """p-value of the two-sample Kolmogorov-Smirnov test between two models' truth ratios on the forget set.

    Args:
        ratios: of the unlearned model.
        retain_ratios: of a model that never saw the forget set.
    """
    if len(ratios) == 0 or len(retain_ratios) == 0:
        raise ValueError("forget quality needs truth ratios of both models")
    # As open-unlearning tests them: what is below 1e-26 there is a tie.
    values = (1.0 / (np.asarray(one) + EPSILON) for one in (ratios, retain_ratios))
    return float(stats.ks_2samp(*values).pvalue)


def model_utility(values: Sequence[float]) -> float:
    """Harmonic mean, 0 where a value is 0.

    The nine values are probability, ROUGE and truth ratio on retain set, real authors and world facts.
    """
    if not len(values):
        raise ValueError("model utility needs at least one value")
    if any(math.isnan(value) or value < 0 for value in values):
        raise ValueError(f"model utility takes numbers from 0 on, got {list(values)}")
    return 0.0 if min(values) == 0 else float(len(values) / sum(1 / value for value in values))


def normalised_probability(loss: float, perturbed_losses: Sequence[float]) -> float:
    """p / (p + sum of the perturbed answers' p), p = exp(-loss)."""
    right = probability(loss)
    return right / (right + sum(map(probability, perturbed_losses)) + EPSILON)


def rouge_recalls(answers: Sequence[str], generations: Sequence[str]) -> list[dict[str, float]]:
    """`rouge-score` of each generation against its answer, stemmer on: rougeL_recall, rougeL_f1, rouge1_recall."""
    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
    result = []
    for answer, generation in zip(answers, generations, strict=True):
        scores = scorer.score(answer, generation)
        result.append(
            {
                "rougeL_recall": float(scores["rougeL"].recall),
                "rougeL_f1": float(scores["rougeL"].fmeasure),
                "rouge1_recall": float(scores["rouge1"].recall),
            }
        )
    return result


def extraction_strength(hits: Sequence[bool]) -> float:
    """1 - k/n, k < n the least prefix after which every teacher-forced argmax is the answer's token.

    At least 1/n, as in open-unlearning, where the last token counts as found; 0 for an answer without tokens.

    Args:
        hits: for each of the answer's n tokens, the end-of-sequence token left out, whether the argmax was right.
    """
    if not len(hits):
        return 0.0
    k = max((index + 1 for index, hit in enumerate(hits) if not hit), default=0)
    return 1 - min(k, len(hits) - 1) / len(hits)


def exact_memorization(hits: Sequence[bool]) -> float | None:
    """Share of answer tokens that the teacher-forced argmax gets right; None for an answer without tokens.

    hits: as in `extraction_strength`.
    """
    return float(np.mean(np.asarray(hits, dtype=bool))) if len(hits) else None


def zlib_score(loss: float, text: str) -> float:
    """Loss over the length in bytes of the compressed text (arXiv 2012.07805).

    text: what the scored tokens say, with the space before a first word where the tokenizer puts one.
    """
    return loss / len(zlib.compress(text.encode("utf-8")))


def min_k_score(log_probs: Sequence[float] | np.ndarray, share: float = 0.4) -> float:
    """Minus the mean of the least likely tokens' log-probabilities (Min-K%, arXiv 2310.16789).

    Args:
        log_probs: of the answer's tokens, the end-of-sequence token left out; for Min-K%++ (arXiv 2404.02936) less
            their mean under the model's own distribution, in its standard deviations. 0 where there are none.
        share: of the tokens, at least one token; 0.4 in open-unlearning's TOFU configuration.
    """
    values = np.sort(np.asarray(log_probs, dtype=np.float64))
    return -float(values[: max(1, int(len(values) * share))].mean()) if len(values) else 0.0


def membership_auc(forget_scores: Sequence[float], holdout_scores: Sequence[float]) -> float:
    """P(holdout score > forget score) + P(equal)/2: 1 where the forget set gives itself away by low scores."""
    forget, holdout = len(forget_scores), len(holdout_scores)
    if not forget or not holdout:
        raise ValueError("an AUC needs scores of both sets")
    ranks = stats.rankdata([*holdout_scores, *forget_scores])
    return float((ranks[:holdout].sum() - holdout * (holdout + 1) / 2) / (forget * holdout))


def privleak(auc: float, retain_auc: float) -> float:
    """((1 - AUC) - (1 - AUC_retain)) / (1 - AUC_retain) x 100 (MUSE, arXiv 2407.06460, with Min-K%).

    0 as for the retain model; negative where the forget set still shows, positive where it shows by being
    unlikelier than what was never seen.

    Raises:
        ValueError: the retain model's AUC is 1, which leaves nothing to compare with.
    """
    if retain_auc >= 1:
        raise ValueError("privleak is not defined for a retain model with AUC 1")
    return ((1 - auc) - (1 - retain_auc)) / (1 - retain_auc + EPSILON) * 100


def relative_difference(auc: float, retain_auc: float) -> float:
    """(AUC - AUC_retain) / AUC_retain x 100, open-unlearning's "rel_diff": 0 as for the retain model."""
    return (auc - retain_auc) / (retain_auc + EPSILON) * 100
