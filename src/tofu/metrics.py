"""TOFU's scores as functions of numbers and texts (arXiv 2401.06121, section 2.2; arXiv 2506.12618).

Nothing here touches a model; `src/tofu/evaluation.py` asks one for the numbers. Losses are mean negative
log-likelihoods of an answer's tokens, in nats a token.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np
from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]
from scipy import stats

LARGEST_EXPONENT = 700.0  # exp() of more is no double


def probability(loss: float) -> float:
    """exp(-loss): the geometric mean of the answer tokens' probabilities."""
    return math.exp(-loss)


def truth_ratio(paraphrased_loss: float, perturbed_losses: Sequence[float]) -> float:
    """R = exp(-mean perturbed loss) / exp(-paraphrased loss): above 1 where the wrong answers are likelier.

    Raises:
        ValueError: there is no perturbed loss, or one is NaN.
    """
    losses = np.asarray(perturbed_losses, dtype=np.float64)
    if losses.size == 0 or np.isnan(losses).any() or math.isnan(paraphrased_loss):
        raise ValueError("a truth ratio needs losses that are numbers, and at least one perturbed one")
    return math.exp(min(max(paraphrased_loss - float(losses.mean()), -LARGEST_EXPONENT), LARGEST_EXPONENT))


def forget_truth_ratio(ratios: Sequence[float]) -> float:
    """mean min(R, 1/R): 1 where wrong and right answers are equally likely, as for a model that never knew."""
    return float(np.mean([min(ratio, 1 / ratio) for ratio in ratios]))


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
    return float(stats.ks_2samp(ratios, retain_ratios).pvalue)


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
    # Over the smallest loss, so that not all exponentials vanish together.
    least = min(loss, *perturbed_losses)
    right = math.exp(least - loss)
    return right / (right + sum(math.exp(least - other) for other in perturbed_losses))


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
    """1 - k/len, k the least prefix after which every teacher-forced argmax is the answer's token.

    Args:
        hits: for each answer token whether the argmax was right.
    """
    k = max((index + 1 for index, hit in enumerate(hits) if not hit), default=0)
    return 1 - k / len(hits)


def exact_memorization(hits: Sequence[bool]) -> float:
    """Share of answer tokens that the teacher-forced argmax gets right."""
    return float(np.mean(np.asarray(hits, dtype=bool)))


def zlib_score(loss: float, text: str) -> float:
    """Loss over the length in bytes of the compressed text (arXiv 2012.07805)."""
    return loss / len(zlib.compress(text.encode("utf-8")))


def min_k_score(log_probs: Sequence[float] | np.ndarray, share: float = 0.2) -> float:
    """Minus the mean of the least likely tokens' log-probabilities (Min-K%, arXiv 2310.16789).

    Args:
        log_probs: of the answer's tokens; for Min-K%++ (arXiv 2404.02936) less their mean under the model's own
            distribution, in its standard deviations.
        share: of the tokens, at least one token.
    """
    values = np.sort(np.asarray(log_probs, dtype=np.float64))
    return -float(values[: max(1, int(len(values) * share))].mean())


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
    return ((1 - auc) - (1 - retain_auc)) / (1 - retain_auc) * 100
