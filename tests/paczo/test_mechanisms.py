import dataclasses
import itertools
import math
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from paczo.mechanisms import NON_PRIVATE_MODES, BudgetExhausted, NonPrivate, PacMI, PacZPL, Release
from paczo.pac_utils import (
    binary_channel_mi,
    binary_entropy,
    binary_symmetric_mi,
    draw_membership,
    flip_for_mi,
    subset_means,
    subset_signs,
)
from paczo.randomness import SecretRandom

ALL_PLUS = np.ones(4, np.int8)
SPLIT = np.array([1, 1, -1, -1], np.int8)


def random_signs(rng, num_subsets):
    """Fair, lopsided, one against all the others, or unanimous."""
    p_plus = rng.choice([0.0, 0.5, 0.9, 1.0, 2.0])
    if p_plus == 2.0:
        signs = np.full(num_subsets, rng.choice([-1, 1]))
        signs[rng.integers(num_subsets)] *= -1
        return signs
    return np.where(rng.random(num_subsets) < p_plus, 1, -1)


def snapshot(mechanism):
    posterior = mechanism.log_posterior.tolist() if hasattr(mechanism, "log_posterior") else None
    return mechanism.releases, mechanism.spent_nats, posterior


class TestPacMIBudget:
    @settings(max_examples=2000, deadline=None, database=None)
    @given(
        half=st.integers(1, 10),
        log10_budget=st.floats(-6, math.log10(2)),
        steps=st.integers(1, 6),
        directions=st.integers(1, 3),
        adaptive=st.booleans(),
        charge=st.sampled_from(["real", "bit"]),
        seed=st.integers(0, 2**32 - 1),
    )
    def test_any_run_stays_within_each_share_and_the_budget(
        self, half, log10_budget, steps, directions, adaptive, charge, seed
    ):
        rng = np.random.default_rng(seed)
        num_subsets, budget = 2 * half, 10**log10_budget
        mechanism = PacMI(
            num_subsets,
            int(rng.integers(num_subsets)),
            budget,
            steps,
            rng,
            adaptive=adaptive,
            directions=directions,
            charge=charge,
        )
        charges = []
        for step in range(steps):
            spent = math.fsum(charges)
            step_share = (budget - spent) / (steps - step) if adaptive else budget / steps
            for _ in range(directions):
                signs, posterior = random_signs(rng, num_subsets), mechanism.posterior
                release = mechanism.release(signs)
                minority = min(posterior[signs == 1].sum(), posterior[signs == -1].sum())
                entropy = binary_entropy(min(max(minority, 1e-300), 0.5))
                most = min(step_share / directions, 0.999 * entropy)
                if abs(signs.sum()) == num_subsets:
                    assert (release.kind, release.bit, release.mi_nats) == ("unanimous", signs[0], 0.0)
                else:
                    assert release.kind == "noisy"
                    assert release.mi_nats <= most * (1 + 1e-9)
                    if release.flip is None or release.flip >= 2.0**-36:  # below, the grid of flips is too coarse
                        assert (1 - 1e-6) * most * (1 - 1e-9) <= release.mi_nats
                charges.append(release.mi_nats)
                assert mechanism.posterior.sum() == pytest.approx(1, abs=1e-12)
                assert np.isfinite(mechanism.log_posterior).all()
                assert mechanism.spent_nats == pytest.approx(math.fsum(charges), rel=1e-12, abs=0)
        assert mechanism.spent_nats <= budget
        assert sum(map(Fraction, charges)) <= Fraction(budget)
        before = snapshot(mechanism)
        with pytest.raises(BudgetExhausted, match=f"^all {steps} steps of {directions} releases are made$"):
            mechanism.release(random_signs(rng, num_subsets))
        assert snapshot(mechanism) == before
        assert mechanism.releases == steps * directions

    def test_long_run_spends_the_budget_and_not_more(self):
        """1e-4 nats over 2,000 steps: an absolute tolerance of 1e-6 nats overspent this ten times."""
        for adaptive, charge in itertools.product((True, False), ("real", "bit")):
            mechanism = PacMI(8, 3, 1e-4, 2000, SecretRandom.from_seed(0), adaptive=adaptive, charge=charge)
            rng = np.random.default_rng(0)
            for _ in range(2000):
                mechanism.release(rng.permutation(np.repeat([-1, 1], 4)))
            assert (1 - 1e-6) * 1e-4 <= mechanism.spent_nats <= 1e-4

    def test_adaptive_hands_on_what_free_steps_save(self):
        for adaptive, share in ((True, 0.3 / 5), (False, 0.3 / 10)):
            mechanism = PacMI(4, 0, 0.3, 10, SecretRandom.from_seed(1), adaptive=adaptive)
            for _ in range(5):
                assert mechanism.release(ALL_PLUS) == Release(1.0, 0.0, "unanimous", q_plus=1.0)
            assert mechanism.spent_nats == 0.0
            np.testing.assert_array_equal(mechanism.posterior, np.full(4, 0.25))
            assert mechanism.release(SPLIT).mi_nats == pytest.approx(share, rel=1e-6, abs=0)

    @pytest.mark.parametrize("adaptive", [True, False])
    def test_directions_split_a_share_fixed_before_the_first(self, adaptive):
        mechanism = PacMI(4, 0, 0.4, 2, SecretRandom.from_seed(2), adaptive=adaptive, directions=4)
        charges = [mechanism.release(signs).mi_nats for signs in (ALL_PLUS, SPLIT, -ALL_PLUS, SPLIT)]
        assert charges == pytest.approx([0.0, 0.05, 0.0, 0.05], rel=1e-6, abs=0)
        next_share = (0.4 - mechanism.spent_nats if adaptive else 0.2) / 4
        assert mechanism.release(SPLIT).mi_nats == pytest.approx(next_share, rel=1e-6, abs=0)

    def test_a_share_above_the_entropy_is_cut_to_999_thousandths_of_it(self):
        release = PacMI(4, 0, 50.0, 1, SecretRandom.from_seed(3)).release(SPLIT)
        assert release.mi_nats == pytest.approx(0.999 * math.log(2), rel=1e-6, abs=0)
        assert release.noise_std > 0.2

    def test_a_bit_is_cut_to_the_same_share(self):
        release = PacMI(4, 0, 50.0, 1, SecretRandom.from_seed(3), charge="bit").release(SPLIT)
        assert release.mi_nats == pytest.approx(0.999 * math.log(2), rel=1e-6, abs=0)
        assert release.mi_nats == binary_symmetric_mi(release.q_plus, release.flip)
        assert 0 < release.flip < 1e-3

    @pytest.mark.parametrize("log_minority", [-500.0, -720.0, -1e5])
    @pytest.mark.parametrize("minority_sign", [-1, 1])
    def test_tiny_minority_is_never_free(self, log_minority, minority_sign):
        mechanism = PacMI(2, 1, 5.0, 10, SecretRandom.from_seed(4), adaptive=False)
        mechanism.release([1, -1])
        mechanism._log_posterior = np.array([log_minority, 0.0])
        release = mechanism.release([minority_sign, -minority_sign])
        mass = max(math.exp(log_minority), 1e-300)
        assert release.kind == "noisy"
        assert release.bit == -minority_sign
        assert release.mi_nats == pytest.approx(0.999 * binary_entropy(mass), rel=1e-6, abs=0)
        assert np.isfinite(mechanism.log_posterior).all()
        assert mechanism.log_posterior[0] < 0.9 * log_minority


