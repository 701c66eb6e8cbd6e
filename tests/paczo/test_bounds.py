import math
from collections import Counter

import mpmath
import numpy as np
import pytest
from scipy import optimize

from paczo.bounds import (
    PAPER_BUDGETS,
    blind_success,
    epsilon_for_success,
    main,
    mi_for_success,
    naming_success,
    posterior_success,
    sign_excess,
    success_for_epsilon,
    tpr_at_fpr,
    tpr_for_epsilon,
)
from paczo.cells import cells
from paczo.pac_utils import draw_membership

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


def information(prior, channel):
    """I(X; Y) in nats of X ~ prior (n,) and P(Y | X) = channel (n, k), from the joint table."""
    joint = prior[:, None] * channel
    product = prior[:, None] * joint.sum(axis=0)
    return float(np.sum(joint * np.log(np.where(joint > 0, joint / np.where(product > 0, product, 1), 1))))


def random_channel(rng, inputs, outputs):
    """Rows on a simplex, some nearly deterministic, some nearly alike."""
    rows = rng.dirichlet(np.full(outputs, 10 ** rng.uniform(-1.5, 1)), inputs)
    mixed = rng.random()
    return mixed * rows + (1 - mixed) * rows.mean(axis=0)


def best_test(given_in, given_out, fpr):
    """TPR of the Neyman-Pearson test: outputs by falling likelihood ratio, the last one taken at random."""
    order = np.argsort(-given_in / np.maximum(given_out, 1e-300))
    tpr, left = 0.0, fpr
    for y in order:
        share = 1.0 if given_out[y] <= left else left / given_out[y]
        tpr, left = tpr + share * given_in[y], left - share * given_out[y]
        if share < 1:
            break
    return tpr


class TestTruePositives:
    @pytest.mark.parametrize(("mi_nats", "tpr"), [(0.33, 0.683), (0.11, 0.28), (0.68, 0.996)])
    def test_published_budgets(self, mi_nats, tpr):
        found = tpr_at_fpr(mi_nats, 0.0)
        assert found == pytest.approx(tpr, abs=5e-3 if mi_nats == 0.11 else 6e-4)
        rest = (1 - found) / (2 - found)
        entropy = -rest * math.log(rest) - (1 - rest) * math.log1p(-rest)
        assert math.log(2) - (1 - found / 2) * entropy == pytest.approx(mi_nats, rel=1e-12)

    @pytest.mark.parametrize("prior", [0.5, 0.25, 0.9])
    @pytest.mark.parametrize("fpr", [0.0, 1e-3, 0.2])
    @pytest.mark.parametrize("mi_nats", [1e-3, 0.1, 0.33])
    def test_equals_the_largest_rate_over_all_binary_channels(self, prior, fpr, mi_nats):
        """Brute force over a grid of (t, a) with a at most fpr: by data processing no other channel is better."""
        t = np.linspace(0, 1, 2001)
        best = 0.0
        for a in np.unique([*np.linspace(0, fpr, 41), fpr]):
            cells = [(prior, t, prior * t + (1 - prior) * a), (prior, 1 - t, 1 - prior * t - (1 - prior) * a)]
            cells += [(1 - prior, a + 0 * t, cells[0][2]), (1 - prior, 1 - a + 0 * t, cells[1][2])]
            mi = sum(
                w * np.where(p > 0, p * np.log(np.where(p > 0, p, 1) / np.maximum(m, 1e-300)), 0)
                for w, p, m in cells
            )
            best = max(best, *t[(mi <= mi_nats) & (t >= a)], a)
        assert best <= tpr_at_fpr(mi_nats, fpr, prior) <= best + 1 / 2000 + 1e-9

    def test_no_channel_and_no_test_is_better(self):
        """2,000 random channels from in or out to five outputs, with their best test."""
        rng, close = np.random.default_rng(0), 0
        for _ in range(2000):
            prior, fpr = rng.uniform(0.05, 0.95), rng.choice([0.0, 1e-3, 0.1, 0.5])
            given_out, given_in = channel = random_channel(rng, 2, 5)
            mi = information(np.array([1 - prior, prior]), channel)
            bound = tpr_at_fpr(mi * (1 + 1e-9) + 1e-15, fpr, prior)
            found = best_test(given_in, given_out, fpr)
            assert found <= bound + 1e-9
            close += found > fpr + 0.8 * (bound - fpr)
        assert close > 20, "the bound is never nearly reached, so a looser one would pass too"

    @pytest.mark.parametrize("prior", [1e-6, 0.25, 0.5, 0.9])
    @pytest.mark.parametrize("fpr", [0.0, 1e-9, 1e-3, 0.5])
    def test_never_below_the_true_root_and_close_to_it(self, prior, fpr):
        with mpmath.workdps(60):

            def mi(t):
                q, a = mpmath.mpf(prior), mpmath.mpf(fpr)
                mixed = q * t + (1 - q) * a
                terms = ((q, t, mixed), (q, 1 - t, 1 - mixed), (1 - q, a, mixed), (1 - q, 1 - a, 1 - mixed))
                return sum(w * p * mpmath.log(p / m) for w, p, m in terms if p > 0)

            most = mi(mpmath.mpf(1))
            for share in (1e-12, 1e-6, 1e-3, 0.1, 0.5, 0.9, 0.999):
                mi_nats = float(share * most)
                t = tpr_at_fpr(mi_nats, fpr, prior)
                assert mi(mpmath.mpf(t)) >= mi_nats
                below = mpmath.mpf(t) - mpmath.mpf(4e-16 + 1e-11 * (t - fpr))
                if below > fpr:
                    assert mi(below) < mi_nats
            assert tpr_at_fpr(float(most) * (1 + 1e-12), fpr, prior) == 1.0

    def test_ends(self):
        for fpr in (0.0, 1e-3, 0.5, 1.0):
            assert tpr_at_fpr(0.0, fpr) == fpr
            assert tpr_at_fpr(math.log(2), fpr) == tpr_at_fpr(math.inf, fpr) == 1.0
        assert tpr_at_fpr(0.1, 1.0) == 1.0
        assert tpr_at_fpr(0.693, 0.0) < 1.0
        assert tpr_at_fpr(1e-300, 0.0) > 0.0

    def test_grows_with_information_and_with_the_false_positive_rate(self):
        for values in (
            [tpr_at_fpr(mi, 1e-3) for mi in np.linspace(0, 0.7, 150).tolist()],
            [tpr_at_fpr(0.2, fpr) for fpr in np.linspace(0, 1, 150).tolist()],
        ):
            assert values == sorted(values)
            assert len(set(values)) > 60

    @pytest.mark.parametrize(
        ("mi_nats", "fpr", "prior"),
        [
            (-1e-9, 0.0, 0.5),
            (math.nan, 0.0, 0.5),
            (0.1, -0.1, 0.5),
            (0.1, 1.1, 0.5),
            (0.1, math.nan, 0.5),
            (0.1, 0.0, 0.0),
            (0.1, 0.0, 1.0),
            (0.1, 0.0, math.nan),
        ],
    )
    def test_bad_input(self, mi_nats, fpr, prior):
        with pytest.raises(ValueError, match="got"):
            tpr_at_fpr(mi_nats, fpr, prior)


