"""Noise for (epsilon, delta) differential privacy of the Poisson-subsampled Gaussian mechanism. No torch.

The mechanism: each of the samples enters a step's batch independently with probability `sample_rate`; the
step releases the sum of the batch's vectors, each of L2 norm at most c, plus N(0, (noise_multiplier c)^2) on
every coordinate. Neighbouring data sets differ in one sample that is there or not (add or remove), so the
sensitivity of the sum is c whatever the number of coordinates. All released steps together are what
(epsilon, delta) speaks of.

The accountant is the privacy-loss distribution of dp-accounting (Doroshenko et al., arXiv 2207.04380; the
subsampled Gaussian as in Zhu, Dong and Wang, arXiv 2106.08567), whose estimates are upper bounds.
"""

from __future__ import annotations

import math
from functools import lru_cache

from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant

# Published multipliers are multiples of this, rounded up.
_GRAIN = 1e-4
_SMALLEST, _LARGEST = 0.1, 1e6


def epsilon_spent(noise_multiplier: float, *, delta: float, sample_rate: float, steps: int) -> float:
    """An upper bound on the epsilon of `steps` releases at `delta`; inf without noise.

    Raises:
        ValueError: delta outside (0, 1), sample_rate outside (0, 1], steps < 1, a negative noise or NaN.
    """
    _check(delta, sample_rate, steps)
    if not noise_multiplier >= 0:
        raise ValueError(f"noise_multiplier must be >= 0, got {noise_multiplier!r}")
    if noise_multiplier == 0:
        return math.inf
    # The grid's error adds up over the steps, so it is fine beside the spread of one step's loss. A coarser
    # grid (the floor: very small losses) costs time less and noise more, never the guarantee.
    interval = min(1e-3, max(1e-5, 0.05 * sample_rate / noise_multiplier))
    accountant = PLDAccountant(value_discretization_interval=interval)
    accountant.compose(PoissonSampledDpEvent(sample_rate, GaussianDpEvent(noise_multiplier)), steps)
    return float(accountant.get_epsilon(delta))


@lru_cache(maxsize=64)
def noise_multiplier(epsilon: float, *, delta: float, sample_rate: float, steps: int) -> float:
    """The smallest multiple of 1e-4, from 0.1 up, whose `steps` releases are (epsilon, delta)-DP.

    Rounding and the accountant's own error go toward more noise, never less. `steps` counts the releases that
    are made at most; a run that stops earlier spent less.

    Raises:
        ValueError: as `epsilon_spent`; epsilon that is not positive and finite, or too small for any
            multiplier up to 1e6.
    """
    _check(delta, sample_rate, steps)
    if not 0 < epsilon < math.inf:
        raise ValueError(f"epsilon must be positive and finite, got {epsilon!r}")

    def enough(grains: int) -> bool:
        spent = epsilon_spent(grains * _GRAIN, delta=delta, sample_rate=sample_rate, steps=steps)
        return spent <= epsilon

    low, high = round(_SMALLEST / _GRAIN) - 1, round(1 / _GRAIN)
    while not enough(high):
        low, high = high, 2 * high
        if high * _GRAIN > _LARGEST:
            raise ValueError(f"epsilon {epsilon!r} needs a noise multiplier above {_LARGEST:g}")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return round(high * _GRAIN, 4)


def _check(delta: float, sample_rate: float, steps: int) -> None:
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie strictly between 0 and 1, got {delta!r}")
    if not 0 < sample_rate <= 1:
        raise ValueError(f"sample_rate must lie in (0, 1], got {sample_rate!r}")
    if steps != int(steps) or steps < 1:
        raise ValueError(f"steps must be a positive integer, got {steps!r}")