class TestPacMINoise:
    def test_noise_has_the_recorded_and_calibrated_size(self):
        """A noise 5 % too large or too small is rejected."""
        count, secret = 10_000, 2
        mechanism = PacMI(4, secret, 0.5, count, SecretRandom.from_seed(5))
        rng, noise = np.random.default_rng(5), []
        for _ in range(count):
            signs = rng.permutation(SPLIT)
            release = mechanism.release(signs)
            exact = binary_channel_mi(release.q_plus, release.noise_std)
            assert release.mi_nats == pytest.approx(exact, rel=1e-9, abs=0)
            assert release.bit == (1.0 if release.noisy_sign >= 0 else -1.0)
            noise.append((release.noisy_sign - signs[secret]) / release.noise_std)
        noise = np.array(noise)
        interval = stats.chi2.ppf([1e-4, 1 - 1e-4], count)
        assert interval[0] < np.sum(noise**2) < interval[1]
        assert stats.kstest(noise, "norm").pvalue > 1e-3
        for factor in (0.95, 1.05):
            assert not interval[0] < np.sum((factor * noise) ** 2) < interval[1]

    def test_signal_is_the_secret_subsets_sign(self):
        """With a noise std below 0.4 the bit is the secret's sign nearly always; no other subset's."""
        for secret in range(4):
            agree = np.zeros(4)
            for seed in range(200):
                signs = np.random.default_rng(seed).permutation(SPLIT)
                agree += signs == PacMI(4, secret, 50.0, 1, SecretRandom.from_seed(seed)).release(signs).bit
            assert agree[secret] > 195
            assert max(np.delete(agree, secret)) < 120

    def test_mean_information_gain_is_the_mean_charge(self):
        """E[ln(M posterior of the secret)] is the mutual information: it equals the mean charge."""
        num_runs, num_subsets, rng = 4000, 6, np.random.default_rng(6)
        gains, spent = np.zeros(num_runs), np.zeros(num_runs)
        for run in range(num_runs):
            secret = int(rng.integers(num_subsets))
            mechanism = PacMI(num_subsets, secret, 0.4, 4, rng)
            for _ in range(4):
                mechanism.release(np.where(rng.random(num_subsets) < 0.5, 1, -1))
            gains[run] = mechanism.log_posterior[secret] + math.log(num_subsets)
            spent[run] = mechanism.spent_nats
        assert abs(np.mean(gains - spent)) < 4 * np.std(gains - spent) / math.sqrt(num_runs)
        assert 0.35 < spent.mean() <= 0.4

    @pytest.mark.parametrize(("budget", "num_subsets"), [(1e-5, 6), (0.3, 128), (30.0, 8)])
    def test_posterior_is_bayes(self, budget, num_subsets):
        """Exact Gaussian likelihoods of the recorded r with the recorded sigma, multiplied in 40 digits."""
        mechanism = PacMI(num_subsets, 1, budget, 40, SecretRandom.from_seed(7), directions=2)
        rng = np.random.default_rng(7)
        with mpmath.workdps(40):
            joint = [mpmath.mpf(1)] * num_subsets
            for _ in range(80):
                signs = random_signs(rng, num_subsets)
                plus = mpmath.fsum(p for p, s in zip(joint, signs, strict=True) if s > 0)
                q_plus = plus / mpmath.fsum(joint)
                release = mechanism.release(signs)
                assert release.q_plus == pytest.approx(float(q_plus), rel=1e-9, abs=0)
                if release.kind == "noisy":
                    r, sigma = mpmath.mpf(release.noisy_sign), mpmath.mpf(release.noise_std)
                    joint = [
                        p * mpmath.exp(-((int(s) - r) ** 2) / (2 * sigma**2))
                        for p, s in zip(joint, signs, strict=True)
                    ]
                exact = [p / mpmath.fsum(joint) for p in joint]
                np.testing.assert_allclose(mechanism.posterior, np.array(exact, float), rtol=1e-9)
            log_exact = [float(mpmath.log(p)) for p in exact]
            np.testing.assert_allclose(mechanism.log_posterior, log_exact, rtol=1e-9)

    def test_bit_is_plus_one_for_a_noisy_sign_of_zero(self):
        class NoiseAgainstTheSignal(np.random.Generator):
            def standard_normal(self):
                return -1.0 / sigma

        sigma = PacMI(4, 0, 0.3, 1, SecretRandom.from_seed(0)).release(SPLIT).noise_std
        release = PacMI(4, 0, 0.3, 1, NoiseAgainstTheSignal(np.random.PCG64())).release(SPLIT)
        assert release.noisy_sign == 0.0
        assert release.bit == 1.0


