import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from src.metrics import accuracy, f1_score, normalize_answer

# Few different words, so that drawn answers often share some of them.
ANSWERS = st.one_of(
    st.text(),
    st.lists(st.sampled_from(["the", "A", "cat", "Cat,", "sat", "über", "!", ""]), max_size=6).map(" ".join),
)


class HasToList:
    """Stands in for a tensor, which NumPy may be unable to read directly."""

    def __init__(self, values: list[int]) -> None:
        self.values = values

    def tolist(self) -> list[int]:
        return self.values


@pytest.mark.parametrize(
    ("predictions", "labels", "expected"),
    [
        ([1, 0, 1, 1], [1, 1, 1, 0], 0.5),
        ([0], [0], 1.0),
        ([0, 1], [1, 0], 0.0),
        ([2, 2, 5], [2, 3, 5], 2 / 3),
        (np.array([1, 0], dtype=np.int8), [1, 1], 0.5),
        (HasToList([1, 1, 1, 0]), np.array([1, 1, 1, 1]), 0.75),
        ([2, 0, 1, 1], [{1, 2}, [1, 2], 1, frozenset({0})], 0.5),
        ((True, False), (1, 1), 0.5),
    ],
)
def test_accuracy(predictions, labels, expected):
    result = accuracy(predictions, labels)
    assert type(result) is float
    assert result == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("predictions", "labels", "message"),
    [
        ([], [], "empty"),
        ([], [1], "empty"),
        ([1], [], "empty"),
        ([1], [1, 1], "1 predictions for 2 labels"),
        ([[1, 0]], [[1, 0]], "one dimension"),
        (1, 1, "one dimension"),
        ([0.9, 0.1], [1, 0], "integers"),
        ([float("nan")], [0], "integers"),
        (["1"], [1], "integers"),
        ([None], [1], "integers"),
    ],
)
def test_accuracy_refuses(predictions, labels, message):
    with pytest.raises(ValueError, match=message):
        accuracy(predictions, labels)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Quick, brown FOX!", "quick brown fox"),
        ("  a \t cat\nand  an owl ", "cat and owl"),
        ("theatre another banana", "theatre another banana"),
        ("well-known", "wellknown"),
        ("U.S.A.", "usa"),
        ("(a.)", ""),
        ("the an a", ""),
        ("", ""),
        ("$1,000", "1000"),
        ("Ünïcode CAFÉ", "ünïcode café"),
        ("straße\u00a0東京", "straße 東京"),
        ("«left» … right", "«left» … right"),
        ("left…a…right", "left… …right"),
    ],
)
def test_normalize_answer(text, expected):
    assert normalize_answer(text) == expected


@pytest.mark.parametrize(
    ("prediction", "golds", "expected"),
    [
        ("The cat", ["cat"], Fraction(1)),
        # precision 2/3, recall 2/4
        ("black cat sat", ["the cat sat down quietly"], Fraction(4, 7)),
        # "cat" is shared twice, not three times: precision 2/3, recall 2/2
        ("cat cat cat", ["cat cat"], Fraction(4, 5)),
        ("cat", ["cat cat cat"], Fraction(1, 2)),
        ("to be or not to be", ["to be to be"], Fraction(4, 5)),
        ("dog", ["cat"], Fraction(0)),
        ("sat cat", ["cat sat"], Fraction(1)),
        # over the gold answers: 0, then 2/3, then 1/2
        ("new york", ["boston", "York", "york in england"], Fraction(2, 3)),
        ("CAFÉ noir", ["café"], Fraction(2, 3)),
        ("東京 都", ["東京"], Fraction(2, 3)),
        ("", [""], Fraction(0)),
        ("the", ["a!"], Fraction(0)),
        ("", ["cat"], Fraction(0)),
        ("cat", [""], Fraction(0)),
        ("", ["cat", ""], Fraction(0)),
        ("No answer.", ["no answer"], Fraction(1)),
        ("no", ["no answer", "no"], Fraction(0)),
        ("cannotanswer", ["CANNOTANSWER"], Fraction(1)),
        ("no", ["no", "no answer"], Fraction(1)),
    ],
)
def test_f1_score(prediction, golds, expected):
    result = f1_score(prediction, golds)
    assert type(result) is float
    assert result == pytest.approx(float(expected), abs=1e-15)


@pytest.mark.parametrize("golds", [[], (), "cat", ""])
def test_missing_or_bare_golds_are_refused(golds):
    with pytest.raises(ValueError, match="golds"):
        f1_score("cat", golds)


@given(ANSWERS, ANSWERS)
def test_f1_is_symmetric_and_within_bounds(first, second):
    score = f1_score(first, [second])
    assert 0.0 <= score <= 1.0
    assert score == f1_score(second, [first])


@given(ANSWERS.filter(normalize_answer))
def test_f1_is_one_on_answers_that_differ_only_in_what_normalisation_drops(answer):
    assert f1_score(answer, [answer]) == 1.0
    assert f1_score(f"The  {answer} !", [answer]) == 1.0


@given(ANSWERS, st.lists(ANSWERS, min_size=1, max_size=4))
def test_the_best_gold_counts(prediction, golds):
    assert f1_score(prediction, golds) == max(f1_score(prediction, [gold]) for gold in golds)


@given(ANSWERS, ANSWERS)
def test_f1_against_matching_words_one_by_one(prediction, gold):
    """Oracle: crosses off each gold word as a predicted word uses it; harmonic mean in exact fractions."""
    predicted, unused = normalize_answer(prediction).split(), normalize_answer(gold).split()
    if not predicted or not unused:
        return
    gold_count = len(unused)
    shared = 0
    for word in predicted:
        if word in unused:
            unused.remove(word)
            shared += 1
    expected = Fraction(0)
    if shared:
        precision, recall = Fraction(shared, len(predicted)), Fraction(shared, gold_count)
        expected = 2 * precision * recall / (precision + recall)
    assert f1_score(prediction, [gold]) == pytest.approx(float(expected), abs=1e-15)


def test_metrics_do_not_import_torch():
    command = "import sys, src.metrics; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", command], check=True)
