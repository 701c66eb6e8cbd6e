"""The noise multiplier beside accountants of other kinds: closed forms, quadrature, characteristic functions,
and what Opacus gives."""

from __future__ import annotations

import logging
import math
import time

import mpmath
import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.rdp import RdpAccountant
from scipy.optimize import brentq
from scipy.stats import norm

from baselines.accounting import OPACUS_ORDERS, epsilon_spent, noise_multiplier

DELTA = 1e-5
PLD = {"accountant": "pld", "delta": DELTA}
RDP = {"accountant": "rdp", "delta": DELTA}
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
    found = epsilon_spent(s, **PLD, sample_rate=q, steps=steps)
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
    found = noise_multiplier(epsilon, **PLD, sample_rate=q, steps=steps)
    assert worst(many_step_delta, epsilon, q, found, steps) <= DELTA, "never less noise than the exact one"
    assert worst(many_step_delta, epsilon, q, 0.99 * found, steps) > DELTA, "within 1 % of the exact one"
    assert epsilon_spent(found, **PLD, sample_rate=q, steps=steps) <= epsilon
    renyi = RdpAccountant()
    renyi.compose(PoissonSampledDpEvent(q, GaussianDpEvent(found)), steps)
    assert renyi.get_epsilon(DELTA) >= 0.99 * epsilon, "a Renyi bound is never below the exact value"


def test_the_full_batch_is_the_plain_gaussian_mechanism():
    """Balle and Wang 2018, theorem 8: T steps at noise s are one at s / sqrt(T)."""
    found = noise_multiplier(1.0, **PLD, sample_rate=1.0, steps=4)

    def delta_of(s):
        s = s / 2
        return norm.cdf(0.5 / s - s) - math.e * norm.cdf(-0.5 / s - s)

    exact = brentq(lambda s: delta_of(s) - DELTA, 1, 50)
    assert exact <= found <= 1.01 * exact


def test_more_steps_and_smaller_epsilon_need_more_noise():
    values = [noise_multiplier(2.0, **PLD, sample_rate=0.064, steps=steps) for steps in (100, 400, 1600)]
    assert values == sorted(values)
    assert noise_multiplier(0.2, **PLD, sample_rate=0.064, steps=100) > values[0]
    assert values[0] == round(values[0], 4)
    assert epsilon_spent(0.0, **PLD, sample_rate=0.064, steps=1) == math.inf


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
        (1.0, {"accountant": "prv"}, "accountant"),
    ],
)
def test_what_is_no_guarantee_is_refused(epsilon, settings, message):
    with pytest.raises(ValueError, match=message):
        noise_multiplier(epsilon, **{**PLD, "sample_rate": 0.064, "steps": 10, **settings})
    if settings:
        with pytest.raises(ValueError, match=message):
            epsilon_spent(1.0, **{**PLD, "sample_rate": 0.064, "steps": 10, **settings})


def test_negative_noise_is_refused():
    for wrong in (-1.0, math.nan):
        with pytest.raises(ValueError, match="noise_multiplier"):
            epsilon_spent(wrong, **PLD, sample_rate=0.064, steps=10)


# (epsilon, K, steps) of Table 3 and what Opacus 1.6.0's `get_noise_multiplier` gives at delta 1e-5 and rate 0.064,
# for 0.95 epsilon where K is 64, as DP-AggZO's trainer asks.
OPACUS = [
    (0.2, 64, 1000, 40.0),
    (0.2, 64, 2000, 55.0),
    (0.3, 64, 1000, 26.25),
    (0.5, 64, 1000, 16.5625),
    (1.0, 64, 1000, 8.75),
    (2.0, 64, 1000, 4.6875),
    (6.0, 64, 1000, 1.904296875),
    (0.2, 1, 20000, 170.0),
    (0.3, 1, 20000, 112.5),
    (0.5, 1, 20000, 70.0),
    (1.0, 1, 20000, 36.875),
    (2.0, 1, 20000, 19.53125),
]


@pytest.mark.parametrize(("epsilon", "directions", "steps", "expected"), OPACUS)
def test_the_renyi_noise_of_table_3_is_that_of_opacus(epsilon, directions, steps, expected):
    share = 0.95 * epsilon if directions > 1 else epsilon
    assert noise_multiplier(share, **RDP, sample_rate=0.064, steps=steps) == expected