class TestBit:
    """PAC-MI charged for the bit that leaves."""

    def test_the_draw_is_exact_and_a_flip_one_per_cent_off_is_rejected(self):
        """Of the 2^53 equally likely integers exactly flip * 2^53 turn the sign; and the frequency is that."""
        flip, count = 0.48, 700_000
        stream = SecretRandom.from_seed(17)
        mechanism = PacMI(2, 0, 1.0, 1, stream, charge="bit")
        turned = sum(mechanism._source.bernoulli(index, flip_on_grid(flip)) for index in range(count))
        for factor, sound in ((1.0, True), (0.99, False), (1.01, False)):
            expected = [count * factor * flip, count * (1 - factor * flip)]
            p_value = stats.chisquare([turned, count - turned], expected).pvalue
            assert p_value > 1e-3 if sound else p_value < 1e-9

    def test_the_release_turns_with_the_recorded_flip(self):
        count, secret = 8_000, 2
        mechanism = PacMI(4, secret, 16.0, count, SecretRandom.from_seed(5), charge="bit", adaptive=False)
        rng, turned, expected, variance = np.random.default_rng(5), 0, 0.0, 0.0
        for _ in range(count):
            signs = rng.permutation(SPLIT)
            release = mechanism.release(signs)
            assert release.mi_nats == binary_symmetric_mi(min(release.q_plus, 1 - release.q_plus), release.flip)
            assert release.noise_std is release.noisy_sign is None
            turned += release.bit != signs[secret]
            expected, variance = expected + release.flip, variance + release.flip * (1 - release.flip)
            mechanism._log_posterior[:] = math.log(0.25)  # or the secret would be out after a few hundred
        assert abs(turned - expected) < 5 * math.sqrt(variance)
        assert abs(1.1 * turned - expected) > 5 * math.sqrt(variance)

    @pytest.mark.parametrize("adaptive", [True, False])
    def test_the_state_follows_from_the_public_bits_alone(self, adaptive):
        """An adversary with signs (he knows the data), bits and settings, but no key, in exact fractions."""
        num_subsets, steps, directions, budget = 10, 12, 3, 0.5
        mechanism = PacMI(
            num_subsets, 7, budget, steps, SecretRandom.from_seed(4), adaptive=adaptive, directions=3, charge="bit"
        )
        rng, masses, spent = np.random.default_rng(4), [Fraction(1, num_subsets)] * num_subsets, 0.0
        for step in range(steps):
            step_nats = (budget - spent) / (steps - step) if adaptive else budget / steps
            for _ in range(directions):
                signs = random_signs(rng, num_subsets)
                bit = mechanism.release(signs).bit
                plus = sum(p for p, s in zip(masses, signs, strict=True) if s > 0)
                minority = min(plus, 1 - plus)
                if minority > 0:
                    share = min(step_nats / directions, 0.999 * binary_entropy(float(minority)))
                    flip = flip_for_mi(float(minority), share)
                    spent += binary_symmetric_mi(float(minority), flip)
                    joint = [
                        p * (1 - Fraction(flip) if s == bit else Fraction(flip))
                        for p, s in zip(masses, signs, strict=True)
                    ]
                    masses = [p / sum(joint) for p in joint]
                np.testing.assert_allclose(mechanism.posterior, [float(p) for p in masses], rtol=1e-9)
                assert mechanism.spent_nats == pytest.approx(spent, rel=1e-9, abs=0)

    @pytest.mark.parametrize("budget", [1e-5, 0.3, 30.0])
    def test_posterior_is_bayes_and_rounding_is_far_below_the_margin(self, budget):
        """Exact rational likelihoods of the recorded flips; the masses that charges rest on, to 1e-11."""
        num_subsets = 16
        mechanism = PacMI(num_subsets, 1, budget, 300, SecretRandom.from_seed(7), charge="bit")
        rng = np.random.default_rng(7)
        with mpmath.workdps(60):
            joint = [mpmath.mpf(1)] * num_subsets
            for _ in range(300):
                signs = random_signs(rng, num_subsets)
                plus = mpmath.fsum(p for p, s in zip(joint, signs, strict=True) if s > 0) / mpmath.fsum(joint)
                release = mechanism.release(signs)
                assert release.q_plus == pytest.approx(float(plus), rel=1e-11, abs=0)
                if release.kind == "noisy":
                    flip = mpmath.mpf(release.flip)
                    joint = [
                        p * (1 - flip if s == release.bit else flip) for p, s in zip(joint, signs, strict=True)
                    ]
            exact = [float(p / mpmath.fsum(joint)) for p in joint]
        np.testing.assert_allclose(mechanism.posterior, exact, rtol=1e-9)

    def test_mean_information_gain_is_the_mean_charge(self):
        num_runs, num_subsets, rng = 2000, 6, np.random.default_rng(8)
        gains, spent = np.zeros(num_runs), np.zeros(num_runs)
        for run in range(num_runs):
            secret = int(rng.integers(num_subsets))
            mechanism = PacMI(num_subsets, secret, 0.4, 4, rng, charge="bit")
            for _ in range(4):
                mechanism.release(np.where(rng.random(num_subsets) < 0.5, 1, -1))
            gains[run] = mechanism.log_posterior[secret] + math.log(num_subsets)
            spent[run] = mechanism.spent_nats
        assert abs(np.mean(gains - spent)) < 4 * np.std(gains - spent) / math.sqrt(num_runs)
        assert 0.35 < spent.mean() <= 0.4

    def test_releases_made_again_after_a_crash_are_the_same(self):
        rng = np.random.default_rng(9)
        rows = [np.where(rng.random(6) < 0.5, 1, -1) for _ in range(24)]
        whole, again = (PacMI(6, 2, 0.7, 24, SecretRandom.from_seed(9), charge="bit") for _ in range(2))
        assert [whole.release(row) for row in rows] == [again.release(row) for row in rows]
        assert snapshot(whole) == snapshot(again)

    def test_another_charge_is_refused(self):
        with pytest.raises(ValueError, match="charge must be one of real, bit, got 'both'"):
            PacMI(4, 0, 0.3, 5, SecretRandom.from_seed(0), charge="both")


