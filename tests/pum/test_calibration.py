"""Both accountings against independent computations, and the attack that tau = 0 allows."""

from __future__ import annotations

import ast
import math
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats

from pum import calibration, gaussian
from pum.calibration import (
    InfeasibleBudget,
    alpha_sum,
    joint_epsilon,
    joint_jitter,
    joint_mu,
    joint_precision,
    paper_epsilon,
    paper_schedule,
    paper_sigmas,
)
from pum.gaussian import epsilon_of
from pum.noise import zero_sum_noise

WIDTHS = [0.5, 2.0, 1.0, 0.1]
TARGET: dict[str, Any] = {
    "epsilon": 4.0,
    "delta": 1e-5,
    "sensitivities": WIDTHS,
    "rounds": 2,
    "copies": 4,
    "alpha_min": 1.2,
    "alpha_max": 1.5,
}


def covariance(alphas: list[float], sigma: float, jitter: float) -> np.ndarray:
    m = len(alphas)
    scale = np.diag(alphas)
    return sigma**2 * m / (m - 1) * scale @ (np.eye(m) - 1 / m) @ scale + jitter**2 * np.eye(m)


# --- the guide's formula


def test_alpha_sum_against_integration() -> None:
    assert alpha_sum(4, 1.2, 1.5) == pytest.approx(4 / 1.44)
    expected = stats.uniform(1.2, 0.3).expect(lambda alpha: alpha**-2)
    assert alpha_sum(4, 1.2, 1.5, worst_case=False) == pytest.approx(4 * expected)
    assert alpha_sum(4, 1.2, 1.2, worst_case=False) == pytest.approx(4 / 1.44)
    with pytest.raises(ValueError, match="alpha_min"):
        alpha_sum(4, 0.9, 1.5)


@pytest.mark.parametrize("worst_case", [True, False])
@pytest.mark.parametrize("allocation", ["auto", "equalized", "varmin"])
def test_sigmas_against_brute_force_over_orders(allocation: str, worst_case: bool) -> None:
    orders = [1.5, 2.0, 3.0, 5.0, 7.0, 9.0, 30.0]
    best = None
    s_alpha = 4 / 1.44 if worst_case else 4 / (1.2 * 1.5)
    for order in orders:
        excess = 4.0 - math.log(1e5) / (order - 1)
        if excess <= 0:
            continue
        k = 2 * excess / (2 * order * s_alpha)
        for name in ("equalized", "varmin"):
            if allocation in ("auto", name):
                sigmas = [
                    d * math.sqrt(4 / k) if name == "equalized" else math.sqrt(d) * math.sqrt(sum(WIDTHS) / k)
                    for d in WIDTHS
                ]
                if best is None or sum(s * s for s in sigmas) < sum(s * s for s in best):
                    best = sigmas
    found = paper_sigmas(**TARGET, orders=orders, allocation=allocation, worst_case=worst_case)
    assert found == pytest.approx(best, rel=1e-9)
    # Both allocations spend exactly the target, rounded to the safe side.
    back = paper_epsilon(WIDTHS, found, 2, 4, 1.2, 1.5, 1e-5, orders=orders, worst_case=worst_case)
    assert back == pytest.approx(4.0, rel=1e-9)
    assert back <= 4.0


def test_no_other_allocation_is_cheaper_and_single_sigma_is_one_layer() -> None:
    schedule = paper_schedule(**TARGET)
    assert schedule.allocation == "varmin"
    rng = np.random.default_rng(0)
    spent = sum((d / s) ** 2 for d, s in zip(WIDTHS, schedule.sigmas, strict=True))
    for _ in range(200):
        trial = np.array(schedule.sigmas) * np.exp(0.1 * rng.standard_normal(4))
        trial *= math.sqrt(np.sum((np.array(WIDTHS) / trial) ** 2) / spent)
        assert np.sum(trial**2) >= np.sum(np.square(schedule.sigmas)) * (1 - 1e-9)
    total = math.hypot(*WIDTHS)
    (single,) = paper_sigmas(**{**TARGET, "sensitivities": [total]}, orders=[8.0])
    excess = 4.0 - math.log(1e5) / 7
    assert single == pytest.approx(total * math.sqrt(2 * 8 * (4 / 1.44) / (2 * excess)))


