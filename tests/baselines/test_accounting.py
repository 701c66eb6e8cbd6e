"""The noise multiplier beside accountants of other kinds: closed forms, quadrature, characteristic functions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.rdp import RdpAccountant
from scipy.optimize import brentq
from scipy.stats import norm

from baselines.accounting import epsilon_spent, noise_multiplier

DELTA = 1e-5
TABLE_3 = [(0.2, 1000), (0.2, 20000), (0.3, 1000), (1.0, 2000), (2.0, 1000), (2.0, 20000), (6.0, 1000)]


def loss(x, q, s):
    """ln p / q at x, for p = (1 - q) N(0, s^2) + q N(1, s^2) against N(0, s^2)."""
    return np.log1p(q * np.expm1((2 * x - 1) / (2 * s * s)))


def one_step_delta(eps, q, s, remove):
    """E[(1 - e^(eps - L))_+] of one step, in closed form for any eps; removing the sample or adding it."""
    eps = np.asarray(eps, dtype=float)
    shifted = np.expm1(eps if remove else -eps)
    # Below its smallest value the loss exceeds eps everywhere, above its largest nowhere.
    edge = 0.5 + s * s * np.log1p(np.maximum(shifted, -q * (1 - 1e-12)) / q)
    mixed = (1 - q) * norm.sf(edge / s) + q * norm.sf((edge - 1) / s)
    if remove:
        return np.where(shifted <= -q, -shifted, mixed - np.exp(eps) * norm.sf(edge / s))
    return np.where(shifted <= -q, 0.0, norm.cdf(edge / s) - np.exp(eps) * (1 - mixed))


def two_step_delta(eps, q, s, remove):
    """The first step's loss by quadrature, the second's in closed form."""
    x = np.linspace(-12 * s, 12 * s + 1, 6001)
    density = norm.pdf(x, 0, s)
    if remove:
        density = (1 - q) * density + q * norm.pdf(x, 1, s)
    sign = 1 if remove else -1
    return float(np.trapezoid(density * one_step_delta(eps - sign * loss(x, q, s), q, s, remove), x))


def many_step_delta(eps, q, s, steps, remove):
    """By the characteristic function of one step's loss, raised to `steps` and inverted: no rounding of losses."""
    x = np.linspace(-14 * s, 14 * s + 1, 4001)
    density = norm.pdf(x, 0, s)
    if remove:
        density = (1 - q) * density + q * norm.pdf(x, 1, s)
    weights = density * (x[1] - x[0])
    values = loss(x, q, s) * (1 if remove else -1)
    mean = steps * float(weights @ values)
    std = math.sqrt(steps * float(weights @ (values - mean / steps) ** 2))
    half_width, size = 60 * std, 1 << 16
    step = 2 * half_width / size
    grid = mean - half_width + step * np.arange(size)
    frequency = np.pi / half_width * np.arange(1024)
    phi = (np.exp(1j * np.outer(frequency, values - mean / steps)) @ weights) ** steps
    phi[0] /= 2
    total = np.real(np.fft.fft(phi * np.exp(1j * frequency * half_width), size)) / half_width
    tail = grid > eps
    return float(step * (total[tail] * -np.expm1(eps - grid[tail])).sum())


def worst(delta_of, *arguments):
    """The larger of both directions."""
    return max(float(delta_of(*arguments, remove)) for remove in (True, False))


@pytest.mark.parametrize(("s", "q"), [(1.0, 0.064), (2.0, 0.5), (0.8, 0.01)])
@pytest.mark.parametrize(("steps", "delta_of"), [(1, one_step_delta), (2, two_step_delta)])
def test_one_and_two_steps_against_closed_forms(s, q, steps, delta_of):
    found = epsilon_spent(s, delta=DELTA, sample_rate=q, steps=steps)
    assert worst(delta_of, found, q, s) <= DELTA * (1 + 1e-6)
    assert worst(delta_of, found / 1.01, q, s) > DELTA


@pytest.mark.parametrize("remove", [True, False])
def test_the_oracles_agree_with_each_other(remove):
    for steps, delta_of in ((1, one_step_delta), (2, two_step_delta)):
        expected = float(delta_of(0.2, 0.5, 5.0, remove))
        assert many_step_delta(0.2, 0.5, 5.0, steps, remove) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("epsilon", "steps"), TABLE_3)
def test_table_3s_noise_is_enough_and_within_a_percent(epsilon, steps):
    q = 0.064
    found = noise_multiplier(epsilon, delta=DELTA, sample_rate=q, steps=steps)
    assert worst(many_step_delta, epsilon, q, found, steps) <= DELTA, "never less noise than the exact one"
    assert worst(many_step_delta, epsilon, q, 0.99 * found, steps) > DELTA, "within 1 % of the exact one"
    assert epsilon_spent(found, delta=DELTA, sample_rate=q, steps=steps) <= epsilon
    renyi = RdpAccountant()
    renyi.compose(PoissonSampledDpEvent(q, GaussianDpEvent(found)), steps)
    assert renyi.get_epsilon(DELTA) >= 0.99 * epsilon, "a Renyi bound is never below the exact value"


def test_the_full_batch_is_the_plain_gaussian_mechanism():
    """Balle and Wang 2018, theorem 8: T steps at noise s are one at s / sqrt(T)."""
    found = noise_multiplier(1.0, delta=DELTA, sample_rate=1.0, steps=4)

    def delta_of(s):
        s = s / 2
        return norm.cdf(0.5 / s - s) - math.e * norm.cdf(-0.5 / s - s)

    exact = brentq(lambda s: delta_of(s) - DELTA, 1, 50)
    assert exact <= found <= 1.01 * exact


def test_more_steps_and_smaller_epsilon_need_more_noise():
    values = [noise_multiplier(2.0, delta=DELTA, sample_rate=0.064, steps=steps) for steps in (100, 400, 1600)]
    assert values == sorted(values)
    assert noise_multiplier(0.2, delta=DELTA, sample_rate=0.064, steps=100) > values[0]
    assert values[0] == round(values[0], 4)
    assert epsilon_spent(0.0, delta=DELTA, sample_rate=0.064, steps=1) == math.inf


@pytest.mark.parametrize(
    ("epsilon", "settings", "message"),
    [
        (0.0, {}, "epsilon"),
        (math.nan, {}, "epsilon"),
        (math.inf, {}, "epsilon"),
        (1.0, {"delta": 0.0}, "delta"),
        (1.0, {"delta": 1.0}, "delta"),
        (1.0, {"sample_rate": 0.0}, "sample_rate"),
        (1.0, {"sample_rate": 1.1}, "sample_rate"),
        (1.0, {"steps": 0}, "steps"),
        (1.0, {"steps": 1.5}, "steps"),
    ],
)
def test_what_is_no_guarantee_is_refused(epsilon, settings, message):
    with pytest.raises(ValueError, match=message):
        noise_multiplier(epsilon, **{"delta": DELTA, "sample_rate": 0.064, "steps": 10, **settings})
    if settings:
        with pytest.raises(ValueError, match=message):
            epsilon_spent(1.0, **{"delta": DELTA, "sample_rate": 0.064, "steps": 10, **settings})


def test_negative_noise_is_refused():
    for wrong in (-1.0, math.nan):
        with pytest.raises(ValueError, match="noise_multiplier"):
            epsilon_spent(wrong, delta=DELTA, sample_rate=0.064, steps=10)