def flip_on_grid(flip):
    return round(flip * 2**53) / 2**53


class TestEarlierReleases:
    """A mechanism that starts from what earlier releases have said of the same secret."""

    @pytest.mark.parametrize("charge", ["real", "bit"])
    def test_two_runs_are_one_long_run(self, charge):
        """Equal shares, one sequence of random numbers: the same releases and the same posterior, bit for bit."""
        signs = [random_signs(np.random.default_rng(20 + n), 8) for n in range(40)]
        rng, settings = np.random.default_rng(3), {"adaptive": False, "charge": charge}
        whole = PacMI(8, 5, 0.8, 40, rng, **settings)
        expected = [whole.release(row) for row in signs]
        rng = np.random.default_rng(3)
        first = PacMI(8, 5, 0.4, 20, rng, **settings)
        found = [first.release(row) for row in signs[:20]]
        second = PacMI(8, 5, 0.4, 20, rng, log_prior=first.log_posterior, **settings)
        found += [second.release(row) for row in signs[20:]]
        assert found == expected
        assert second.log_posterior.tolist() == whole.log_posterior.tolist()
        assert first.spent_nats + second.spent_nats == pytest.approx(whole.spent_nats, rel=1e-12)
        assert first.spent_nats + second.spent_nats <= 0.8

    def test_zero_nats_leave_the_posterior_as_it_is(self):
        first = PacMI(4, 1, 0.5, 3, SecretRandom.from_seed(0))
        for _ in range(3):
            first.release(SPLIT)
        second = PacZPL(4, 1, SecretRandom.from_seed(1), log_prior=first.log_posterior)
        second.release(SPLIT)
        assert second.log_posterior.tolist() == first.log_posterior.tolist()
        assert len(set(second.posterior.tolist())) == 2

    @pytest.mark.parametrize(
        "log_prior",
        [
            np.log([0.5, 0.5]),
            np.log([0.25, 0.25, 0.25, 0.26]),
            [0.0, -math.inf, -math.inf, -math.inf],
            [math.nan] * 4,
            np.log(np.full((2, 2), 0.25)),
        ],
    )
    def test_what_is_no_posterior_is_refused_without_showing_it(self, log_prior):
        for make in (lambda p: PacMI(4, 0, 0.3, 5, SecretRandom.from_seed(0), log_prior=p), zpl_from):
            with pytest.raises(ValueError, match="log_prior must be 4 finite logarithms") as caught:
                make(log_prior)
            assert "0.2" not in str(caught.value)


