"""Noise for (epsilon, delta) differential privacy of the Poisson-subsampled Gaussian mechanism. No torch.

The mechanism: each of the samples enters a step's batch independently with probability `sample_rate`; the
step releases the sum of the batch's vectors, each of L2 norm at most c, plus N(0, (noise_multiplier c)^2) on
every coordinate. Neighbouring data sets differ in one sample that is there or not (add or remove), so the
sensitivity of the sum is c whatever the number of coordinates. All released steps together are what
(epsilon, delta) speaks of.

Two accountants of dp-accounting, both upper bounds:

- `rdp`: Renyi differential privacy (Mironov, Talwar and Zhang, arXiv 1908.10530, section 3.3) at Opacus' default
  orders, with the search of Opacus' `get_noise_multiplier` (1.6): DPZero and DP-AggZO take their noise from there.
  The largest order is 63, which costs 15 % more noise than needed at epsilon 0.2.
- `pld`: the privacy-loss distribution (Doroshenko et al., arXiv 2207.04380; the subsampled Gaussian as in Zhu,
  Dong and Wang, arXiv 2106.08567), within a percent of the exact value.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache

from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from scipy.optimize import brentq

ACCOUNTANTS = ("rdp", "pld")
OPACUS_ORDERS = (*(1 + tenths / 10 for tenths in range(1, 100)), *range(12, 64))
# Opacus stops its search where epsilon is this close below its target.
_OPACUS_TOLERANCE = 0.01
# Multipliers of `pld` are multiples of this, rounded up.
_GRAIN = 1e-4
_SMALLEST, _LARGEST = 0.1, 1e6
_MOST_GRID_POINTS = 1 << 14


def epsilon_spent(
    noise_multiplier: float, *, accountant: str, delta: float, sample_rate: float, steps: int
) -> float:
    """An upper bound on the epsilon of `steps` releases at `delta`; inf without noise.

    Raises:
        ValueError: an unknown accountant, delta outside (0, 1), sample_rate outside (0, 1], steps < 1, a
            negative noise or NaN.
    """
    _check(accountant, delta, sample_rate, steps)
    if not noise_multiplier >= 0:
        raise ValueError(f"noise_multiplier must be >= 0, got {noise_multiplier!r}")
    if noise_multiplier == 0:
        return math.inf
    if accountant == "rdp":
        keeper = RdpAccountant(OPACUS_ORDERS)
    else:
        keeper = PLDAccountant(value_discretization_interval=_interval(noise_multiplier, sample_rate))
    with _without_remarks():
        keeper.compose(PoissonSampledDpEvent(sample_rate, GaussianDpEvent(noise_multiplier)), steps)
        return float(keeper.get_epsilon(delta))


@lru_cache(maxsize=64)
def noise_multiplier(epsilon: float, *, accountant: str, delta: float, sample_rate: float, steps: int) -> float:
    """A multiplier whose `steps` releases are (epsilon, delta)-DP: with `rdp` the one that Opacus gives, with
    `pld` the smallest multiple of 1e-4, from 0.1 up.

    Rounding and the accountant's own error go toward more noise, never less. `steps` counts the releases that
    are made at most; a run that stops earlier spent less.

    Raises:
        ValueError: as `epsilon_spent`; epsilon that is not positive and finite, or too small for any
            multiplier up to 1e6.
    """
    _check(accountant, delta, sample_rate, steps)
    if not 0 < epsilon < math.inf:
        raise ValueError(f"epsilon must be positive and finite, got {epsilon!r}")

    @cache
    def spent(multiplier: float) -> float:
        return epsilon_spent(multiplier, accountant=accountant, delta=delta, sample_rate=sample_rate, steps=steps)

    return (_search_of_opacus if accountant == "rdp" else _smallest)(spent, epsilon)


def _search_of_opacus(spent: Callable[[float], float], epsilon: float) -> float:
    """Double from 20 until enough, then halve the interval until epsilon is used up to the tolerance.

    An interval too small to matter ends it too: what the orders cannot show the accountant still shows by
    another bound, where its epsilon jumps to 0, at a noise in the hundred thousands. That is refused.
    """
    low, high = 0.0, 20.0
    while (found := spent(high)) > epsilon:
        high = _doubled(high, epsilon)
    while epsilon - found > _OPACUS_TOLERANCE and high - low > 1e-6 * high:
        middle = (low + high) / 2
        value = spent(middle)
        if value < epsilon:
            high, found = middle, value
        else:
            low = middle
    if found == 0:
        reason = f"below what accountant rdp can show, whose orders end at {OPACUS_ORDERS[-1]}; use pld"
        raise ValueError(f"epsilon {epsilon!r} is {reason}")
    return high


def _smallest(spent: Callable[[float], float], epsilon: float) -> float:
    """A root of the accountant's epsilon to a tenth of a grain, then up to the first grain that is enough."""
    low = high = 1.0
    while spent(high) > epsilon:
        low, high = high, _doubled(high, epsilon)
    while low == high or spent(low) <= epsilon:
        if low <= _SMALLEST:
            return _SMALLEST
        low, high = max(low / 2, _SMALLEST), low
    grains = math.ceil(brentq(lambda s: spent(s) - epsilon, low, high, xtol=_GRAIN / 10) / _GRAIN - 0.1)
    while spent(round(grains * _GRAIN, 4)) > epsilon:
        grains += 1
    return round(grains * _GRAIN, 4)


def _doubled(multiplier: float, epsilon: float) -> float:
    if 2 * multiplier > _LARGEST:
        raise ValueError(f"epsilon {epsilon!r} needs a noise multiplier above {_LARGEST:g}")
    return 2 * multiplier


def _interval(noise_multiplier: float, sample_rate: float) -> float:
    """Grid of the privacy loss. A coarser one costs less time and more noise, never the guarantee.

    The grid's error adds up over the steps, so it is fine beside the spread of one step's loss; but small
    rates spread the loss over a range that would take many points (and minutes).
    """
    largest = math.log1p(sample_rate * math.expm1(min(7.5 / noise_multiplier + 0.5 / noise_multiplier**2, 500)))
    return min(1e-3, max(0.05 * sample_rate / noise_multiplier, largest / _MOST_GRID_POINTS))


@contextmanager
def _without_remarks() -> Iterator[None]:
    """dp-accounting tells of each order whose series does not converge; it leaves it out, as is right."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _check(accountant: str, delta: float, sample_rate: float, steps: int) -> None:
    if accountant not in ACCOUNTANTS:
        raise ValueError(f"accountant must be one of {' and '.join(ACCOUNTANTS)}, got {accountant!r}")
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie strictly between 0 and 1, got {delta!r}")
    if not 0 < sample_rate <= 1:
        raise ValueError(f"sample_rate must lie in (0, 1], got {sample_rate!r}")
    if steps != int(steps) or steps < 1:
        raise ValueError(f"steps must be a positive integer, got {steps!r}")
