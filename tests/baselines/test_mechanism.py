"""Poisson batches, clipping on the grid, and what the grid costs beside the continuous Gaussian."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import norm

from baselines.accounting import epsilon_spent
from baselines.mechanism import STD, Grid, cost_of_the_grid, noisy_count, poisson_batch, release
from paczo.randomness import SecretRandom


def test_the_total_bounds_each_samples_part():
    rng = np.random.default_rng(0)
    derivatives = (rng.standard_normal((4, 50)) * rng.exponential(20, 50)).astype(np.float32)
    grid = Grid(2.0, 1.5)

    def total(part):
        return np.array(grid.total(part), dtype=np.float64) * grid.grain

    columns = [total(derivatives[:, [i]]) for i in range(50)]
    for i, column in enumerate(columns):
        plain = derivatives[:, i].astype(float) / 4
        norm = np.linalg.norm(plain)
        assert np.linalg.norm(column) == pytest.approx(min(norm, 2.0))
        assert np.allclose(column * norm, plain * np.linalg.norm(column))
    assert np.allclose(total(derivatives), sum(columns), rtol=1e-12)
    assert grid.total(np.zeros((3, 0), np.float32)) == [0, 0, 0]
    assert grid.total(np.zeros((3, 2), np.float32)) == [0, 0, 0]


@pytest.mark.parametrize("multiplier", [0.1, 1 / 3, 1.7283, 40.0, 147.6112, 1e6])
@pytest.mark.parametrize("directions", [1, 3, 64])
def test_no_sample_adds_more_than_the_bound(multiplier, directions):
    """In integers: |v| <= STD / multiplier, for vectors far above the clip, at it, and of equal coordinates."""
    rng = np.random.default_rng(directions)
    grid = Grid(0.3, multiplier)
    bound = Fraction(STD) / Fraction(multiplier)
    for scale in (1e-30, 0.3, 0.3 * (1 + 1e-15), 1.0, 1e30):
        for vector in (rng.standard_normal(directions), np.ones(directions), np.eye(directions)[0]):
            unit = vector / np.linalg.norm(vector)
            placed = grid.place(unit * scale)
            assert sum(v * v for v in placed) <= bound**2
            error = np.array(placed, dtype=np.float64) * grid.grain - unit * min(scale, 0.3)
            assert np.abs(error).max() <= 3 * grid.grain
            assert all(v * u >= 0 for v, u in zip(placed, unit, strict=True))
    assert isinstance(grid.place(np.ones(directions))[0], int)


def test_a_bound_that_rounding_would_break_is_kept():
    """A grid whose bound is a little below what the clipped vector rounds to."""
    grid = Grid(1.0, 1.0)
    grid.__dict__["largest_square"] = STD * STD - 1
    assert grid.place(np.array([2.0])) == [STD - 1]
    assert grid.place(np.array([-2.0])) == [1 - STD]


def rounded_and_discrete(std, reach):
    """Masses of round(N(0, std^2)) and of the discrete Gaussian on -reach, ..., reach."""
    n = np.arange(-reach, reach + 1)
    # As differences of the smaller tail, or both ends would be lost.
    tail = norm.sf((np.abs(n) - 0.5) / std) - norm.sf((np.abs(n) + 0.5) / std)
    weights = np.exp(-(n**2) / (2 * std**2))
    return tail, weights / weights.sum()


@pytest.mark.parametrize("std", [1, 2, 3, 10, 100, 1000])
def test_the_discrete_gaussian_is_within_the_stated_distance_of_the_rounded_one(std):
    rounded, exact = rounded_and_discrete(std, 40 * std)
    distance = np.abs(rounded - exact).sum() / 2
    assert distance <= 1 / (16 * std**2)
    # (1/24) E|x^2 - 1| / 2 at first order: the bound is three times the truth, and falls as it does.
    assert distance == pytest.approx(0.96788 / 48 / std**2, rel=0.4 / std**2 + 1e-5)


def test_the_cost_of_the_grid():
    assert cost_of_the_grid(2.0, 64_000) == pytest.approx((1 + math.e**2) * 64_000 / 16 / 2.0**80, rel=1e-12)
    assert cost_of_the_grid(6.0, 128_000) < 1e-17
    assert cost_of_the_grid(1e4, 1) == math.inf


def hockey_sticks(epsilon, q, std, shift, reach):
    """Both directions' delta of one step of the discrete mechanism, with a sample that adds `shift` in Z^K."""
    axes = np.meshgrid(*[np.arange(-reach, reach + 1)] * len(shift), indexing="ij")

    def mass(center):
        return math.prod(
            np.exp(-((axis - c) ** 2) / (2 * std**2)) / np.exp(-(np.arange(-400, 401) ** 2) / (2 * std**2)).sum()
            for axis, c in zip(axes, center, strict=True)
        )

    without = mass([0] * len(shift))
    mixed = (1 - q) * without + q * mass(shift)
    factor = math.exp(epsilon)
    return [float(np.maximum(a - factor * b, 0).sum()) for a, b in ((mixed, without), (without, mixed))]