def zpl_from(log_prior):
    return PacZPL(4, 0, SecretRandom.from_seed(0), log_prior=log_prior)


class TestPacMIFailsClosed:
    @pytest.mark.parametrize(
        "signs",
        [
            [1, 1, -1],
            [1, 1, -1, 0],
            [1, 1, -1, 2],
            [1.0, -1.0, 1.0, math.nan],
            [0.5, -1, 1, 1],
            [True, True, True, True],
            [[1, -1, 1, 1]],
            ["1", "-1", "1", "1"],
            [1, -1, 1j, 1],
            1,
        ],
    )
    def test_bad_signs_change_nothing(self, signs):
        for mechanism in (
            PacMI(4, 0, 0.3, 5, SecretRandom.from_seed(8)),
            PacZPL(4, 0, SecretRandom.from_seed(8)),
        ):
            mechanism.release(SPLIT)
            before = snapshot(mechanism)
            with pytest.raises(ValueError, match="signs must be 4"):
                mechanism.release(signs)
            assert snapshot(mechanism) == before

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"num_subsets": 5}, "even.*5"),
            ({"num_subsets": 0}, "num_subsets.*0"),
            ({"secret": 4}, r"secret.*0\.\.3"),
            ({"secret": -1}, r"secret.*0\.\.3"),
            ({"secret": 1.0}, r"secret.*0\.\.3"),
            ({"budget_nats": 0.0}, r"budget_nats.*0\.0"),
            ({"budget_nats": -0.1}, r"budget_nats.*-0\.1"),
            ({"budget_nats": math.inf}, "budget_nats.*inf"),
            ({"budget_nats": math.nan}, "budget_nats.*nan"),
            ({"budget_nats": 1e-300}, "1e-300 nats for each"),
            ({"steps": 0}, "steps.*0"),
            ({"steps": 2.0}, r"steps.*2\.0"),
            ({"directions": 0}, "directions.*0"),
        ],
    )
    def test_bad_arguments(self, change, message):
        arguments = {
            "num_subsets": 4,
            "secret": 0,
            "budget_nats": 0.3,
            "steps": 5,
            "rng": SecretRandom.from_seed(0),
        }
        with pytest.raises(ValueError, match=message):
            PacMI(**{**arguments, **change})
        with pytest.raises(TypeError, match="SecretRandom"):
            PacMI(**{**arguments, "rng": None})

    def test_messages_and_repr_do_not_show_private_values(self):
        with pytest.raises(ValueError, match="secret") as caught:
            PacMI(128, 7777, 0.3, 5, SecretRandom.from_seed(0))
        assert "7777" not in str(caught.value)
        release = PacMI(4, 0, 0.3, 5, SecretRandom.from_seed(0)).release(SPLIT)
        assert repr(release) == f"Release(bit={release.bit}, kind='noisy')"
        with pytest.raises(dataclasses.FrozenInstanceError):
            release.bit = 0.0

    def test_returned_posterior_is_a_copy(self):
        mechanism = PacMI(4, 0, 0.3, 5, SecretRandom.from_seed(0))
        mechanism.log_posterior[:] = [0.0, 1.0, 2.0, 3.0]
        mechanism.posterior[:] = 0.0
        np.testing.assert_array_equal(mechanism.posterior, np.full(4, 0.25))


