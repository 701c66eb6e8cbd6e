"""Numerics of PACZero (arXiv 2605.06505): calibrated noise for one sign, membership, clipping, subset means.

NumPy only. Information is in nats. "The channel" is Y = s + N(0, sigma^2) with s in {-1, +1} and
P(s = +1) = q_plus; s is the sign of the secret subset's mean as the adversary sees it before the release.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paczo.bit_channel import binary_entropy, binary_symmetric_mi, capped_share, flip_for_mi, rarer_mass

__all__ = [
    "binary_channel_mi",
    "binary_entropy",
    "binary_symmetric_mi",
    "calibrated_noise",
    "check_count",
    "check_num_subsets",
    "clip_derivatives",
    "draw_membership",
    "flip_for_mi",
    "sigma_for_binary_mi",
    "subset_means",
    "subset_signs",
]

# The solver aims this far (relative) below the requested information and accepts this relative residual,
# so that its result lies within [1 - 6e-7, 1 - 4e-7] of the request: rounding cannot lift it above.
_AIM_BELOW = 5e-7
_RESIDUAL = 1e-7
_SMALLEST_MASS = 1e-300
_SMALL_SNR = 1e-7
_TAIL_STDS = 9.5
_LINEAR_SHARE = 0.02
# Directions whose subset means are taken by one product.
_MEANS_AT_ONCE = 32


def binary_channel_mi(q_plus: float, sigma: float) -> float:
    """Mutual information I(s; s + N(0, sigma^2)) in nats.

    Relative error below 1e-11 for a rarer mass from 1e-300 up. This is what one noisy release costs in
    PAC-MI (arXiv 2605.06505, PAC-MI): it bounds what the real value s + N(0, sigma^2), and so its published
    sign, says about the secret index given all earlier releases, when q_plus is the posterior mass of the
    subsets whose sign is +1.

    sigma is the noise's standard deviation against signals at -1 and +1: inf gives 0.0, 0 gives h(q_plus);
    q_plus of 0 or 1 gives 0.0. Raises ValueError for NaN, q_plus outside [0, 1] and sigma < 0.
    """
    rare = rarer_mass(q_plus)
    if not sigma >= 0.0:
        raise ValueError(f"sigma must be a noise standard deviation >= 0 (inf allowed), got {sigma!r}")
    if rare == 0.0 or math.isinf(sigma):
        return 0.0
    if sigma == 0.0:
        return binary_entropy(rare)
    return _channel(rare, 1.0 / sigma, binary_entropy(rare))[0]


def sigma_for_binary_mi(q_plus: float, mi_nats: float) -> float:
    """Noise standard deviation sigma with (1 - 1e-6) mi_nats <= I(q_plus, sigma) <= mi_nats.

    The upper inequality is the privacy guarantee (arXiv 2605.06505, PAC-MI release): rounding goes to more
    noise. Information is relative here, never absolute: an absolute tolerance of 1e-6 nats overspends a
    budget of 5e-8 nats ten times. Proof: paczo/proofs.md. 0 nats give inf; mi_nats from h(q_plus) up (inf too)
    gives 0.0.
    Masses below 1e-300 are calibrated as 1e-300; I grows with the rarer mass, so that only adds noise.

    Raises ValueError for NaN, mi_nats < 0 and q_plus outside [0, 1].
    """
    rare = rarer_mass(q_plus)
    if not mi_nats >= 0.0:
        raise ValueError(f"mi_nats must be >= 0, got {mi_nats!r}")
    if mi_nats == 0.0:
        return math.inf
    if mi_nats >= binary_entropy(rare):
        return 0.0
    rare = max(rare, _SMALLEST_MASS)
    variance_half = 2.0 * rare * (1.0 - rare)
    if mi_nats <= _SMALL_SNR * variance_half:
        # I <= variance_half / sigma^2 always, and it is tight to 1e-7 here. Two roots: no underflow.
        return math.sqrt(variance_half) / math.sqrt(mi_nats) * (1.0 + _AIM_BELOW / 2.0)
    return 1.0 / math.sqrt(_snr_for_mi(rare, mi_nats * (1.0 - _AIM_BELOW)))


def calibrated_noise(minority: float, share_nats: float) -> tuple[float, float]:
    """(noise_std, charge_nats) of one PAC-MI release: 0 < charge_nats <= share_nats, and below h(minority).

    minority as in `capped_share`.
    """
    minority, share_nats = capped_share(minority, share_nats)
    noise_std = sigma_for_binary_mi(minority, share_nats)
    charge_nats = binary_channel_mi(minority, noise_std)
    if not 0.0 < charge_nats <= share_nats:
        raise ArithmeticError(f"calibration failed: {charge_nats!r} nats for a share of {share_nats!r}")
    return noise_std, charge_nats


def _snr_for_mi(rare: float, target_nats: float) -> float:
    """snr = 1/sigma^2 with information target_nats (relative 1e-7): Newton's steps inside a bracket.

    I is concave in snr with dI/dsnr = mmse/2 (Guo, Shamai, Verdu 2005, theorem 1). Its logarithm is close to
    linear while little is known, that of the equivocation h - I once most is. `low` never exceeds the target.
    """
    entropy = binary_entropy(rare)
    low, high = target_nats / (2.0 * rare * (1.0 - rare)), math.inf
    snr = low
    for _ in range(100):
        mi, equivocation, mmse = _channel(rare, math.sqrt(snr), entropy)
        if abs(mi - target_nats) <= _RESIDUAL * target_nats:
            return snr
        if mi < target_nats:
            low = snr
        else:
            high = snr
        if target_nats < 0.5 * entropy:
            gap = 2.0 * mi * math.log(target_nats / mi)
        elif equivocation > 0.0:
            gap = 2.0 * equivocation * math.log(equivocation / (entropy - target_nats))
        else:
            gap = -math.inf
        snr = snr + gap / mmse if mmse > 0.0 else low
        if not low < snr < high:
            snr = math.sqrt(low) * math.sqrt(high) if high < math.inf else 2.0 * low
    return low


def _channel(rare: float, inverse_sigma: float, entropy: float) -> tuple[float, float, float]:
    """(I, h - I, mmse of s). Whichever of the first two is not a small difference is integrated."""
    linear_nats = 2.0 * rare * (1.0 - rare) * inverse_sigma * inverse_sigma
    if inverse_sigma * inverse_sigma <= _SMALL_SNR:
        # I = x - x^2 + O(snr^2) x with x = 2 q (1 - q) snr; a square of roots does not underflow early.
        root = math.sqrt(2.0 * rare * (1.0 - rare)) * inverse_sigma
        mi = root * root * (1.0 - linear_nats)
        return mi, entropy - mi, 4.0 * rare * (1.0 - rare)
    if linear_nats < _LINEAR_SHARE * entropy:
        mi, mmse = _information_integral(rare, inverse_sigma)
        return mi, entropy - mi, mmse
    log_odds_at_tail = math.log(rare) - math.log1p(-rare) + 2.0 * inverse_sigma * (inverse_sigma - _TAIL_STDS)
    if log_odds_at_tail > 0.0:
        return entropy, 0.0, 0.0
    equivocation, mmse = _equivocation_integral(rare, inverse_sigma)
    return entropy - equivocation, equivocation, mmse


def _information_integral(rare: float, inverse_sigma: float) -> tuple[float, float]:
    """(I, mmse) where I is a small part of h; inverse_sigma below 5 or so.

    I = q E_+[psi(w_+)] + (1 - q) E_-[psi(w_-)], psi(w) = w - 1 + exp(-w) >= 0, w the log-likelihood ratio
    of one signal's density to the mixture: no term cancels another. The integrand is analytic in a strip of
    half-width pi sigma / 2 (in units of sigma), so the trapezoidal rule converges exponentially.
    """
    step = min(0.5, 0.3 / inverse_sigma)
    half_count = math.ceil((inverse_sigma + _TAIL_STDS) / step)
    t = np.arange(-half_count, half_count + 1) * step
    llr = (2.0 * inverse_sigma) * t
    lift = rare * np.expm1(llr)
    log_mixture = np.log1p(lift)
    scale = step / math.sqrt(2.0 * math.pi)
    plus = scale * np.exp(-0.5 * (t - inverse_sigma) ** 2)
    minus = ((1.0 - rare) * scale) * np.exp(-0.5 * (t + inverse_sigma) ** 2)
    mi = rare * (plus @ _excess(llr - log_mixture)) + minus @ _excess(-log_mixture)
    mmse = 4.0 * rare * (1.0 - rare) * (plus @ (1.0 / (1.0 + lift)))
    return float(mi), float(mmse)


def _excess(w: NDArray[np.float64]) -> NDArray[np.float64]:
    """w - 1 + exp(-w) without cancellation near 0."""
    correction = w / 3.0 * (1.0 - w / 4.0 * (1.0 - w / 5.0 * (1.0 - w / 6.0)))
    series: NDArray[np.float64] = 0.5 * w * w * (1.0 - correction)
    return np.where(np.abs(w) < 0.01, series, w + np.expm1(-w))


def _equivocation_integral(rare: float, inverse_sigma: float) -> tuple[float, float]:
    """(H(s | Y), mmse). Both are integrals over the rarer signal's own density, whatever the distance to the
    other one: the mixture times h(pi) equals q f_+ h(pi) / pi, with pi the posterior of the rarer signal."""
    step = min(0.5, 0.3 / inverse_sigma)
    half_count = math.ceil(_TAIL_STDS / step)
    t = np.arange(-half_count, half_count + 1) * step
    offset = math.log(rare) - math.log1p(-rare) + 2.0 * inverse_sigma * inverse_sigma
    log_odds = offset + (2.0 * inverse_sigma) * t
    weight = (rare * step / math.sqrt(2.0 * math.pi)) * np.exp(-0.5 * t * t)
    odds = np.maximum(np.exp(-np.abs(log_odds)), _SMALLEST_MASS)
    log1p_odds = np.log1p(odds)
    likely = log_odds >= 0.0
    entropy_share = np.where(
        likely, log1p_odds + odds * (log_odds + log1p_odds), log1p_odds - log_odds + log1p_odds / odds
    )
    other = np.where(likely, odds, 1.0) / (1.0 + odds)
    return float(weight @ entropy_share), float(4.0 * (weight @ other))


def draw_membership(
    num_samples: int,
    num_subsets: int,
    rng: np.random.Generator,
    *,
    sampling_rate: int | None = None,
    disjoint_pairs: bool = False,
) -> NDArray[np.bool_]:
    """Which sample lies in which candidate subset: bool (num_samples, num_subsets), public.

    The secret is one column's index (arXiv 2605.06505, setting); the columns themselves are known to the
    adversary. Default: each row has exactly num_subsets/2 True, uniformly, independent of the other rows.
    sampling_rate=k: exactly k (an integer count of subsets, 1..num_subsets-1). disjoint_pairs: columns
    2j and 2j + 1 are a uniformly random half (floor(num_samples/2) samples) and its complement, the pairs
    independent. Raises ValueError for an odd or too small num_subsets, num_samples < 1, a sampling_rate out
    of range or not an integer, and both options at once.
    """
    check_count("num_samples", num_samples, 1)
    check_num_subsets(num_subsets)
    if disjoint_pairs:
        if sampling_rate is not None:
            raise ValueError(f"sampling_rate={sampling_rate!r} and disjoint_pairs=True exclude each other")
        first_half = np.arange(num_samples) < num_samples // 2
        halves = rng.permuted(np.repeat(first_half[:, None], num_subsets // 2, axis=1), axis=0)
        return np.stack([halves, ~halves], axis=2).reshape(num_samples, num_subsets)
    per_sample = num_subsets // 2 if sampling_rate is None else sampling_rate
    check_count("sampling_rate (how many subsets hold a sample)", per_sample, 1, num_subsets - 1)
    row = np.arange(num_subsets) < per_sample
    return rng.permuted(np.repeat(row[None, :], num_samples, axis=0), axis=1)


def check_num_subsets(num_subsets: int) -> None:
    """Raise ValueError unless num_subsets is an even integer of at least 2."""
    check_count("num_subsets", num_subsets, 2)
    if num_subsets % 2:
        raise ValueError(f"num_subsets must be even, got {num_subsets}")


def check_count(name: str, value: Any, smallest: int, largest: int | None = None) -> None:
    is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_integer or value < smallest or (largest is not None and value > largest):
        upper = "" if largest is None else f" and at most {largest}"
        raise ValueError(f"{name} must be an integer of at least {smallest}{upper}, got {value!r}")


def clip_derivatives(derivatives: ArrayLike, clip: float | None) -> NDArray[np.floating[Any]]:
    """g min(1, clip/|g|) for each per-sample derivative g; a new array of the same floating type and shape.

    Clipping comes before the subset means and changes their signs, so it is part of the mechanism
    (arXiv 2605.06505, release step 3). clip None or inf: unchanged values. An empty array stays empty.
    Raises ValueError for clip <= 0 or NaN, and for a derivative that is NaN or infinite.
    """
    values = _finite(derivatives)
    if clip is None:
        return values.copy()
    if not clip > 0.0:
        raise ValueError(f"clip must be > 0 (None or inf for no clipping), got {clip!r}")
    limit = min(float(clip), float(np.finfo(values.dtype).max))
    clipped: NDArray[np.floating[Any]] = np.clip(values, -limit, limit)
    return clipped


def subset_means(derivatives: ArrayLike, membership: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Mean derivative of each subset, float64 (M,), or (K, M) of K directions; 0 for an empty subset.

    derivatives (N,) or (K, N), finite, already clipped; membership bool (N, M). The sums are exact: integers
    inside float64, a high and a low part that reach 84 bits below a direction's largest derivative for N = 1,000
    (what is smaller is rounded once). So the result, and with it each released sign, does not depend on the
    order of summation: BLAS, its threads, the machine.
    Raises ValueError for NaN, inf or shapes that do not fit.
    """
    values = _finite(derivatives)
    member = np.asarray(membership)
    fits = values.ndim in (1, 2) and values.shape[-1:] == member.shape[:1] and values.size
    if member.dtype != np.bool_ or member.ndim != 2 or not fits:
        raise ValueError(
            f"need derivatives (N,) or (K, N) and boolean membership (N, M) with N >= 1, got {values.shape} and "
            f"{member.dtype} {member.shape}"
        )
    counted = member.astype(np.float64)
    rows = values.reshape(-1, len(member))
    blocks = [rows[first : first + _MEANS_AT_ONCE] for first in range(0, len(rows), _MEANS_AT_ONCE)]
    sums = np.concatenate([_exact_sums(block.astype(np.float64), counted) for block in blocks])
    means: NDArray[np.float64] = sums / np.maximum(member.sum(axis=0), 1)
    return means.reshape(*values.shape[:-1], -1)


