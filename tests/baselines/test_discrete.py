"""The exact samplers: every branch with its rational chance, and many draws against the exact mass."""

from __future__ import annotations

import math
import time
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import chi2, norm

from baselines import discrete
from baselines.discrete import RandomBits, bernoulli_exp, discrete_gaussian, discrete_laplace
from baselines.mechanism import STD
from paczo.randomness import SecretRandom


class Undecided(Exception):
    """A branch asks for one more draw than it was given; with the chances of what may come."""

    def __init__(self, shares):
        self.shares = shares


class Rejected(Exception):
    """A branch starts anew."""


class Script:
    """Draws as written down. A second draw below `begin` is a new round."""

    def __init__(self, draws, begin):
        self.left, self.begin, self.rounds = iter(draws), begin, 0

    def below(self, n):
        self.rounds += n == self.begin
        if self.rounds > 1:
            raise Rejected
        return self.next([Fraction(1, n)] * n)

    def coin(self, chance):
        return bool(self.next([1 - chance, chance]))

    def next(self, shares):
        value = 0 if len(shares) == 1 else next(self.left, None)
        if value is None:
            raise Undecided(shares)
        return value


def branches(sampler, *arguments, follow, begin=None):
    """{value: chance} over the branches that `follow(chance, shares)` lets go on where they ask for a draw."""
    found, waiting = {}, [((), Fraction(1))]
    while waiting:
        draws, chance = waiting.pop()
        try:
            value = sampler(Script(draws, begin), *arguments)
            found[value] = found.get(value, 0) + chance
        except Undecided as more:
            if follow(chance, more.shares):
                waiting += [((*draws, draw), chance * share) for draw, share in enumerate(more.shares)]
        except Rejected:
            pass
    return found


@pytest.mark.parametrize(
    ("numerator", "denominator"), [(0, 1), (1, 1), (1, 2), (2, 3), (3, 8), (1, 7), (3, 2), (7, 3)]
)
def test_the_chance_of_a_coin_is_an_exponential(numerator, denominator):
    found = branches(bernoulli_exp, numerator, denominator, follow=lambda chance, shares: chance > 1e-6)
    lost = float(1 - sum(found.values()))
    assert lost < 1e-3
    lower = float(found.get(True, 0))
    assert lower - 1e-15 <= math.exp(-numerator / denominator) <= lower + lost + 1e-15


@pytest.mark.parametrize(("numerator", "denominator"), [(1, 1), (1, 2), (2, 3), (3, 8)])
def test_the_chance_is_the_rational_partial_sum(numerator, denominator):
    """Failing first at the k-th try has chance x^(k-1)/(k-1)! - x^k/k!; odd k are True. All of k <= 5."""
    found = branches(
        bernoulli_exp, numerator, denominator, follow=lambda chance, shares: len(shares) <= 5 * denominator
    )
    terms = [Fraction(numerator, denominator) ** k / math.factorial(k) for k in range(6)]
    assert found.get(True, 0) == sum(terms[k - 1] - terms[k] for k in (1, 3, 5))
    assert found.get(False, 0) == sum(terms[k - 1] - terms[k] for k in (2, 4))


def mass(weight, reach=400):
    total = math.fsum(weight(y) for y in range(-reach, reach + 1))
    return lambda y: weight(y) / total


@pytest.mark.parametrize(
    ("sampler", "arguments", "weight"),
    [
        (discrete_laplace, (3,), lambda y: math.exp(-abs(y) / 3)),
        (discrete_laplace, (5, 3), lambda y: math.exp(-abs(y) * 3 / 5)),
        (discrete_gaussian, (3,), lambda y: math.exp(-y * y / 18)),
        (discrete_gaussian, (4,), lambda y: math.exp(-y * y / 32)),
    ],
)
def test_the_law_of_the_samplers_is_exact(sampler, arguments, weight, monkeypatch):
    """All branches of the first round down to a chance of 1e-15; a round that rejects is followed by one alike.

    The coins, shown above to be right, are one draw each.
    """
    monkeypatch.setattr(discrete, "bernoulli_exp", lambda source, a, b: source.coin(math.exp(-a / b)))
    found = branches(sampler, *arguments, follow=lambda chance, shares: chance > 1e-15, begin=arguments[0])
    decided, exact = math.fsum(found.values()), mass(weight)
    assert 0.3 < decided < 0.9
    for value in range(-12, 13):
        assert found[value] / decided == pytest.approx(exact(value), rel=1e-11)