class TestResume:
    """A run that died makes its recorded releases again, from the same signs and key."""

    @pytest.mark.parametrize("directions", [1, 3])
    def test_releases_made_again_bring_the_exact_state_back(self, directions):
        """Restoring the spent total alone would leave the posterior uniform and every later sigma wrong."""

        def fresh():
            return PacMI(6, 2, 0.7, 8, SecretRandom.from_seed(9), directions=directions)

        rng = np.random.default_rng(9)
        signs = [np.where(rng.random(6) < 0.5, 1, -1) for _ in range(8 * directions)]
        whole = fresh()
        states, releases = [], []
        for row in signs:
            states.append(snapshot(whole))
            releases.append(whole.release(row))
        assert len({release.noise_std for release in releases}) > 4
        for start, state in enumerate(states):
            resumed = fresh()
            assert [resumed.release(row) for row in signs[:start]] == releases[:start]
            assert snapshot(resumed) == state
            assert [resumed.release(row) for row in signs[start:]] == releases[start:]
            assert snapshot(resumed) == snapshot(whole)
            with pytest.raises(BudgetExhausted):
                resumed.release(signs[0])

    def test_coins_are_tossed_again_alike(self):
        first, again = (PacZPL(4, 1, SecretRandom.from_seed(10)) for _ in range(2))
        bits = [first.release(SPLIT).bit for _ in range(9)]
        assert bits == [again.release(SPLIT).bit for _ in range(9)]
        assert set(bits) == {-1.0, 1.0}

    def test_a_skipped_release_is_counted(self):
        whole, resumed = (NonPrivate("random_sign", [True, False], SecretRandom.from_seed(3)) for _ in range(2))
        bits = [whole.release(np.ones(2)).bit for _ in range(9)]
        for _ in range(4):
            resumed.skip()
        assert [resumed.release(np.ones(2)).bit for _ in range(5)] == bits[4:]
        assert resumed.releases == whole.releases == 9
        assert len(set(bits[4:])) == 2