def test_limits_of_the_guide_s_formula() -> None:
    with pytest.raises(InfeasibleBudget, match="no order"):
        paper_sigmas(**TARGET, orders=[1.5, 2.0])
    assert paper_sigmas(**{**TARGET, "sensitivities": [0.0, 1.0]})[0] == 0.0
    assert paper_epsilon([1.0, 1.0], [1.0, 0.0], 1, 2, 1.0, 1.5, 1e-5) == math.inf
    assert paper_epsilon([1.0, 0.0], [1.0, 0.0], 1, 2, 1.0, 1.5, 1e-5) < math.inf
    wrong: list[dict[str, Any]] = [
        {"sensitivities": []},
        {"sensitivities": [-1.0]},
        {"sensitivities": [math.nan]},
        {"epsilon": 0.0},
        {"epsilon": math.nan},
        {"delta": 0.0},
        {"rounds": 0},
        {"copies": True},
        {"alpha_min": 0.5},
        {"orders": [1.0]},
        {"orders": []},
        {"allocation": "best"},
    ]
    for change in wrong:
        with pytest.raises(ValueError, match=r"need|must|unknown"):
            paper_sigmas(**{**TARGET, **change})
    with pytest.raises(ValueError, match="2 finite"):
        paper_epsilon([1.0, 1.0], [1.0], 1, 2, 1.0, 1.5, 1e-5)
    with pytest.raises(ValueError, match="delta"):
        paper_epsilon([1.0], [1.0], 1, 2, 1.0, 1.5, 0.0)


# --- the joint accounting


@pytest.mark.parametrize("jitter", [1e-6, 1e-2, 1.0])
@pytest.mark.parametrize("sigma", [0.0, 1e-3, 0.5, 40.0])
def test_precision_against_a_multiprecision_inverse(sigma: float, jitter: float) -> None:
    alphas = [1.0, 1.1, 1.37, 1.5, 1.2]
    with mpmath.workdps(60):
        m, ratio = 5, mpmath.mpf(5) / 4
        matrix = mpmath.matrix(m, m)
        for i in range(m):
            for j in range(m):
                center = (1 if i == j else 0) - mpmath.mpf(1) / m
                matrix[i, j] = mpmath.mpf(sigma) ** 2 * ratio * mpmath.mpf(alphas[i]) * alphas[j] * center
            matrix[i, i] += mpmath.mpf(jitter) ** 2
        solution = mpmath.lu_solve(matrix, mpmath.ones(m, 1))
        expected = float(sum(solution))
    found = joint_precision(alphas, sigma, jitter)
    assert found == pytest.approx(expected, rel=1e-11)
    assert found <= 5 / jitter**2 * (1 + 1e-12)
    # Kantorovich: spread alphas save no more than this.
    assert found >= 5 / jitter**2 * 4 * 1.0 * 1.5 / 2.5**2 * (1 - 1e-12)


def test_equal_alphas_are_the_worst_case() -> None:
    for sigma in (0.0, 0.1, 10.0):
        assert joint_precision([1.3] * 6, sigma, 0.2) == pytest.approx(6 / 0.04)


def test_tau_zero_is_singular_and_says_why() -> None:
    assert joint_epsilon(WIDTHS, [9.0] * 4, [1.0, 1.5], 0.0, 1, 1e-5) == math.inf
    assert joint_precision([1.0, 1.2], 1.0, 1e-300) == math.inf
    assert "centre itself" in calibration.TAU_ZERO_REASON
    eigenvalues = np.linalg.eigvalsh(covariance([1.0, 1.2, 1.5], 2.0, 0.0))
    assert abs(eigenvalues[0]) < 1e-12
    assert joint_epsilon([0.0], [1.0], [1.0, 1.5], 0.0, 1, 1e-5) == 0.0


def test_joint_epsilon_against_the_whole_gaussian() -> None:
    """All copies, rounds, layers and coordinates as one Gaussian with a dense covariance."""
    widths, sigmas, jitter, delta = [0.7, 0.3], [0.5, 1.5], 0.8, 1e-3
    alphas = [[1.0, 1.2, 1.5], [1.1, 1.4, 1.3]]
    shift, blocks = [], []
    for row in alphas:
        for width, sigma in zip(widths, sigmas, strict=True):
            direction = np.random.default_rng(3).standard_normal(5)
            direction *= width / np.linalg.norm(direction)
            for entry in direction:
                shift.extend([entry] * 3)
                blocks.append(covariance(row, sigma, jitter))
    full = np.zeros((len(shift), len(shift)))
    for index, block in enumerate(blocks):
        full[3 * index : 3 * index + 3, 3 * index : 3 * index + 3] = block
    mu = math.sqrt(np.array(shift) @ np.linalg.solve(full, np.array(shift)))
    assert joint_mu(widths, sigmas, alphas, jitter, 2) == pytest.approx(mu, rel=1e-10)
    epsilon = joint_epsilon(widths, sigmas, alphas, jitter, 2, delta)
    assert epsilon == pytest.approx(epsilon_of(mu, delta), rel=1e-8)