def _exact_sums(values: NDArray[np.float64], member: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the members of each subset, (K, M)."""
    bits = 52 - len(member).bit_length()
    exponent = np.frexp(np.max(np.abs(values), axis=1, keepdims=True))[1]
    scaled = np.ldexp(values, bits - exponent)
    high = np.rint(scaled)
    low = np.rint(np.ldexp(scaled - high, bits))
    high_sum, low_sum = (np.concatenate([high, low]) @ member).reshape(2, len(values), -1)
    sums: NDArray[np.float64] = np.ldexp(high_sum + np.ldexp(low_sum, -bits), exponent - bits)
    return sums


def subset_signs(derivatives: ArrayLike, membership: NDArray[np.bool_]) -> NDArray[np.int8]:
    """Signs of `subset_means`, int8 of its shape: +1 from a mean of 0 up (so +1 for an empty subset), else -1."""
    return np.where(subset_means(derivatives, membership) >= 0.0, 1, -1).astype(np.int8)


def _finite(derivatives: ArrayLike) -> NDArray[np.floating[Any]]:
    values = np.asarray(derivatives)
    if not np.issubdtype(values.dtype, np.floating):
        values = values.astype(np.float64)
    bad = int(values.size - np.count_nonzero(np.isfinite(values)))
    if bad:
        raise ValueError(f"{bad} of {values.size} derivatives are NaN or infinite")
    return values