class TestPacZPL:
    @pytest.mark.parametrize("make_rng", [SecretRandom.from_seed, np.random.default_rng])
    def test_releases_are_the_same_for_every_secret(self, make_rng):
        num_subsets, rng = 10, np.random.default_rng(13)
        rows = [random_signs(rng, num_subsets) for _ in range(300)]
        runs = []
        for secret in range(num_subsets):
            mechanism = PacZPL(num_subsets, secret, make_rng(13))
            runs.append([mechanism.release(row) for row in rows])
            assert mechanism.spent_nats == 0.0
            np.testing.assert_array_equal(mechanism.posterior, np.full(num_subsets, 0.1))
            np.testing.assert_allclose(np.exp(mechanism.log_posterior), 0.1)
            assert mechanism.releases == 300
        assert all(run == runs[0] for run in runs)
        for row, release in zip(rows, runs[0], strict=True):
            unanimous = abs(row.sum()) == num_subsets
            assert release.kind == ("unanimous" if unanimous else "coin")
            assert release.mi_nats == 0.0
            if unanimous:
                assert release.bit == row[0]

    @pytest.mark.parametrize("make_rng", [SecretRandom.from_seed, np.random.default_rng])
    def test_trits_are_the_same_for_every_secret(self, make_rng):
        """Abstaining: the common sign, or 0. No random number is drawn at all."""
        num_subsets, rng = 10, np.random.default_rng(13)
        rows = [random_signs(rng, num_subsets) for _ in range(300)]
        for secret in range(num_subsets):
            mechanism = PacZPL(num_subsets, secret, make_rng(secret), abstain=True)
            for row in rows:
                release = mechanism.release(row)
                if abs(row.sum()) == num_subsets:
                    assert (release.bit, release.kind) == (row[0], "unanimous")
                else:
                    assert (release.bit, release.kind) == (0.0, "abstain")
                assert release.mi_nats == 0.0
            assert mechanism.spent_nats == 0.0
            np.testing.assert_array_equal(mechanism.posterior, np.full(num_subsets, 0.1))
            assert mechanism.releases == 300

    def test_coin_is_fair_and_ignores_the_data(self):
        rng, lopsided = SecretRandom.from_seed(14), np.array([1] * 127 + [-1])
        bits = []
        for signs in (lopsided, -lopsided):
            mechanism = PacZPL(128, 127, rng)
            bits.append([mechanism.release(signs).bit for _ in range(4000)])
        assert bits[0] == bits[1]
        assert set(bits[0]) == {-1.0, 1.0}
        assert abs(sum(bits[0])) < 4 * math.sqrt(4000)

    def test_bad_arguments(self):
        for num_subsets, secret in ((5, 0), (4, 4), (4, -1), (4, None)):
            with pytest.raises(ValueError, match="must be"):
                PacZPL(num_subsets, secret, SecretRandom.from_seed(0))
        with pytest.raises(TypeError, match="rng"):
            PacZPL(4, 0, None)


