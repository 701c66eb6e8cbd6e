"""Zero-sum noise: its sum, its law (a test that rejects 5 %), its stream, and where secrets come from."""

from __future__ import annotations

import math
from collections import defaultdict

import numpy as np
import pytest
import torch
from torch import Tensor

from pum.noise import SecretSource, ZeroSumStream, draw_alphas, jitter_noise, zero_sum_noise


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("copies", [2, 3, 8, 16])
def test_the_sum_is_zero_to_rounding(copies: int) -> None:
    noise = zero_sum_noise((40, 50), copies, 0.7, generator())
    assert noise.shape == (copies, 40, 50)
    assert noise.dtype == torch.float32
    assert float(noise.sum(0).abs().max()) < 1e-6 * copies


def law_fits(noise: Tensor, std: float) -> bool:
    """Whether every copy's variance is std^2 and every pair's covariance -std^2/(m-1), within 2 %.

    The sampling error of a variance of 200 000 draws is 0.3 %.
    """
    m = len(noise)
    covariance = np.cov(noise.reshape(m, -1).numpy())
    expected = std**2 * (m * np.eye(m) - 1) / (m - 1)
    return bool(np.abs(covariance - expected).max() < 0.02 * std**2)


@pytest.mark.parametrize("copies", [2, 3, 4, 8])
def test_the_law_and_that_five_percent_are_rejected(copies: int) -> None:
    noise = zero_sum_noise((200_000,), copies, 0.3, generator(copies))
    assert law_fits(noise, 0.3)
    for wrong in (0.95, 1.05):
        assert not law_fits(wrong * noise, 0.3)
    independent = torch.randn(copies, 200_000, generator=generator()) * 0.3
    assert not law_fits(independent, 0.3)
    # The definition, drawn another way.
    z = torch.randn(copies, 200_000, generator=generator(9)) * 0.3
    assert law_fits(math.sqrt(copies / (copies - 1)) * (z - z.mean(0)), 0.3)


def test_the_noise_is_gaussian() -> None:
    noise = zero_sum_noise((200_000,), 3, 1.0, generator(4))
    for copy in noise.numpy():
        assert abs(np.mean(copy**4) - 3.0) < 0.1
        assert abs(np.mean(copy**3)) < 0.05


def test_one_copy_has_no_zero_sum_noise() -> None:
    with pytest.raises(ValueError, match="one copy has no zero-sum noise"):
        zero_sum_noise((3,), 1, 0.1, generator())
    assert not zero_sum_noise((3,), 1, 0.0, generator()).any()
    with pytest.raises(ValueError, match="copies"):
        ZeroSumStream(0)
    for std in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="standard deviation"):
            zero_sum_noise((3,), 2, std, generator())


def test_the_stream_holds_no_tensor_of_a_parameters_size_and_ends_after_m_draws() -> None:
    stream, gen, totals = ZeroSumStream(5), generator(), defaultdict(lambda: torch.zeros(400, 30))
    for _ in range(5):
        for name, std in (("a", 0.5), ("b", 2.0)):
            totals[name] += stream.draw(name, (400, 30), std, gen)
    held = [key for drawn in stream._drawn.values() for key, _ in drawn]
    assert [len(key) for key in held] == [32] * 10
    assert max(float(total.abs().max()) for total in totals.values()) < 1e-5
    with pytest.raises(ValueError, match="all 5 draws"):
        stream.draw("a", (400, 30), 0.5, gen)


def test_a_returned_draw_is_the_caller_s_own() -> None:
    stream, gen = ZeroSumStream(3), generator()
    first = stream.draw("a", (4,), 1.0, gen)
    kept = first.clone()
    first.mul_(100.0)
    rest = stream.draw("a", (4,), 1.0, gen) + stream.draw("a", (4,), 1.0, gen)
    torch.testing.assert_close(kept + rest, torch.zeros(4), atol=1e-6, rtol=0)


def test_alphas_and_jitter() -> None:
    alphas = np.array(draw_alphas(20_000, 1.0, 1.5, generator()))
    assert alphas.min() >= 1.0
    assert alphas.max() <= 1.5
    assert abs(alphas.mean() - 1.25) < 0.005
    assert abs(alphas.var() - 0.25 / 12) < 0.001
    assert draw_alphas(2, 1.0, 1.0, generator()) == [1.0, 1.0]
    for low, high in ((0.9, 1.5), (1.5, 1.2), (1.0, math.inf), (math.nan, 2.0)):
        with pytest.raises(ValueError, match="alpha_min"):
            draw_alphas(2, low, high, generator())
    assert float(jitter_noise((100_000,), 1e-3, generator()).std()) == pytest.approx(1e-3, rel=0.01)


def test_secrets_come_from_entropy_unless_a_seed_is_given() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    entropy = SecretSource()
    draws = [torch.randn(4, generator=source.generator("noise", 0, 0)) for source in (entropy, SecretSource())]
    assert not torch.equal(*draws)
    again = torch.randn(4, generator=SecretSource(entropy.key).generator("noise", 0, 0))
    assert torch.equal(again, draws[0])  # a pure function of the key
    assert entropy.key is not None
    assert len(entropy.key) == 32
    assert entropy.label == "operating-system entropy"
    assert not entropy.reproducible
    seeded = SecretSource(7)
    assert seeded.label == "reproducible secrets, not private"
    assert seeded.reproducible
    first, again, other, another = (
        torch.randn(4, generator=SecretSource(seed).generator(*purpose))
        for seed, purpose in ((7, ("noise", 0)), (7, ("noise", 0)), (7, ("noise", 1)), (8, ("noise", 0)))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, another)
    assert torch.equal(torch.get_rng_state(), before)


def test_generators_hold_more_than_a_32_bit_seed() -> None:
    """torch's own seeding on the CPU would fill the state from 32 bits."""
    by_seed = torch.Generator().manual_seed(2**40 + 5)
    assert torch.equal(torch.randn(9, generator=by_seed), torch.randn(9, generator=generator(5)))
    state = SecretSource().generator("noise").get_state()[24 : 24 + 8 * 624].view(torch.int64)
    assert len(set(state.tolist())) > 600
    assert int(state.max()) > 2**31
    sample = torch.rand(200_000, generator=SecretSource().generator("noise"))
    assert abs(float(sample.mean()) - 0.5) < 0.005


def test_draws_after_skipped_ones_are_as_if_none_had_been() -> None:
    whole, skipping = ZeroSumStream(4), ZeroSumStream(4)
    for k in range(4):
        expected = whole.draw("w", (5,), 0.3, generator(k))
        if k in (0, 2):
            skipping.skip("w", 0.3, generator(k))
        else:
            assert torch.equal(skipping.draw("w", (5,), 0.3, generator(k)), expected)