@pytest.mark.parametrize(("shift", "std"), [((4,), 8), ((4,), 5), ((3, 4), 8), ((5, 0), 8), ((2, 1, 2), 5)])
@pytest.mark.parametrize("q", [0.064, 0.5])
def test_one_discrete_step_costs_what_is_accounted(shift, std, q):
    """The accountants' epsilon at a delta holds for the mechanism on the integers, with the grid's cost added."""
    multiplier = std / math.hypot(*shift)
    for accountant in ("pld", "rdp"):
        for delta in (1e-3, 1e-5):
            epsilon = epsilon_spent(multiplier, accountant=accountant, delta=delta, sample_rate=q, steps=1)
            slack = (1 + math.exp(epsilon)) * len(shift) / (16 * std**2)
            found = max(hockey_sticks(epsilon, q, std, shift, 13 * std if len(shift) < 3 else 9 * std))
            assert found <= delta + slack
            if accountant == "pld":
                assert found >= 0.5 * delta, "the bound is not an empty one"


@pytest.mark.parametrize("order", [2, 5, 20])
def test_renyi_divergences_of_whole_orders_are_those_of_the_gaussian(order):
    """The sum over the integers of a Gaussian does not feel a whole shift, so neither do these moments."""
    std, shift, q = 3.0, 2, 0.2
    x = np.arange(-100, 101)
    weights = np.exp(-(x**2) / (2 * std**2))
    ratio = 1 - q + q * np.exp((2 * x * shift - shift**2) / (2 * std**2))
    discrete = (weights * ratio**order).sum() / weights.sum()
    k = np.arange(order + 1)
    binomial = np.array([math.comb(order, i) for i in k])
    continuous = (binomial * (1 - q) ** (order - k) * q**k * np.exp((k * k - k) * shift**2 / (2 * std**2))).sum()
    assert discrete == pytest.approx(continuous, rel=1e-12)


def test_a_release_is_the_total_and_noise_that_its_key_and_step_give():
    grid, random = Grid(3.0, 2.0), SecretRandom.from_seed(3)
    derivatives = np.random.default_rng(1).standard_normal((5, 7)).astype(np.float32)
    empty = np.zeros((5, 0), np.float32)
    noise = release(grid, empty, random, 4)
    assert np.abs(noise).max() < 8 * 6.0
    expected = noise + np.array(grid.total(derivatives)) * grid.grain
    assert np.allclose(release(grid, derivatives, random, 4), expected, rtol=1e-12)
    assert (release(grid, empty, SecretRandom.from_seed(3), 4) == noise).all()
    for other in (release(grid, empty, random, 5), release(grid, empty, SecretRandom.from_seed(4), 4)):
        assert not set(other) & set(noise)
    # On the grid: a whole number of grains, up to the last bit of the product.
    grains = noise / grid.grain
    assert np.abs(grains - np.rint(grains)).max() <= 2 * np.spacing(np.abs(grains).max())


def test_the_noisy_count_is_discrete_laplace():
    epsilon, size = 0.25, 500
    counts = np.array([noisy_count(SecretRandom.from_seed(seed), size, epsilon) for seed in range(4000)]) - size
    r = math.exp(-epsilon)
    variance = 2 * r / (1 - r) ** 2
    assert abs(counts.mean()) < 4 * math.sqrt(variance / 4000)
    # The fourth moment over the squared second is 6 for Laplace, so the variance's own is 5 over n.
    for wrong, fits in ((1.0, True), (0.8, False), (1.2, False)):
        assert (abs(counts.var() / variance / wrong - 1) < 4 * math.sqrt(5 / 4000) / wrong) == fits
    assert abs((counts == 0).mean() - (1 - r) / (1 + r)) < 4 * math.sqrt(0.125 / 4000)
    assert noisy_count(SecretRandom.from_seed(1), size, epsilon) == counts[1] + size
    assert min(noisy_count(SecretRandom.from_seed(seed), 2, 0.01) for seed in range(50)) == 1


def rate_z_score(sizes, num_samples, rate):
    """How many standard deviations the drawn share is away from `rate`."""
    count = len(sizes) * num_samples
    return (sum(sizes) - count * rate) / math.sqrt(count * rate * (1 - rate))


def test_batches_are_poisson_samples():
    num_samples, steps, rate = 250, 500, 0.064
    secrets = SecretRandom.from_seed(1)
    batches = [poisson_batch(secrets, step, num_samples, rate) for step in range(steps)]
    sizes = [len(batch) for batch in batches]
    assert abs(rate_z_score(sizes, num_samples, rate)) < 4
    for wrong in (0.06, 0.068):
        assert abs(rate_z_score(sizes, num_samples, wrong)) > 4, "a wrong rate would be noticed"
    # A binomial size: neither fixed (variance 0) nor drawn in blocks.
    variance = num_samples * rate * (1 - rate)
    assert np.var(sizes) == pytest.approx(variance, rel=0.3)
    counts = np.bincount(np.concatenate(batches), minlength=num_samples)
    assert np.var(counts) == pytest.approx(steps * rate * (1 - rate), rel=0.3)
    assert len({batch.tobytes() for batch in batches}) > 490
    assert poisson_batch(secrets, 3, num_samples, rate).tolist() == batches[3].tolist()
    assert poisson_batch(secrets, 0, 5, 1.0).tolist() == [0, 1, 2, 3, 4]
