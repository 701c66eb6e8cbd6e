"""The attacks on what was forgotten: rounding against rounding by hand, curves of known area, bad arguments."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pum_models import tiny
from scipy import stats

from src.tofu.attacks import attack_rows, main, verdict
from src.tofu.quantize import levels, linear_weights, quantize_, undone_share
from src.tofu.relearn import METRICS, area_between, known_and_others, lower_bound
from src.tofu.rows import Row
from src.utils import UserError


def by_hand(weight: list[list[float]], bits: int) -> list[list[float]]:
    """Every row to the nearest multiple of its own step, one number after the other."""
    rounded = []
    for row in weight:
        step = max(abs(value) for value in row) / (2 ** (bits - 1) - 1)
        rounded.append([round(value / step) * step if step else 0.0 for value in row])
    return rounded


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_rounding_is_that_by_hand(model_type: str, bits: int) -> None:
    """GPT-2's layers hold their weights transposed. Embeddings, norms and head stay."""
    before = tiny(model_type)
    model = copy.deepcopy(before)
    quantize_(model, bits)
    others = {name: weight for name, weight, _ in linear_weights(before)}
    for name, weight, out in linear_weights(model):
        rows, result = (w.detach() if out == 0 else w.detach().T for w in (others[name], weight))
        expected = torch.tensor(by_hand(rows.tolist(), bits))
        assert float((result - expected).abs().max()) < 1e-6
        level, _ = levels(others[name].detach(), bits, out=out)
        assert float(level.abs().max()) == 2 ** (bits - 1) - 1
    rounded = {f"{name}.weight" for name in others}
    after = dict(model.named_parameters())
    assert rounded
    assert rounded < after.keys()
    for name, parameter in before.named_parameters():
        assert torch.equal(parameter, after[name]) == (name not in rounded)


def test_a_channel_of_zeros_stays() -> None:
    level, step = levels(torch.tensor([[0.0, 0.0], [1.0, -0.4]]), 4)
    assert torch.allclose(level * step, torch.tensor([[0.0, 0.0], [1.0, -3 / 7]]), atol=1e-6)


def test_small_updates_are_undone_and_large_ones_are_not() -> None:
    """From weights in the middle of their levels; a channel's largest stays, so that its step does."""
    before = tiny("llama")
    quantize_(before, 4)
    for moved, share in ((0.0, 0.0), (0.3, 1.0), (0.7, 0.0)):
        model = copy.deepcopy(before)
        for _, weight, out in linear_weights(model):
            level, step = levels(weight.detach(), 4, out=out)
            inner = level.abs() < 6
            weight.data += moved * step * inner
        assert undone_share(model, before, 4) == share


def test_rows_of_the_attacker() -> None:
    rows: list[Row] = [{"question": str(i), "answer": "a"} for i in range(21)]
    known, others = known_and_others(rows, 0.1, 3)
    assert len(known) == 3
    assert len(others) == 18
    assert sorted([*known, *others], key=rows.index) == rows
    assert (known, others) == known_and_others(rows, 0.1, 3)
    assert known != known_and_others(rows, 0.1, 4)[0]
    assert [len(part) for part in known_and_others(rows[:2], 0.9, 0)] == [1, 1]


def curve(*means: float, rows: int = 30) -> dict[str, list[Any]]:
    spread = np.linspace(-0.01, 0.01, rows)
    values = [(mean + spread).tolist() for mean in means]
    return {"steps": [10 * i for i in range(len(means))], "prob": values, "rouge": values}


def test_area_is_that_of_the_trapezoids() -> None:
    found = area_between(curve(0.1, 0.5, 0.9), curve(0.1, 0.1, 0.1), "prob")
    assert found["area"] == pytest.approx(0.4)  # (0/2 + 0.4 + 0.8/2) * 10 over 20 steps
    assert (found["start"], found["end"], found["retain_end"]) == pytest.approx((0.1, 0.9, 0.1))
    values = np.random.default_rng(0).normal(0.2, 1.0, 40)
    interval = stats.t.interval(0.9, 39, values.mean(), stats.sem(values))
    assert lower_bound(values) == pytest.approx(interval[0])
    assert lower_bound([0.25]) == 0.25


@pytest.mark.parametrize(
    ("means", "back", "words"),
    [
        ((0.1, 0.5, 0.9), -0.1, "suppressed: comes back by relearning on forget rows"),
        ((0.1, 0.1, 0.1), 0.2, "suppressed: comes back by int4"),
        ((0.1, 0.05, 0.1), -0.1, "lasts"),
        ((0.5, 0.5, 0.5), -0.1, "shows"),
    ],
)
def test_what_is_said_of_a_model(means: tuple[float, ...], back: float, words: str, tmp_path: Path) -> None:
    assert verdict(tmp_path) is None
    assert attack_rows(tmp_path) == {}
    retain, flat = curve(0.1, 0.11, 0.12), curve(0.1, 0.1, 0.1)
    curves = {"forget": curve(*means), "unrelated": flat}
    against = {
        "forget": {metric: area_between(curves["forget"], retain, metric) for metric in METRICS},
        "unrelated": {metric: area_between(flat, retain, metric) for metric in METRICS},
    }
    (tmp_path / "RELEARN.json").write_text(json.dumps({"curves": curves, "against": against}))
    scores = {"forget_Q_A_Prob": 0.1, "model_utility": 0.5, "forget_back": -0.1}
    quantized = {"none": scores, "int8": scores, "int4": {**scores, "forget_back": back}}
    (tmp_path / "QUANTIZE.json").write_text(json.dumps(quantized))
    assert verdict(tmp_path) == words
    rows = attack_rows(tmp_path)
    assert rows["after forget rows"] == pytest.approx(means[-1])
    assert rows["forget probability, int4"] == 0.1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["melt", "x"], "unknown command 'melt'"),
        (["relearn"], "relearn needs the folder of a model"),
        (["quantize", "nowhere"], "nowhere is no folder with a model"),
        (["relearn", ".", "--share", "1"], "share must lie strictly between 0 and 1"),
        (["relearn", ".", "--share", "nan"], "share must lie strictly between 0 and 1"),
        (["relearn", ".", "--steps", "0"], "steps must be above 0"),
        (["relearn", ".", "--learning_rate", "nan"], "learning_rate must be above 0"),
        (["relearn", "."], "give --retain_model"),
    ],
)
def test_bad_arguments(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        main(words)
    assert "\n" not in str(caught.value)