class TestNaming:
    def test_published(self):
        assert naming_success(0.33, 128) == pytest.approx(0.156, abs=6e-4)
        assert naming_success(0.0, 128) == 1 / 128
        assert naming_success(math.log(128), 128) == naming_success(math.inf, 128) == 1.0
        assert naming_success(0.2, 2) == posterior_success(0.2)
        values = [naming_success(mi, 128) for mi in np.linspace(0, 5, 200).tolist()]
        assert values == sorted(values)

    def test_no_channel_names_better(self):
        rng = np.random.default_rng(1)
        for _ in range(2000):
            subsets = int(rng.integers(2, 9))
            prior = np.full(subsets, 1 / subsets)
            channel = random_channel(rng, subsets, int(rng.integers(2, 9)))
            found = float((prior[:, None] * channel).max(axis=0).sum())
            assert found <= naming_success(information(prior, channel) * (1 + 1e-9) + 1e-15, subsets) + 1e-9

    @pytest.mark.parametrize("mi_nats", [0.01, 0.2, 0.7])
    def test_equals_the_best_channel_that_an_optimiser_finds(self, mi_nats):
        """P(guess = S*) maximised over all channels from 3 subsets to 3 guesses, I(S*; guess) constrained."""
        prior, rng, best = np.full(3, 1 / 3), np.random.default_rng(2), 0.0

        def channel(x):
            rows = np.exp(x.reshape(3, 3))
            return rows / rows.sum(axis=1, keepdims=True)

        for _ in range(6):
            found = optimize.minimize(
                lambda x: -np.trace(channel(x)) / 3,
                rng.normal(size=9) + 2 * np.eye(3).ravel(),
                constraints={"type": "ineq", "fun": lambda x: mi_nats - information(prior, channel(x))},
                method="SLSQP",
            )
            if information(prior, channel(found.x)) <= mi_nats + 1e-7:
                best = max(best, -found.fun)
        assert naming_success(mi_nats, 3) == pytest.approx(best, abs=1e-4)

    @pytest.mark.parametrize(("mi_nats", "subsets"), [(-1.0, 4), (math.nan, 4), (0.1, 1), (0.1, 2.5), (0.1, True)])
    def test_bad_input(self, mi_nats, subsets):
        with pytest.raises(ValueError, match="got"):
            naming_success(mi_nats, subsets)


