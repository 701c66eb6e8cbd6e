"""Information through binary channels, in nats, and the flip that lets a given number of nats through.

"The channel" of one released bit is randomised response (Warner 1965): a sign s with P(s = +1) = q_plus leaves as
it is with probability 1 - flip, turned with probability flip. Every quantity is a sum of terms that are not
negative, so nothing cancels, neither for rare signs nor for flips near 1/2.
"""

import math

# A flip is a multiple of 2^-53, so that it is drawn exactly by comparing 53 random bits with an integer.
FLIP_GRID = 1 << 53
# The solver stays this far (relative) below the request: far more than rounding, its own or the posterior's.
_AIM_BELOW = 5e-7
_SMALLEST_MASS = 1e-300
_ENTROPY_SHARE = 0.999
_SERIES = tuple(1.0 / (k * (k - 1)) for k in range(12, 1, -1))


def binary_entropy(p: float) -> float:
    """Entropy in nats of a coin with P(heads) = p, to full relative precision for tiny p. h(0) = h(1) = 0.

    Raises ValueError for NaN or p outside [0, 1].
    """
    rare = rarer_mass(p)
    return -rare * math.log(rare) - (1.0 - rare) * math.log1p(-rare) if rare > 0.0 else 0.0


def rarer_mass(q_plus: float) -> float:
    """min(q, 1 - q): the channels are symmetric, and 1 - q is exact in floating point for q >= 1/2."""
    if not 0.0 <= q_plus <= 1.0:
        raise ValueError(f"a probability must lie in [0, 1], got {q_plus!r}")
    return float(min(q_plus, 1.0 - q_plus))


def relative_entropy(prior: float, gain: float) -> float:
    """KL(Bern(prior + gain) || Bern(prior)) for 0 < prior < 1, as two terms >= 0: small gains do not cancel."""
    return prior * _excess(gain / prior) + (1.0 - prior) * _excess(-gain / (1.0 - prior))


def binary_mi(p_one: float, low: float, gap: float) -> float:
    """I(X; Y) for X ~ Bern(p_one), P(Y = 1 | X = 0) = low and P(Y = 1 | X = 1) = low + gap, in nats.

    All of them in [0, 1]. It grows with gap. Relative error below 1e-13 where low or gap is not subnormal.
    """
    mixed = low + p_one * gap
    if not 0.0 < mixed < 1.0:
        return 0.0
    given_one = relative_entropy(mixed, (1.0 - p_one) * gap)
    return p_one * given_one + (1.0 - p_one) * relative_entropy(mixed, -p_one * gap)


def binary_symmetric_mi(q_plus: float, flip: float) -> float:
    """Mutual information I(s; b) = h(q (1 - f) + (1 - q) f) - h(f) in nats between a sign and its flipped bit.

    What one bit of PAC-MI charged by the bit costs, with q_plus the posterior mass of the subsets whose sign is
    +1. Relative error below 1e-13 for a rarer mass from 1e-300 up, where the result is above 1e-300.

    flip 1/2 gives 0.0, flip 0 gives h(q_plus); q_plus of 0 or 1 gives 0.0. Raises ValueError for NaN, q_plus
    outside [0, 1] and flip outside [0, 1/2].
    """
    rare = rarer_mass(q_plus)
    if not 0.0 <= flip <= 0.5:
        raise ValueError(f"flip must lie in [0, 1/2], got {flip!r}")
    if flip == 0.0:
        return binary_entropy(rare)
    return binary_mi(rare, flip, 1.0 - 2.0 * flip)