def bits(seed, index):
    return RandomBits(SecretRandom.from_seed(seed), "test", index)


def chi_square(sample, probabilities):
    """The chance that a right sampler's counts are further from the expected ones."""
    expected = np.array(probabilities) * sample.sum()
    return float(chi2.sf(((sample - expected) ** 2 / expected).sum(), len(sample) - 1))


@pytest.fixture(scope="module")
def small():
    return np.array([discrete_gaussian(bits(1, index), 5) for index in range(250_000)])


def fit(sample, std):
    """The sizes 0, 1-2, 3-4, ..., 13 and up against the mass of a discrete Gaussian of this std."""
    exact = mass(lambda y: math.exp(-y * y / (2 * std * std)))
    chances = [exact(0), *(2 * (exact(y) + exact(y + 1)) for y in range(1, 13, 2))]
    counts = np.bincount(np.minimum((np.abs(sample) + 1) // 2, 7), minlength=8)
    return chi_square(counts, [*chances, 1 - math.fsum(chances)])


def test_many_draws_fit_the_mass_and_a_percent_more_or_less_std_does_not(small):
    assert fit(small, 5) > 0.01
    for wrong in (4.95, 5.05):
        assert fit(small, wrong) < 1e-3
    signs = small[small != 0] > 0
    assert abs(signs.mean() - 0.5) < 4 * 0.5 / math.sqrt(len(signs))


def moments_fit(sample, variance):
    """Whether mean and variance are within four standard errors of 0 and `variance`."""
    mean_fits = abs(sample.mean()) < 4 * math.sqrt(variance / len(sample))
    return mean_fits and abs(sample.var() / variance - 1) < 4 * math.sqrt(2 / len(sample))


def test_mean_and_variance_of_the_small_gaussian(small):
    weights = [math.exp(-y * y / 50) for y in range(-200, 201)]
    variance = sum(y * y * w for y, w in zip(range(-200, 201), weights, strict=True)) / sum(weights)
    assert moments_fit(small, variance)
    assert not moments_fit(small, 0.97 * variance)
    assert not moments_fit(small, 1.03 * variance)


def test_the_gaussian_as_the_mechanism_draws_it():
    """In 16 cells of equal mass, mean, variance; the low bits are uniform."""
    drawn = [discrete_gaussian(bits(2, index), STD) for index in range(40_000)]
    sample, edges = np.array(drawn, dtype=np.float64) / STD, norm.ppf(np.arange(1, 16) / 16)

    def fits(std):
        return chi_square(np.bincount(np.searchsorted(edges * std, sample), minlength=16), [1 / 16] * 16)

    assert fits(1.0) > 0.01
    for wrong in (0.98, 1.02):
        assert fits(wrong) < 1e-3
    assert moments_fit(sample, 1.0)
    assert chi_square(np.bincount([value % 16 for value in drawn], minlength=16), [1 / 16] * 16) > 0.01


def test_uniform_numbers_of_every_size():
    source = bits(3, 0)
    drawn = [source.below(3) for _ in range(3000)]
    assert chi_square(np.bincount(drawn, minlength=3), [1 / 3] * 3) > 0.01
    wide = [source.below(10**40) for _ in range(2000)]
    assert max(wide) < 10**40
    assert chi_square(np.bincount([value * 10 // 10**40 for value in wide], minlength=10), [0.1] * 10) > 0.01
    assert [source.below(1) for _ in range(5)] == [0] * 5


def test_a_draw_is_a_function_of_key_purpose_and_index():
    def draws(seed, purpose):
        return [discrete_gaussian(RandomBits(SecretRandom.from_seed(seed), purpose, i), STD) for i in range(50)]

    assert draws(1, "a") == draws(1, "a")
    assert len({*draws(1, "a"), *draws(1, "b"), *draws(2, "a")}) == 150
    # Number 2^32 of one purpose would be where the words of index 1 begin.
    with pytest.raises(ValueError, match="index"):
        bits(1, 1 << 32).below(2)
    with pytest.raises(ValueError, match="index"):
        bits(1, -1).below(2)


def test_the_noise_of_64_directions_takes_milliseconds():
    best = math.inf
    for step in range(20):
        begin = time.perf_counter()
        for k in range(64):
            discrete_gaussian(bits(4, 64 * step + k), STD)
        best = min(best, time.perf_counter() - begin)
    assert best < 0.01
