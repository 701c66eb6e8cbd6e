"""The privacy curve of a Gaussian mechanism: (epsilon, delta) <-> mu. NumPy and SciPy only.

A mechanism that tells two secrets apart no better than N(0, 1) can be told from N(mu, 1) is mu-GDP (Dong, Roth,
Su 2022, definition 2.6). Its exact curve is, by Balle and Wang 2018 (arXiv 1805.06530v2, theorem 8),

    delta(epsilon) = Phi(mu/2 - epsilon/mu) - e^epsilon Phi(-mu/2 - epsilon/mu)
"""

import math

from scipy.special import erfcx, ndtr

_SQRT_2 = math.sqrt(2.0)
# From here on e^(u^2) in erfcx(-u) overflows; Phi is then 1 to the last bit and logarithms do without it.
_ERFCX_LIMIT = -25.0
_BISECTIONS = 200
# The curve is computed to about 1e-12 of its value: answers are moved this far to the safe side.
_SAFETY = 1e-9


def log_delta(epsilon: float, mu: float) -> float:
    """ln delta(epsilon) of a mu-GDP mechanism, exact in the far tail.

    -inf for mu = 0 (nothing is told), 0.0 for mu = inf (everything is). Raises ValueError for NaN and
    negative arguments.
    """
    _check_epsilon(epsilon)
    if not mu >= 0.0:
        raise ValueError(f"mu must be >= 0, got {mu!r}")
    if mu == 0.0 or epsilon == math.inf:
        return 0.0 if mu == math.inf else -math.inf
    if mu == math.inf:
        return 0.0
    upper, lower = mu / 2.0 - epsilon / mu, -mu / 2.0 - epsilon / mu
    if lower == -math.inf:
        return -math.inf if upper < 0.0 else 0.0
    # e^epsilon e^(-lower^2/2) = e^(-upper^2/2): both terms share one exponent, so nothing large cancels.
    if -upper / _SQRT_2 < _ERFCX_LIMIT:
        log_second = -0.5 * upper * upper + math.log(0.5 * float(erfcx(-lower / _SQRT_2)))
        return math.log(float(ndtr(upper)) - math.exp(log_second))
    gap = float(erfcx(-upper / _SQRT_2)) - float(erfcx(-lower / _SQRT_2))
    return min(0.0, -0.5 * upper * upper + math.log(0.5 * gap)) if gap > 0.0 else -math.inf


def epsilon_of(mu: float, delta: float) -> float:
    """Least epsilon >= 0 with delta(epsilon) <= delta, rounded up. inf for mu = inf or delta = 0 with mu > 0.

    Raises ValueError for NaN, mu < 0 and delta outside [0, 1).
    """
    if not 0.0 <= delta < 1.0:
        raise ValueError(f"delta must lie in [0, 1), got {delta!r}")
    if not mu >= 0.0:
        raise ValueError(f"mu must be >= 0, got {mu!r}")
    if mu == 0.0:
        return 0.0
    if mu == math.inf or delta == 0.0:
        return math.inf
    target = math.log(delta)
    if log_delta(0.0, mu) <= target:
        return 0.0
    # Phi(-t) <= e^(-t^2/2) makes this a bound on the root.
    low, high = 0.0, mu * mu / 2.0 + mu * math.sqrt(-2.0 * target)
    if not math.isfinite(high):
        return math.inf
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        if not low < middle < high:
            break
        if log_delta(middle, mu) <= target:
            high = middle
        else:
            low = middle
    return high * (1.0 + _SAFETY)


def mu_of(epsilon: float, delta: float) -> float:
    """Largest mu whose mechanism is (epsilon, delta)-DP, rounded down: more noise, never less.

    Raises ValueError for epsilon that is negative, NaN or infinite, and delta outside (0, 1).
    """
    _check_epsilon(epsilon)
    if epsilon == math.inf:
        raise ValueError("epsilon must be finite")
    if not 0.0 < delta < 1.0:
        raise ValueError(f"delta must lie in (0, 1), got {delta!r}")
    target = math.log(delta)
    low, high = 0.0, 1.0
    while log_delta(epsilon, high) <= target:
        low, high = high, 2.0 * high
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        if not low < middle < high:
            break
        if log_delta(epsilon, middle) <= target:
            low = middle
        else:
            high = middle
    return low * (1.0 - _SAFETY)


def _check_epsilon(epsilon: float) -> None:
    if not epsilon >= 0.0:
        raise ValueError(f"epsilon must be >= 0, got {epsilon!r}")
