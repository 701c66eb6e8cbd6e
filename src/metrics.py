"""Classification accuracy and the SQuAD answer scores, on plain Python and NumPy values.

The answer scores follow SQuAD (Rajpurkar et al. 2016, arXiv 1606.05250, section 6.1) and the evaluation
program published with it; the rule for empty answers is that of SQuAD 2.0 (Rajpurkar et al. 2018,
arXiv 1806.03822), since the 2016 data has no empty answers.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

ARTICLE = re.compile(r"\b(?:a|an|the)\b")
DROP_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _class_indices(values: Any, name: str) -> np.ndarray:
    array = np.asarray(values.tolist() if hasattr(values, "tolist") else values)
    if array.ndim != 1:
        raise ValueError(f"{name} must have one dimension, got shape {array.shape}")
    if array.size == 0:
        raise ValueError(f"{name} is empty: accuracy of nothing is undefined")
    if array.dtype.kind not in "iub":
        raise ValueError(f"{name} must hold integers, got {array.dtype}")
    return array


def accuracy(predictions: Any, labels: Any) -> float:
    """Fraction of positions at which the predicted class equals the label.

    Args:
        predictions: class indices, shape (n,): a list, a NumPy array, or anything with `tolist()`, such as a
            tensor on any device.
        labels: likewise, of the same length.

    Raises:
        ValueError: an input is empty, not one-dimensional or not of integers (logits and NaN are refused,
            not rounded), or the lengths differ.
    """
    predicted = _class_indices(predictions, "predictions")
    expected = _class_indices(labels, "labels")
    if predicted.shape != expected.shape:
        raise ValueError(f"{predicted.size} predictions for {expected.size} labels")
    return float(np.mean(predicted == expected))


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
        return float(predicted == expected)
    shared = (Counter(predicted) & Counter(expected)).total()
    # 2PR / (P + R) with P = shared / len(predicted) and R = shared / len(expected).
    return 2 * shared / (len(predicted) + len(expected))


def f1_score(prediction: str, golds: Sequence[str]) -> float:
    """Largest token F1 between the prediction and any gold answer, in [0, 1].

    Tokens are the words of the normalised answers; a word counts as shared as often as it occurs in both.
    Both empty after normalisation scores 1.0, exactly one empty 0.0.

    Raises:
        ValueError: `golds` is an empty list or a bare string.
    """
    _require_golds(golds)
    return max(_token_f1(prediction, gold) for gold in golds)


def exact_match(prediction: str, golds: Sequence[str]) -> float:
    """1.0 if the normalised prediction equals any normalised gold answer, else 0.0.

    An empty prediction matches a gold answer that is empty after normalisation.

    Raises:
        ValueError: `golds` is an empty list or a bare string.
    """
    _require_golds(golds)
    return float(any(normalize_answer(prediction) == normalize_answer(gold) for gold in golds))
