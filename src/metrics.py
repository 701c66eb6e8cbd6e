"""Classification accuracy and the SQuAD answer scores, on plain Python and NumPy values.

The answer scores follow SQuAD (Rajpurkar et al. 2016, arXiv 1606.05250, section 6.1) and the evaluation
program published with it, with MeZO's two rules (arXiv 2305.17333): an answer without a common word scores 0,
also where both sides are empty, and a question that cannot be answered counts whole or not at all.
"""

import re
import string
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

ARTICLE = re.compile(r"\b(?:a|an|the)\b")
# First gold answers of questions that have none.
UNANSWERABLE = ("CANNOTANSWER", "no answer")
DROP_PUNCTUATION = str.maketrans("", "", string.punctuation)


def accuracy(predictions: Any, right: Sequence[int | Collection[int]]) -> float:
    """Share of predictions that are right.

    Args:
        predictions: class indices, shape (n,): a list, a NumPy array, or anything with `tolist()`, such as a
            tensor on any device.
        right: for each the index that is right, or all that are.

    Raises:
        ValueError: an input is empty, predictions are not one-dimensional or not integers (logits and NaN are
            refused, not rounded), or the lengths differ.
    """
    predicted = np.asarray(predictions.tolist() if hasattr(predictions, "tolist") else predictions)
    if predicted.ndim != 1:
        raise ValueError(f"predictions must have one dimension, got shape {predicted.shape}")
    if predicted.size == 0 or len(right) == 0:
        raise ValueError("an input is empty: accuracy of nothing is undefined")
    if predicted.dtype.kind not in "iub":
        raise ValueError(f"predictions must hold integers, got {predicted.dtype}")
    if predicted.size != len(right):
        raise ValueError(f"{predicted.size} predictions for {len(right)} labels")
    hits = [p in r if isinstance(r, Collection) else p == r for p, r in zip(predicted, right, strict=True)]
    return float(np.mean(hits))


def normalize_answer(text: str) -> str:
    """Lower-cases, drops ASCII punctuation, drops the words a, an and the, and collapses white space.

    As in the SQuAD evaluation program, punctuation is deleted, not replaced by a space ("well-known" becomes
    "wellknown"), before articles are looked for ("a." is an article), and punctuation outside ASCII stays.
    Text with nothing else in it, such as "The!", becomes the empty string.
    """
    without_punctuation = text.lower().translate(DROP_PUNCTUATION)
    return " ".join(ARTICLE.sub(" ", without_punctuation).split())


def _require_golds(golds: Sequence[str]) -> None:
    if isinstance(golds, str):
        raise ValueError("golds must be a list of answers, got one string")
    if len(golds) == 0:
        raise ValueError('golds is empty; a question without an answer has the gold answer ""')


def _token_f1(prediction: str, gold: str) -> float:
    predicted = normalize_answer(prediction).split()
    expected = normalize_answer(gold).split()
    if not predicted or not expected:
        return 0.0
    shared = (Counter(predicted) & Counter(expected)).total()
    # 2PR / (P + R) with P = shared / len(predicted) and R = shared / len(expected).
    return 2 * shared / (len(predicted) + len(expected))


def f1_score(prediction: str, golds: Sequence[str]) -> float:
    """Largest token F1 between the prediction and any gold answer, in [0, 1].

    Tokens are the words of the normalised answers; a word counts as shared as often as it occurs in both.
    A side that is empty after normalisation scores 0.0. Where the first gold answer is one of `UNANSWERABLE`, 1.0
    is for that answer alone.

    Raises:
        ValueError: `golds` is an empty list or a bare string.
    """
    _require_golds(golds)
    if golds[0] in UNANSWERABLE:
        return float(normalize_answer(prediction) == normalize_answer(golds[0]))
    return max(_token_f1(prediction, gold) for gold in golds)
