"""The harmonic mean against storing everything; clipping; what a broken update does."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pum.aggregate import HarmonicMean, clip_factors, l2_norm, scaled
from src.utils import UserError

Update = dict[str, Tensor]


def updates(count: int, dtype: torch.dtype = torch.float32) -> list[Update]:
    gen = torch.Generator().manual_seed(0)
    return [
        {"a": torch.randn(30, 20, generator=gen).to(dtype), "b": torch.randn(7, generator=gen).to(dtype)}
        for _ in range(count)
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("copies", [1, 2, 16])
def test_streaming_equals_storing_all(copies: int, dtype: torch.dtype) -> None:
    stored = updates(copies, dtype)
    alphas = [1.0 + 0.03 * k for k in range(copies)]
    mean = HarmonicMean(eta=0.7)
    for update, alpha in zip(stored, alphas, strict=True):
        mean.add(update, alpha)
    merged = mean.result()
    weights = torch.tensor([1 / alpha for alpha in alphas], dtype=torch.float64)
    for name in ("a", "b"):
        table = torch.stack([update[name].double() for update in stored])
        exact = 0.7 * torch.tensordot(weights, table, dims=1) / weights.sum()
        assert merged[name].dtype == torch.float32
        torch.testing.assert_close(merged[name].double(), exact, rtol=0, atol=1e-6)


def test_updates_are_left_alone_and_the_mean_is_used_up() -> None:
    update, *_ = updates(1)
    before = {name: tensor.clone() for name, tensor in update.items()}
    mean = HarmonicMean()
    mean.add(update, 1.0)
    mean.add(update, 1.5)
    for name, tensor in mean.result().items():
        torch.testing.assert_close(tensor, before[name])
        assert torch.equal(update[name], before[name])
    with pytest.raises(ValueError, match="no update"):
        mean.result()


def test_broken_updates_change_nothing() -> None:
    good, other = updates(2)
    mean = HarmonicMean()
    mean.add(good, 1.2)
    broken: list[tuple[Update, str]] = [
        ({**other, "b": torch.full((7,), math.nan)}, "b holds NaN"),
        ({**other, "a": torch.full((30, 20), math.inf)}, "a holds NaN or infinity"),
        ({**other, "a": torch.zeros(20, 30)}, "shape"),
        ({"a": other["a"]}, "other parameters.* b"),
        ({**other, "c": torch.zeros(1)}, "other parameters.* c"),
    ]
    for update, message in broken:
        with pytest.raises(UserError, match=message) as caught:
            mean.add(update, 1.2)
        assert "\n" not in str(caught.value)
    for alpha in (0.99, 0.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="alpha"):
            mean.add(other, alpha)
    merged = mean.result()
    for name, tensor in good.items():
        torch.testing.assert_close(merged[name], tensor)
    with pytest.raises(ValueError, match="eta"):
        HarmonicMean(eta=math.nan)
    with pytest.raises(UserError, match="NaN"):
        HarmonicMean().add({"a": torch.tensor([math.nan])}, 1.0)


def clip_update(update: Update, group_of: Callable[[str], int | None], **limits: Any) -> None:
    for name, factors in clip_factors(update, group_of, **limits).items():
        update[name] = scaled(update[name], factors)


def test_clipping_per_layer_then_all() -> None:
    update = {"x.0.w": torch.full((4,), 3.0), "x.1.w": torch.full((4,), 0.1), "head": torch.full((4,), 5.0)}
    layers = {"x.0.w": 0, "x.1.w": 1, "head": None}
    clip_update(update, layers.get, per_layer=[1.0, 1.0])
    assert l2_norm([update["x.0.w"]]) == pytest.approx(1.0)
    assert torch.equal(update["x.1.w"], torch.full((4,), 0.1))
    assert torch.equal(update["head"], torch.full((4,), 5.0))
    clip_update(update, layers.get, total=2.0)
    assert l2_norm(list(update.values())) == pytest.approx(2.0)
    before = {name: tensor.clone() for name, tensor in update.items()}
    clip_update(update, layers.get, per_layer=[9.0, 9.0], total=9.0)
    clip_update(update, layers.get)
    assert all(torch.equal(update[name], before[name]) for name in update)