class TestNonPrivate:
    def test_each_mode(self):
        rng = np.random.default_rng(15)
        derivatives, member = rng.standard_normal(40).astype(np.float32), draw_membership(40, 4, rng)
        for secret, flip in itertools.product(range(4), (1, -1)):
            values, members = flip * derivatives, member[:, secret]
            full, half = values.astype(float).mean(), values[members].astype(float).mean()
            expected = {
                "none": full,
                "quant_full": np.sign(full),
                "raw_half": half,
                "quant_half": np.sign(half),
            }
            for mode, value in expected.items():
                mechanism = NonPrivate(mode, members, SecretRandom.from_seed(0))
                release = mechanism.release(values)
                assert release.bit == pytest.approx(value, rel=1e-12, abs=0)
                assert release.kind == "non-private"
                assert release.mi_nats is mechanism.spent_nats is None
                assert mechanism.posterior is None
            for mode, all_subsets in (("raw_half", subset_means), ("quant_half", subset_signs)):
                exact = all_subsets(values, member)[secret]
                assert NonPrivate(mode, members, rng).release(values).bit == exact
        assert set(NON_PRIVATE_MODES) == {*expected, "random_sign"}

    def test_random_sign_is_a_fair_coin(self):
        runs = []
        for values in (np.ones(3), -np.ones(3)):
            mechanism = NonPrivate("random_sign", [True, False, True], SecretRandom.from_seed(16))
            runs.append([mechanism.release(values).bit for _ in range(2000)])
            assert mechanism.spent_nats is mechanism.release(values).mi_nats is None
        assert runs[0] == runs[1]
        assert set(runs[0]) == {-1.0, 1.0}
        assert abs(sum(runs[0])) < 4 * math.sqrt(2000)

    def test_empty_subset_and_ties(self):
        nobody, values = np.zeros(2, bool), np.array([-1.0, 1.0])
        assert NonPrivate("raw_half", nobody, SecretRandom.from_seed(0)).release(values).bit == 0.0
        assert NonPrivate("quant_half", nobody, SecretRandom.from_seed(0)).release(values).bit == 1.0
        assert NonPrivate("quant_full", nobody, SecretRandom.from_seed(0)).release(values).bit == 1.0

    def test_bad_arguments(self):
        rng = SecretRandom.from_seed(0)
        with pytest.raises(ValueError, match=r"random_sign.*got 'zpl'"):
            NonPrivate("zpl", [True], rng)
        for members in ([1, 0], [], [[True]]):
            with pytest.raises(ValueError, match="members must be bool"):
                NonPrivate("none", members, rng)
        mechanism = NonPrivate("none", [True, False], rng)
        for values in ([1.0, math.nan], [1.0], [1.0, 2.0, 3.0]):
            with pytest.raises(ValueError, match="derivatives"):
                mechanism.release(values)
        assert mechanism.releases == 0


def test_privacy_core_works_without_torch():
    program = """
import sys
sys.modules["torch"] = None
import numpy as np
from paczo import bounds, mechanisms, pac_utils, randomness
rng = randomness.SecretRandom.from_entropy()
member = pac_utils.draw_membership(20, 4, np.random.default_rng(0))
signs = pac_utils.subset_signs(np.linspace(-1, 1, 20), member)
mechanism = mechanisms.PacMI(4, rng.uniform_index("secret", 0, 4), 0.3, 2, rng)
assert mechanism.release(signs).bit in (-1.0, 1.0)
assert bounds.posterior_success(mechanism.spent_nats) < 0.9
del sys.modules["torch"]
heavy = [name for name in sys.modules if name.partition(".")[0] in ("torch", "transformers")]
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120, cwd=Path(__file__).parents[2])