def renyi_divergence(order, q, s):
    """ln E[(1 - q + q e^((2x - 1) / (2 s^2)))^order] / (order - 1), x ~ N(0, s^2), by the trapezoid rule."""
    x = np.linspace(-14 * s, order + 14 * s, 40001)
    log_terms = norm.logpdf(x, 0, s) + order * np.logaddexp(
        math.log1p(-q), math.log(q) + (2 * x - 1) / (2 * s * s)
    )
    top = log_terms.max()
    return (top + math.log(np.exp(log_terms - top).sum() * (x[-1] - x[0]) / 40000)) / (order - 1)


def renyi_epsilon(q, s, steps):
    """The conversion of Balle et al. (arXiv 1905.09982, theorem 21) at each order; the smallest."""
    return min(
        steps * renyi_divergence(a, q, s) + math.log1p(-1 / a) - math.log(DELTA * a) / (a - 1)
        for a in OPACUS_ORDERS
    )


@pytest.mark.parametrize(("order", "q", "s"), [(1.5, 0.064, 2.0), (4.6, 0.064, 1.9), (63, 0.01, 8.0)])
def test_the_oracle_agrees_with_multiprecision(order, q, s):
    with mpmath.workdps(40):
        p, std = mpmath.mpf(q), mpmath.mpf(s)

        def integrand(x):
            return mpmath.npdf(x, 0, std) * (1 - p + p * mpmath.exp((2 * x - 1) / (2 * std**2))) ** order

        edges = [-14 * std, 0, order / 2, order, order + 14 * std]
        expected = float(mpmath.log(mpmath.quad(integrand, edges)) / (order - 1))
    assert renyi_divergence(order, q, s) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("q", "s", "steps"),
    [
        (0.064, 40.0, 1000),
        (0.064, 4.7, 1000),
        (0.064, 1.9, 1000),
        (0.064, 170.0, 20000),
        (1e-4, 1.4, 1000),
        (1.0, 9.0, 4),
    ],
)
def test_renyi_epsilon_against_quadrature(q, s, steps):
    if q == 1.0:  # the Gaussian's divergence is order / (2 s^2)
        expected = min(
            steps * a / (2 * s * s) + math.log1p(-1 / a) - math.log(DELTA * a) / (a - 1) for a in OPACUS_ORDERS
        )
    else:
        expected = renyi_epsilon(q, s, steps)
    found = epsilon_spent(s, **RDP, sample_rate=q, steps=steps)
    assert expected * (1 - 1e-9) <= found <= expected * (1 + 1e-4)


def test_the_orders_are_those_of_opacus():
    assert len(OPACUS_ORDERS) == 99 + 52
    assert (OPACUS_ORDERS[0], OPACUS_ORDERS[98], OPACUS_ORDERS[99], OPACUS_ORDERS[-1]) == (1.1, 10.9, 12, 63)


def test_small_rates_take_no_minutes():
    begin = time.perf_counter()
    found = noise_multiplier(0.2, **RDP, sample_rate=1e-4, steps=1000)
    assert time.perf_counter() - begin < 30, "half a second on two idle cores"
    assert renyi_epsilon(1e-4, found, 1000) <= 0.2 < renyi_epsilon(1e-4, 0.97 * found, 1000)


def test_the_renyi_accountant_refuses_what_its_orders_cannot_show():
    with pytest.raises(ValueError, match="use pld"):
        noise_multiplier(0.05, **RDP, sample_rate=0.064, steps=1000)
    assert noise_multiplier(0.05, **PLD, sample_rate=0.064, steps=1000) < 120


@pytest.mark.parametrize(("epsilon", "q", "steps"), [(0.3, 0.064, 1000), (2.0, 0.3, 4), (1.0, 1.0, 3)])
def test_pld_gives_the_smallest_grain(epsilon, q, steps):
    found = noise_multiplier(epsilon, **PLD, sample_rate=q, steps=steps)
    assert epsilon_spent(round(found - 1e-4, 4), **PLD, sample_rate=q, steps=steps) > epsilon
    assert found == round(found, 4)


def test_accounting_says_nothing_and_leaves_the_log_as_it_was(caplog):
    before = logging.getLogger("absl").level
    with caplog.at_level(logging.WARNING):
        epsilon_spent(1.0, **RDP, sample_rate=0.064, steps=1000)
    assert caplog.text == ""
    assert logging.getLogger("absl").level == before