def test_joint_epsilon_against_a_monte_carlo_hockey_stick() -> None:
    """delta(epsilon) = E_P[(1 - e^epsilon q/p)+] with the mechanism's own noise, in 2 layers x 30 coordinates."""
    rng_torch = torch.Generator().manual_seed(0)
    alphas, sigmas, widths, jitter, dims, runs = [1.0, 1.2, 1.5, 1.1], [0.4, 0.2], [0.9, 0.5], 0.9, 30, 40_000
    log_ratio = np.zeros(runs)
    for sigma, width in zip(sigmas, widths, strict=True):
        shift = np.random.default_rng(1).standard_normal(dims)
        shift *= width / np.linalg.norm(shift)
        inverse = np.linalg.inv(covariance(alphas, sigma, jitter))
        noise = zero_sum_noise((runs, dims), 4, sigma, rng_torch).numpy()
        noise = noise * np.array(alphas)[:, None, None]
        noise = noise + jitter * torch.randn(noise.shape, generator=rng_torch).numpy()
        moved = noise + shift  # the same published values, seen from the other centre
        quadratic = [np.einsum("krd,kj,jrd->r", value, inverse, value) for value in (noise, moved)]
        log_ratio += 0.5 * (quadratic[0] - quadratic[1])
    for delta in (0.05, 0.01):
        epsilon = joint_epsilon(widths, sigmas, alphas, jitter, 1, delta)
        samples = np.maximum(0.0, 1.0 - np.exp(epsilon + log_ratio))
        error = samples.std() / math.sqrt(runs)
        assert abs(samples.mean() - delta) < 4 * error
        # Twenty percent more noise, or the noises taken as independent, would be told apart.
        wrong = joint_epsilon(widths, sigmas, alphas, 1.2 * jitter, 1, delta)
        assert np.maximum(0.0, 1.0 - np.exp(wrong + log_ratio)).mean() > delta + 8 * error


def test_calibrated_jitter_meets_the_target_for_all_alphas_and_sigmas() -> None:
    jitter = joint_jitter(4.0, 1e-5, WIDTHS, 2, 4)
    rng = np.random.default_rng(0)
    for sigma in (0.0, 0.1, 100.0):
        assert joint_epsilon(WIDTHS, [sigma] * 4, [1.0] * 4, jitter, 2, 1e-5) == pytest.approx(4.0, rel=1e-7)
        for _ in range(20):
            alphas = rng.uniform(1.0, 1.5, size=(2, 4))
            assert joint_epsilon(WIDTHS, [sigma] * 4, alphas, jitter, 2, 1e-5) <= 4.0
    assert joint_epsilon(WIDTHS, [0.0] * 4, [1.0] * 4, jitter / 1.01, 2, 1e-5) > 4.0


def test_the_guide_s_formula_is_that_of_independent_noise() -> None:
    """With alpha 1, S_alpha = m: its noise as *independent* noise on each copy meets the target jointly."""
    target = {**TARGET, "alpha_min": 1.0, "alpha_max": 1.0, "sensitivities": [1.0]}
    (sigma,) = paper_sigmas(**target, orders=list(np.linspace(1.1, 60, 600)))
    assert joint_epsilon([1.0], [0.0], [1.0] * 4, sigma, 2, 1e-5) <= 4.0
    assert sigma < 1.3 * joint_jitter(4.0, 1e-5, [1.0], 2, 4)
    assert joint_epsilon([1.0], [sigma], [1.0] * 4, 0.0, 2, 1e-5) == math.inf


def test_limits_of_the_joint_accounting() -> None:
    for call in (
        lambda: joint_precision([0.9, 1.0], 1.0, 1.0),
        lambda: joint_precision([], 1.0, 1.0),
        lambda: joint_precision([math.nan, 1.0], 1.0, 1.0),
        lambda: joint_precision([1.0, 1.0], -1.0, 1.0),
        lambda: joint_precision([1.0, 1.0], 1.0, math.nan),
        lambda: joint_precision([1.0], 1.0, 1.0),
        lambda: joint_epsilon([], [], [1.0, 1.0], 1.0, 1, 0.1),
        lambda: joint_epsilon([1.0], [1.0], [1.0, 1.0], 1.0, 1, 0.0),
        lambda: joint_mu([1.0], [1.0], [[1.0, 1.0]], 1.0, 2),
        lambda: joint_mu([1.0], [1.0], [1.0, 1.0], 1.0, 0),
        lambda: joint_jitter(1.0, 0.1, [1.0], 1, 0),
    ):
        with pytest.raises(ValueError, match=r"must|need"):
            call()


