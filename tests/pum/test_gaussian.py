"""The privacy curve of a Gaussian mechanism against multiprecision, its inverses, and its limits."""

from __future__ import annotations

import math

import mpmath
import pytest

from pum.gaussian import epsilon_of, log_delta, mu_of


@pytest.mark.parametrize(
    ("mu", "epsilon"),
    [
        (mu, epsilon)
        for mu in (1e-6, 1e-3, 0.1, 1.0, 7.0, 60.0, 1e3)
        for epsilon in (0.0, 1e-4, 0.3, 2.0, 50.0, 3e3)
        if epsilon / mu < 100
    ],
)
def test_log_delta_against_multiprecision(mu: float, epsilon: float) -> None:
    with mpmath.workdps(60 + int(epsilon**2 / mu**2 / 4)):
        upper, lower = (
            mpmath.mpf(mu) / 2 - mpmath.mpf(epsilon) / mu,
            -mpmath.mpf(mu) / 2 - mpmath.mpf(epsilon) / mu,
        )
        exact = mpmath.ncdf(upper) - mpmath.exp(epsilon) * mpmath.ncdf(lower)
        expected = float(mpmath.log(exact))
    assert log_delta(epsilon, mu) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_epsilon_and_mu_are_inverse_and_on_the_safe_side() -> None:
    for mu in (1e-3, 0.05, 1.0, 5.0, 80.0):
        for delta in (1e-12, 1e-5, 0.1):
            epsilon = epsilon_of(mu, delta)
            assert log_delta(epsilon, mu) <= math.log(delta) + 1e-9
            if epsilon > 0:
                assert log_delta(epsilon * (1 - 1e-6), mu) > math.log(delta)
                back = mu_of(epsilon, delta)
                assert back == pytest.approx(mu, rel=1e-6)
                assert epsilon_of(back, delta) <= epsilon * (1 + 3e-9)
    # Balle and Wang's figure: delta(1) of mu = 1.
    assert math.exp(log_delta(1.0, 1.0)) == pytest.approx(0.12693674, rel=1e-6)


def test_limits_of_the_gaussian_curve() -> None:
    assert epsilon_of(0.0, 1e-5) == 0.0
    assert epsilon_of(math.inf, 1e-5) == math.inf
    assert epsilon_of(1.0, 0.0) == math.inf
    assert epsilon_of(1e200, 1e-5) == math.inf
    for mu in (1e4, 4e11, 1e100):
        assert epsilon_of(mu, 1e-5) == pytest.approx(mu**2 / 2 + mu * 4.2648907939, rel=1e-6)
    assert log_delta(3.0, math.inf) == 0.0
    assert log_delta(math.inf, 3.0) == -math.inf
    for call in (
        lambda: epsilon_of(-1.0, 0.1),
        lambda: epsilon_of(math.nan, 0.1),
        lambda: epsilon_of(1.0, 1.0),
        lambda: mu_of(math.inf, 0.1),
        lambda: mu_of(-1.0, 0.1),
        lambda: mu_of(1.0, 0.0),
        lambda: log_delta(math.nan, 1.0),
        lambda: log_delta(1.0, math.nan),
    ):
        with pytest.raises(ValueError, match="must"):
            call()
