import math

import mpmath
import numpy as np
import pytest
from scipy import optimize

from paczo.bounds import (
    PAPER_BUDGETS,
    epsilon_for_success,
    mi_for_success,
    posterior_success,
    success_for_epsilon,
)
from paczo.cells import cells

PRIORS = (1e-9, 0.25, 0.5, 0.9, 1 - 1e-6)


def exact_divergence(p, prior):
    p, prior = mpmath.mpf(p), mpmath.mpf(prior)
    rest = (1 - p) * mpmath.log((1 - p) / (1 - prior)) if p < 1 else 0
    return p * mpmath.log(p / prior) + rest


def test_the_printed_budgets_are_those_of_the_cells():
    assert set(PAPER_BUDGETS) == {float(cell["mi"]) for cell in cells() if cell["mi"]}
    assert list(PAPER_BUDGETS) == sorted(PAPER_BUDGETS)


class TestPosteriorSuccess:
    @pytest.mark.parametrize(
        ("mi_nats", "p", "epsilon"), [(0.33, 0.8819, 2.01), (0.68, 0.9982, 6.32), (0.11, 0.7301, 0.995)]
    )
    def test_published_budgets(self, mi_nats, p, epsilon):
        """The paper's table: 0.33, 0.68 and 0.11 nats are about epsilon 2, 6 and 1."""
        success = posterior_success(mi_nats)
        assert success == pytest.approx(p, abs=6e-5)
        assert epsilon_for_success(success) == pytest.approx(epsilon, abs=6e-3)
        entropy = -success * math.log(success) - (1 - success) * math.log1p(-success)
        assert math.log(2) - entropy == pytest.approx(mi_nats, rel=1e-12, abs=0)

    def test_zero_nats_give_the_prior_exactly(self):
        for prior in PRIORS:
            assert posterior_success(0.0, prior) == prior
        assert epsilon_for_success(posterior_success(0.0)) == 0.0

    @pytest.mark.parametrize("prior", PRIORS)
    def test_never_below_the_true_root_and_close_to_it(self, prior):
        most = -math.log(prior)
        for share in (*np.geomspace(1e-15, 0.99, 30), 1 - 1e-6, 1 - 1e-12):
            mi_nats = most * float(share)
            success = posterior_success(mi_nats, prior)
            with mpmath.workdps(60):
                assert exact_divergence(success, prior) >= mi_nats
                slack = 4e-16 + 1e-12 * (success - prior)
                below = mpmath.mpf(success) - mpmath.mpf(slack)
                if below > prior and success < 1:
                    assert exact_divergence(below, prior) < mi_nats

    def test_tiny_information_still_helps(self):
        assert posterior_success(1e-300) > 0.5
        assert posterior_success(2e-12) == pytest.approx(0.5 + 1e-6, rel=1e-12, abs=0)
        assert posterior_success(5e-324, 0.9) > 0.9

    def test_saturates_at_minus_log_prior(self):
        for prior in PRIORS:
            assert posterior_success(-math.log(prior), prior) == 1.0
        assert posterior_success(math.inf) == 1.0
        assert posterior_success(0.6931) < 1.0

    def test_grows_with_information(self):
        values = [posterior_success(mi_nats) for mi_nats in np.linspace(0, 0.7, 200).tolist()]
        assert values == sorted(values)

    @pytest.mark.parametrize(
        ("mi_nats", "prior"),
        [(-1e-9, 0.5), (math.nan, 0.5), (0.1, 0.0), (0.1, 1.0), (0.1, math.nan), (0.1, -0.2)],
    )
    def test_bad_input(self, mi_nats, prior):
        with pytest.raises(ValueError, match="got"):
            posterior_success(mi_nats, prior)


class TestInverse:
    @pytest.mark.parametrize("prior", PRIORS)
    def test_matches_the_exact_divergence(self, prior):
        for share in (0.0, 1e-9, 1e-4, 0.02, 0.3, 0.999, 1.0):
            p = min(1.0, prior + share * (1 - prior))
            with mpmath.workdps(60):
                assert mi_for_success(p, prior) == pytest.approx(
                    float(exact_divergence(p, prior)), rel=1e-12, abs=0
                )

    def test_round_trip(self):
        for p in (0.5001, 0.731, 0.881, 0.9976):
            assert posterior_success(mi_for_success(p)) == pytest.approx(p, rel=1e-12, abs=0)

    @pytest.mark.parametrize(("p", "prior"), [(0.4, 0.5), (1.1, 0.5), (math.nan, 0.5), (0.6, 0.0)])
    def test_bad_input(self, p, prior):
        with pytest.raises(ValueError, match="got"):
            mi_for_success(p, prior)


class TestEpsilon:
    def test_values(self):
        assert epsilon_for_success(0.5) == 0.0
        assert epsilon_for_success(1.0) == math.inf
        for p in (0.5 + 2.0**-50, 0.6, 0.881, 1 - 2.0**-50):
            with mpmath.workdps(50):
                exact = mpmath.log(mpmath.mpf(p) / (1 - mpmath.mpf(p)))
            assert epsilon_for_success(p) == pytest.approx(float(exact), rel=1e-15, abs=0)

    @pytest.mark.parametrize("p", [0.49, 1.01, math.nan])
    def test_bad_input(self, p):
        with pytest.raises(ValueError, match="got"):
            epsilon_for_success(p)

    def test_inverse_of_each_other(self):
        for eps in (0.0, 1e-9, 1.0, 2.0, 10.0):
            assert epsilon_for_success(success_for_epsilon(eps)) == pytest.approx(eps, rel=1e-6, abs=0)

    @pytest.mark.parametrize(("eps", "delta"), [(0.0, 0.0), (0.0, 0.3), (1.0, 1e-5), (2.0, 0.05), (4.0, 0.5)])
    def test_best_attack_under_dp(self, eps, delta):
        """The largest (TPR + TNR) / 2 under the four (eps, delta) constraints, by linear programming."""
        grow = math.exp(eps)
        # Variables (TPR, FPR): TPR <= e^eps FPR + delta, TNR <= e^eps FNR + delta, and both reversed.
        rows = [[1, -grow], [grow, -1], [-grow, 1], [-1, grow]]
        limits = [delta, grow - 1 + delta, delta, grow - 1 + delta]
        best = optimize.linprog([-0.5, 0.5], A_ub=rows, b_ub=limits, bounds=[(0, 1), (0, 1)])
        assert success_for_epsilon(eps, delta) == pytest.approx(0.5 - best.fun, rel=1e-9, abs=0)

    def test_extremes_and_bad_input(self):
        assert success_for_epsilon(math.inf) == success_for_epsilon(800.0) == 1.0
        assert success_for_epsilon(0.0, 1.0) == 1.0
        for eps, delta in ((-1.0, 0.0), (math.nan, 0.0), (1.0, -0.1), (1.0, 1.1), (1.0, math.nan)):
            with pytest.raises(ValueError, match="got"):
                success_for_epsilon(eps, delta)