def flip_for_mi(q_plus: float, mi_nats: float) -> float:
    """Probability of a flip, in (0, 1/2], with (1 - 1e-6) mi_nats <= I(q_plus, flip) <= mi_nats.

    The smallest multiple of 2^-53 whose information is below the request by 5e-7 of it: rounding goes to more
    flips. The upper inequality is the privacy guarantee and holds always; proof in paczo/proofs.md. The lower one
    holds for a rarer mass from 1e-10 up and mi_nats from 1e-12 up, and wherever 2^-36 <= flip <= 1/2 - 2^-31;
    elsewhere neighbouring flips of the grid are further apart than 1e-6 of the information, and the result is
    the one that gives most of what may be given. 0 nats (and what is less than the grid's smallest step) give
    1/2; mi_nats from h(q_plus) up (inf too) gives 0.0. Masses below 1e-300 are calibrated as 1e-300.

    Raises ValueError for NaN, mi_nats < 0 and q_plus outside [0, 1].
    """
    rare = rarer_mass(q_plus)
    if not mi_nats >= 0.0:
        raise ValueError(f"mi_nats must be >= 0, got {mi_nats!r}")
    if mi_nats == 0.0:
        return 0.5
    if mi_nats >= binary_entropy(rare):
        return 0.0
    rare = max(rare, _SMALLEST_MASS)
    return _smallest_flip(rare, mi_nats * (1.0 - _AIM_BELOW)) / FLIP_GRID


def flip_log_odds(flip: float) -> float:
    """ln((1 - flip) / flip): how much more probable a bit is where it is the sign than where it is not.

    For flip in (0, 1/2]; exactly 0.0 at 1/2.
    """
    return math.log1p((1.0 - 2.0 * flip) / flip)


def capped_share(minority: float, share_nats: float) -> tuple[float, float]:
    """(minority, nats) of one PAC-MI release: at most the share, and at most 0.999 of h(minority).

    minority is the posterior mass of the subsets with the rarer sign, known to be positive. Masses below 1e-300
    (also underflowed to 0) count as 1e-300: the information grows with the mass, so a charge stays an upper bound
    and a positive mass is never free.
    """
    minority = min(max(minority, _SMALLEST_MASS), 0.5)
    return minority, min(share_nats, _ENTROPY_SHARE * binary_entropy(minority))


def calibrated_flip(minority: float, share_nats: float) -> tuple[float, float]:
    """(flip, charge_nats) of one PAC-MI release charged by the bit: charge_nats <= share_nats.

    minority as in `capped_share`. A share that is less than the grid's smallest step gives (1/2, 0.0).
    """
    minority, share_nats = capped_share(minority, share_nats)
    flip = flip_for_mi(minority, share_nats)
    charge_nats = binary_symmetric_mi(minority, flip)
    if not 0.0 < flip <= 0.5 or not charge_nats <= share_nats:
        raise ArithmeticError(f"calibration failed: {charge_nats!r} nats for a share of {share_nats!r}")
    return flip, charge_nats


def _smallest_flip(rare: float, target_nats: float) -> int:
    """The smallest flip, in steps of the grid, whose information is at most target_nats, as far as rounding goes.

    ITP (Oliveira and Takahashi 2020, doi 10.1145/3423597) on the square root of the information, which is nearly a
    line in the flip: some 12 evaluations, and never more than bisection's 53.
    """
    too_small, enough = 0, FLIP_GRID // 2
    goal = math.sqrt(target_nats)
    left, right = math.sqrt(binary_entropy(rare)) - goal, -goal
    bisections = 52.0
    while (width := enough - too_small) > 1:
        half = width / 2
        line = width * left / (left - right) if left > right else half
        shift = math.copysign(min(max(1.0, 0.4 * width * width / FLIP_GRID), abs(half - line)), half - line)
        radius = max(2.0**bisections - half, 0.0)
        guess = min(max(line + shift, half - radius), half + radius)
        middle = too_small + min(max(round(guess), 1), width - 1)
        information = binary_symmetric_mi(rare, middle / FLIP_GRID)
        if information <= target_nats:
            enough, right = middle, math.sqrt(information) - goal
        else:
            too_small, left = middle, math.sqrt(information) - goal
        bisections -= 1.0
    return enough


def _excess(u: float) -> float:
    """(1 + u) ln(1 + u) - u >= 0 for u >= -1."""
    if u <= -1.0:
        return 1.0
    if abs(u) < 0.03:
        series = 0.0
        for coefficient in _SERIES:
            series = coefficient - u * series
        return u * u * series
    return (1.0 + u) * math.log1p(u) - u