class TestSeveralMemberships:
    def test_blind_success_is_the_commonest_pattern(self):
        member = draw_membership(40, 128, np.random.default_rng(3))
        for count in (1, 2, 5, 40):
            columns = Counter(map(tuple, member[:count].T.tolist()))
            assert blind_success(member[:count]) == max(columns.values()) / 128
        assert blind_success(member[:1]) == 0.5
        assert blind_success(np.array([[True, True, False], [True, True, True]])) == pytest.approx(2 / 3)

    def test_no_channel_guesses_several_memberships_better(self):
        """A guess at k memberships is a guess at their pattern."""
        rng = np.random.default_rng(4)
        for _ in range(1000):
            member = draw_membership(int(rng.integers(1, 4)), 8, rng)
            channel = random_channel(rng, 8, 4)
            patterns = {}
            for m, row in enumerate(channel):
                key = tuple(member[:, m].tolist())
                patterns[key] = patterns.get(key, 0) + row / 8
            found = float(np.max(list(patterns.values()), axis=0).sum())
            mi = information(np.full(8, 1 / 8), channel) * (1 + 1e-9) + 1e-15
            assert found <= posterior_success(mi, blind_success(member)) + 1e-9

    @pytest.mark.parametrize("member", [np.ones((2, 3)), np.ones(3, bool), np.ones((0, 3), bool)])
    def test_bad_input(self, member):
        with pytest.raises(ValueError, match="membership must be bool"):
            blind_success(member)


class TestTruePositivesUnderDP:
    def test_epsilon_two_says_more_about_rare_sure_guesses_than_nats_of_the_same_success(self):
        assert tpr_for_epsilon(2.0, 1e-3) < 0.0075
        assert tpr_at_fpr(0.33, 1e-3) > 0.68

    @pytest.mark.parametrize(("eps", "delta"), [(0.0, 0.0), (1.0, 1e-5), (2.0, 0.05), (4.0, 0.5)])
    @pytest.mark.parametrize("fpr", [0.0, 1e-3, 0.3, 1.0])
    def test_largest_rate_by_linear_programming(self, eps, delta, fpr):
        grow = math.exp(eps)
        rows = [[1, -grow], [grow, -1], [-grow, 1], [-1, grow]]
        limits = [delta, grow - 1 + delta, delta, grow - 1 + delta]
        best = optimize.linprog([-1, 0], A_ub=rows, b_ub=limits, bounds=[(0, 1), (0, fpr)])
        assert tpr_for_epsilon(eps, fpr, delta) == pytest.approx(-best.fun, rel=1e-9, abs=1e-12)

    def test_ends_and_bad_input(self):
        assert tpr_for_epsilon(math.inf, 0.0) == tpr_for_epsilon(1000.0, 1e-3) == 1.0
        for eps, fpr, delta in ((-1.0, 0.1, 0.0), (math.nan, 0.1, 0.0), (1.0, 1.5, 0.0), (1.0, 0.1, 2.0)):
            with pytest.raises(ValueError, match="got"):
                tpr_for_epsilon(eps, fpr, delta)


@pytest.mark.parametrize(("charge", "slope"), [("bit", math.sqrt(1 / 2)), ("real", math.sqrt(1 / math.pi))])
def test_released_bits_follow_their_signs_as_the_charge_says(charge, slope):
    one = sign_excess(1e-4, 1, charge, num_subsets=4096, runs=4)  # signs of many subsets are even but for 2 %
    assert one == pytest.approx(slope * math.sqrt(1e-4), rel=2e-3)
    many = sign_excess(0.33, 40, charge, runs=2)
    assert many > sign_excess(0.11, 40, charge, runs=2) > slope * math.sqrt(0.11 / 40) * 0.99
    assert sign_excess(50.0, 1, charge, runs=1) > 0.49


def test_the_command_prints_what_both_charges_leave(capsys):
    main(["--mi", "0.33", "--steps", "30"])
    lines = capsys.readouterr().out.splitlines()
    found = {line.split()[1]: float(line.split()[2]) for line in lines[1:]}
    assert 1.15 < found["bit"] / found["real"] < 1.35
    for words in (["--steps", "3"], ["--mi", "0.3", "--steps", "0"]):
        with pytest.raises(SystemExit) as error:
            main(words)
        assert error.value.code == 2
