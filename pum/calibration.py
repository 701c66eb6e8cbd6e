"""How much noise PUM's publications need, by two accountings. NumPy and SciPy only.

Protected is the server's centre theta~: two centres are neighbours if they differ by at most D_l in L2 norm in
each layer l. `sensitivities` are the D_l, `sigmas` the standard deviations sigma_l of the zero-sum noise of a
layer (in units of the weights), `jitter` is tau, `copies` m, `rounds` R.

* `paper_...`: the run guide's formula (arXiv 2602.23798). It adds up m separate Renyi bounds, which is the
  accounting of m independent noises. The copies' noises are not independent: they sum to zero.
* `joint_...`: what is true of the release, whose m copies are seen together.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pum.gaussian import epsilon_of, mu_of

DEFAULT_ORDERS = (1.5, 2.0, 3.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)  # the guide's
ALLOCATIONS = ("auto", "equalized", "varmin")
TAU_ZERO_REASON = (
    "without jitter sum_k published_k/alpha_k / sum_k 1/alpha_k is the centre itself: the zero-sum noise cancels"
)
# Calibrated noise is this much above the formula's, far more than its rounding errors.
_ROUND_UP = 1.0 + 1e-12


class InfeasibleBudget(ValueError):
    """No Renyi order meets the target (epsilon, delta), whatever the noise."""


class PaperSchedule(NamedTuple):
    """The schedule that `paper_schedule` chose: noise per layer, its Renyi order and its allocation."""

    sigmas: list[float]
    order: float
    allocation: str


def alpha_sum(copies: int, alpha_min: float, alpha_max: float, *, worst_case: bool = True) -> float:
    """S_alpha: m/alpha_min^2, or m E[1/alpha^2] = m/(alpha_min alpha_max) for alpha uniform between the two.

    Raises ValueError for m < 1, alpha_min < 1 and alpha_max < alpha_min.
    """
    _check_count("copies", copies)
    if not 1.0 <= alpha_min <= alpha_max < math.inf:
        raise ValueError(f"1 <= alpha_min <= alpha_max is needed, got {alpha_min!r} and {alpha_max!r}")
    return copies / (alpha_min * (alpha_min if worst_case else alpha_max))


def paper_schedule(
    epsilon: float,
    delta: float,
    sensitivities: Sequence[float],
    rounds: int,
    copies: int,
    alpha_min: float,
    alpha_max: float,
    *,
    orders: Sequence[float] = DEFAULT_ORDERS,
    allocation: str = "auto",
    worst_case: bool = True,
) -> PaperSchedule:
    """Noise per layer for (epsilon, delta) by the guide's formula, with the order and allocation it came from.

    For each order lambda with A = epsilon - ln(1/delta)/(lambda - 1) > 0, K = 2A/(R lambda S_alpha), and the
    noise satisfies sum_l D_l^2/sigma_l^2 = K. "equalized": sigma_l = D_l sqrt(L/K). "varmin", the minimum of
    sum sigma_l^2 under that constraint: sigma_l = sqrt(D_l) sqrt(sum D/K). "auto": of all orders and both, the
    one with the least sum of sigma_l^2. A layer with D_l = 0 gets no noise.

    Raises:
        InfeasibleBudget: A <= 0 for every order.
        ValueError: empty, negative or non-finite input; an order <= 1; an unknown allocation.
    """
    widths = _checked_widths(sensitivities)
    if not 0.0 < epsilon < math.inf or not 0.0 < delta < 1.0:
        raise ValueError(f"epsilon > 0 and 0 < delta < 1 are needed, got {epsilon!r} and {delta!r}")
    if allocation not in ALLOCATIONS:
        raise ValueError(f"unknown allocation '{allocation}'; known: {', '.join(ALLOCATIONS)}")
    charge = _rounds_times_alpha_sum(rounds, copies, alpha_min, alpha_max, worst_case)
    names = ALLOCATIONS[1:] if allocation == "auto" else (allocation,)
    best: PaperSchedule | None = None
    for order in _checked_orders(orders):
        excess = epsilon - math.log(1.0 / delta) / (order - 1.0)
        if excess <= 0.0:
            continue
        budget = 2.0 * excess / (order * charge)
        for name in names:
            sigmas = _allocate(widths, budget, name)
            if best is None or np.sum(sigmas**2) < np.sum(np.square(best.sigmas)):
                best = PaperSchedule([float(value) for value in sigmas], order, name)
    if best is None:
        raise InfeasibleBudget(
            f"no order in dp_rdp_orders exceeds 1 + ln(1/delta)/epsilon = {1 + math.log(1 / delta) / epsilon:.4g}"
        )
    return best


def paper_sigmas(
    epsilon: float,
    delta: float,
    sensitivities: Sequence[float],
    rounds: int,
    copies: int,
    alpha_min: float,
    alpha_max: float,
    *,
    orders: Sequence[float] = DEFAULT_ORDERS,
    allocation: str = "auto",
    worst_case: bool = True,
) -> list[float]:
    """The noise of `paper_schedule`, one standard deviation a layer. One layer gives the guide's single sigma,
    D_tot sqrt(R lambda S_alpha/(2A)), least over the orders."""
    return paper_schedule(
        epsilon,
        delta,
        sensitivities,
        rounds,
        copies,
        alpha_min,
        alpha_max,
        orders=orders,
        allocation=allocation,
        worst_case=worst_case,
    ).sigmas


def paper_epsilon(
    sensitivities: Sequence[float],
    sigmas: Sequence[float],
    rounds: int,
    copies: int,
    alpha_min: float,
    alpha_max: float,
    delta: float,
    *,
    orders: Sequence[float] = DEFAULT_ORDERS,
    worst_case: bool = True,
) -> float:
    """The guide's epsilon of given noise: least over orders of lambda R S_alpha K/2 + ln(1/delta)/(lambda - 1).

    K = sum_l D_l^2/sigma_l^2. inf where a layer with D_l > 0 has no noise. For comparison only: the release
    is not m independent noises, see `joint_epsilon`.
    """
    widths, stds = _checked_widths(sensitivities), _checked_stds(sigmas, len(sensitivities))
    charge = _rounds_times_alpha_sum(rounds, copies, alpha_min, alpha_max, worst_case)
    if not 0.0 < delta < 1.0:
        raise ValueError(f"delta must lie in (0, 1), got {delta!r}")
    if np.any((stds == 0.0) & (widths > 0.0)):
        return math.inf
    told = widths > 0.0
    budget = float(np.sum((widths[told] / stds[told]) ** 2))
    log_inverse_delta = math.log(1.0 / delta)
    return min(
        order * charge * budget / 2.0 + log_inverse_delta / (order - 1.0) for order in _checked_orders(orders)
    )


def joint_precision(alphas: ArrayLike, sigma: float, jitter: float) -> float:
    """1' V^-1 1 of one coordinate's m published values, V = sigma^2 m/(m-1) Dg (I - 11'/m) Dg + tau^2 I.

    Dg = diag(alphas). By the Sherman-Morrison formula with b_k = sigma^2 m/(m-1) alpha_k^2 + tau^2:
    sum 1/b + sigma^2 m/(m-1) (sum alpha/b)^2 / (tau^2 sum 1/b), which has no cancellation. inf for tau = 0
    (V is singular along 1/alpha). Never above m/tau^2, which equal alphas attain: then V 1 = tau^2 1.

    Raises ValueError for alphas below 1, negative or non-finite noise, and m = 1 with sigma > 0.
    """
    scale = np.asarray(alphas, dtype=np.float64)
    if scale.ndim != 1 or not scale.size or not np.all(np.isfinite(scale)) or np.any(scale < 1.0):
        raise ValueError("alphas must be m finite numbers, each at least 1")
    if not 0.0 <= sigma < math.inf or not 0.0 <= jitter < math.inf:
        raise ValueError(f"noise must be finite and >= 0, got sigma {sigma!r} and jitter {jitter!r}")
    if len(scale) == 1 and sigma > 0.0:
        raise ValueError("one copy has no zero-sum noise: m = 1 needs sigma = 0")
    if jitter == 0.0:
        return math.inf
    unit = max(sigma, jitter)
    tau_squared = (jitter / unit) ** 2
    if tau_squared == 0.0:
        return math.inf
    spread = (sigma / unit) ** 2 * len(scale) / max(len(scale) - 1, 1)
    variances = spread * scale**2 + tau_squared
    inverse = float(np.sum(1.0 / variances))
    along_noise = spread * float(np.sum(scale / variances)) ** 2 / (tau_squared * inverse)
    return (inverse + along_noise) / unit / unit


def joint_mu(
    sensitivities: Sequence[float], sigmas: Sequence[float], alphas: ArrayLike, jitter: float, rounds: int
) -> float:
    """mu of all rounds' copies together: mu^2 = sum over rounds and layers of D_l^2 1' V_l^-1 1.

    The adversary sees all m copies and knows every disguise and every alpha. Changing theta~ by d moves all
    copies by d, so each layer is a Gaussian mechanism; they compose by adding mu^2 (Dong, Roth, Su 2022,
    corollary 3.3), adaptively too.

    Args:
        alphas: (m,), the same in each round, or (R, m).
    """
    widths, stds = _checked_widths(sensitivities), _checked_stds(sigmas, len(sensitivities))
    _check_count("rounds", rounds)
    table = np.asarray(alphas, dtype=np.float64)
    if table.ndim == 1:
        table = np.broadcast_to(table, (rounds, table.size))
    if table.ndim != 2 or len(table) != rounds:
        raise ValueError(f"alphas must be (m,) or ({rounds}, m), got {table.shape}")
    total = 0.0
    for row in table:
        for width, std in zip(widths, stds, strict=True):
            precision = joint_precision(row, float(std), jitter)
            total += float(width) ** 2 * precision if width > 0.0 else 0.0
    return math.sqrt(total)


def joint_epsilon(
    sensitivities: Sequence[float],
    sigmas: Sequence[float],
    alphas: ArrayLike,
    jitter: float,
    rounds: int,
    delta: float,
) -> float:
    """Least epsilon for which the release of all copies of all rounds is (epsilon, delta)-DP; rounded up.

    inf where it is singular: tau = 0 and some D_l > 0 (`TAU_ZERO_REASON`). 0.0 only where every D_l is 0.
    Raises ValueError as `joint_precision` does, and for empty sensitivities and delta outside (0, 1).
    """
    if not 0.0 < delta < 1.0:
        raise ValueError(f"delta must lie in (0, 1), got {delta!r}")
    return epsilon_of(joint_mu(sensitivities, sigmas, alphas, jitter, rounds), delta)


def joint_jitter(epsilon: float, delta: float, sensitivities: Sequence[float], rounds: int, copies: int) -> float:
    """Least tau for which the joint bound meets (epsilon, delta) whatever sigma and the alphas are; rounded up.

    tau = sqrt(R m sum_l D_l^2)/mu(epsilon, delta), because 1' V^-1 1 <= m/tau^2 with equality for equal
    alphas. Zero-sum noise does not appear: against this adversary it saves at most the factor
    2 sqrt(alpha_min alpha_max)/(alpha_min + alpha_max) of tau (Kantorovich's inequality).
    """
    widths = _checked_widths(sensitivities)
    _check_count("rounds", rounds)
    _check_count("copies", copies)
    total = float(np.linalg.norm(widths))
    return math.sqrt(rounds * copies) * total / mu_of(epsilon, delta) * _ROUND_UP


def _allocate(widths: NDArray[np.float64], budget: float, name: str) -> NDArray[np.float64]:
    if name == "equalized":
        sigmas = widths * math.sqrt(len(widths) / budget)
    else:
        sigmas = np.sqrt(widths) * math.sqrt(float(np.sum(widths)) / budget)
    return np.asarray(sigmas * _ROUND_UP, dtype=np.float64)


def _rounds_times_alpha_sum(rounds: int, copies: int, low: float, high: float, worst_case: bool) -> float:
    _check_count("rounds", rounds)
    return rounds * alpha_sum(copies, low, high, worst_case=worst_case)


def _check_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")


def _checked_widths(sensitivities: Sequence[float]) -> NDArray[np.float64]:
    widths = np.asarray(sensitivities, dtype=np.float64)
    if widths.ndim != 1 or not widths.size or not np.all(np.isfinite(widths)) or np.any(widths < 0.0):
        raise ValueError("sensitivities must be a list of finite numbers >= 0, one a layer")
    return widths


def _checked_stds(sigmas: Sequence[float], count: int) -> NDArray[np.float64]:
    stds = np.asarray(sigmas, dtype=np.float64)
    if stds.shape != (count,) or not np.all(np.isfinite(stds)) or np.any(stds < 0.0):
        raise ValueError(f"sigmas must be {count} finite numbers >= 0, one for each sensitivity")
    return stds


def _checked_orders(orders: Sequence[float]) -> list[float]:
    checked = [float(order) for order in orders]
    if not checked or not all(1.0 < order < math.inf for order in checked):
        raise ValueError(f"Renyi orders must be a list of finite numbers above 1, got {list(orders)!r}")
    return checked