# --- the attack


def harmonic(published: np.ndarray, alphas: np.ndarray) -> np.ndarray:
    return (published / alphas[:, None]).sum(0) / (1 / alphas).sum()


def publish(center: np.ndarray, alphas: np.ndarray, sigma: float, jitter: float, seed: int) -> np.ndarray:
    gen = torch.Generator().manual_seed(seed)
    noise = zero_sum_noise(center.shape, len(alphas), sigma, gen).double().numpy()
    own = torch.randn(noise.shape, generator=gen, dtype=torch.float64).numpy()
    return center + alphas[:, None] * noise + jitter * own


def test_attack_recovers_the_centre_without_jitter_and_not_with_it() -> None:
    rng = np.random.default_rng(0)
    center, alphas = 0.02 * rng.standard_normal(50_000), rng.uniform(1.0, 1.5, 4)
    rms = float(np.sqrt(np.mean(center**2)))
    for sigma in (0.01 * rms, rms, 100 * rms):
        error = harmonic(publish(center, alphas, sigma, 0.0, 1), alphas) - center
        assert float(np.abs(error).max()) < 1e-6 * max(sigma, rms)
    width = 2 * 0.05 * float(np.linalg.norm(center))
    jitter = joint_jitter(8.0, 1e-5, [width], 1, 4)
    for sigma in (0.01 * rms, rms):
        error = harmonic(publish(center, alphas, sigma, jitter, 2), alphas) - center
        # No unbiased estimator is better than 1/sqrt(1'V^-1 1) a coordinate (Cramer and Rao).
        floor = joint_precision(alphas, sigma, jitter) ** -0.5
        assert float(np.std(error)) >= 0.98 * floor
        assert float(np.std(error)) > 10 * rms


def test_telling_two_neighbouring_centres_apart_obeys_the_bound() -> None:
    """The likelihood-ratio test between two centres at distance D, on the calibrated release."""
    rng = np.random.default_rng(1)
    alphas, sigma, epsilon, delta = np.array([1.0, 1.1, 1.3, 1.5]), 0.05, 1.0, 0.01
    shift = rng.standard_normal(40)
    shift /= np.linalg.norm(shift)
    jitter = joint_jitter(epsilon, delta, [1.0], 1, 4)
    weights = np.linalg.solve(covariance(list(alphas), sigma, jitter), np.ones(4))
    scores = np.array(
        [[weights @ publish(c, alphas, sigma, jitter, s) @ shift for s in range(3000)] for c in (0 * shift, shift)]
    )
    for threshold in np.quantile(scores, [0.2, 0.5, 0.8, 0.95]):
        false, true = (scores > threshold).mean(axis=1)
        assert true <= math.exp(epsilon) * false + delta + 0.04
    assert (scores[1] > scores[1].mean() / 2).mean() > (scores[0] > scores[1].mean() / 2).mean() + 0.05


def test_secret_alphas_do_not_stop_the_attack() -> None:
    """Differences of copies hold no centre, only noise: their variances give the alphas away.

    E|p_k - p_j|^2/n = sigma^2 m/(m-1) (a_k^2 + a_j^2 - (a_k - a_j)^2/m), here solved for the alphas by least
    squares. What remains is an error of about sigma/sqrt(n), so the bound must not rest on the alphas.
    """
    from scipy.optimize import least_squares

    rng = np.random.default_rng(2)
    center, alphas = 0.02 * rng.standard_normal(400_000), rng.uniform(1.0, 1.5, 4)
    rms = float(np.sqrt(np.mean(center**2)))
    published = publish(center, alphas, rms, 0.0, 3)
    pairs = [(k, j) for k in range(4) for j in range(k)]
    seen = np.array([np.mean((published[k] - published[j]) ** 2) for k, j in pairs]) / rms**2

    def residual(guess: np.ndarray) -> np.ndarray:
        a = guess
        return np.array([4 / 3 * (a[k] ** 2 + a[j] ** 2 - (a[k] - a[j]) ** 2 / 4) for k, j in pairs]) - seen

    guess = least_squares(residual, np.full(4, 1.2)).x
    error = harmonic(published, guess) - center
    assert float(np.sqrt(np.mean(error**2))) < 0.01 * rms
    naive = published.mean(0) - center
    assert float(np.sqrt(np.mean(naive**2))) > 0.05 * rms


def test_the_accounting_imports_no_torch() -> None:
    for module in (calibration, gaussian):
        tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
        imported = {
            name.split(".")[0]
            for node in ast.walk(tree)
            for name in (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
        }
        assert imported <= {"math", "collections", "typing", "numpy", "scipy", "pum"}
