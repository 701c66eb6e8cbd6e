import itertools
import math
import sys
import timeit
from collections import Counter
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from paczo.pac_utils import (
    binary_channel_mi,
    binary_entropy,
    calibrated_noise,
    clip_derivatives,
    draw_membership,
    sigma_for_binary_mi,
    subset_means,
    subset_signs,
)

MASSES = (1e-12, 1e-6, 0.01, 0.12, 0.5, 1 - 1e-6)
RELATIVE_TOLERANCE = 1e-6


def exact_entropy(q):
    q = mpmath.mpf(q)
    return -q * mpmath.log(q) - (1 - q) * mpmath.log1p(-q)


def exact_mi(q, sigma):
    """q KL(f+ || mixture) + (1-q) KL(f- || mixture) by Gauss-Legendre quadrature in 50 digits."""
    with mpmath.workdps(50):
        rare = min(mpmath.mpf(q), 1 - mpmath.mpf(q))
        sigma = mpmath.mpf(sigma)
        snr_root = 1 / sigma

        def integrand(t):
            llr = 2 * t * snr_root
            log_mixture = mpmath.log1p(rare * mpmath.expm1(llr))
            plus = mpmath.exp(-((t - snr_root) ** 2) / 2)
            minus = mpmath.exp(-((t + snr_root) ** 2) / 2)
            return plus * (llr - log_mixture) - (1 - rare) / rare * minus * log_mixture

        edge = snr_root + 11
        threshold = mpmath.log((1 - rare) / rare) * sigma / 2
        inner = [
            -snr_root,
            snr_root,
            threshold,
            threshold - 4 * sigma,
            threshold + 4 * sigma,
            *range(-8, 9, 4),
        ]
        points = sorted({-edge, edge, *(x for x in inner if -edge < x < edge)})
        return rare * mpmath.quad(integrand, points, method="gauss-legendre") / mpmath.sqrt(2 * mpmath.pi)


def requests(q):
    entropy = binary_entropy(q)
    # The two middle ones lie on either side of where the numerics change the integral they use.
    shares = (0.019, 0.021, 0.5, 0.97, 1 - 1e-9)
    return [1e-12, math.sqrt(1e-12 * entropy), 1e-3 * entropy, *(share * entropy for share in shares)]


class TestCalibration:
    @pytest.mark.parametrize("q", MASSES)
    def test_spends_what_was_asked_and_never_more(self, q):
        for mi_nats in requests(q):
            sigma = sigma_for_binary_mi(q, mi_nats)
            exact = exact_mi(q, sigma)
            assert (1 - RELATIVE_TOLERANCE) * mi_nats <= exact <= mi_nats, (q, mi_nats, sigma)
            assert abs(binary_channel_mi(q, sigma) / exact - 1) < 1e-11

    @pytest.mark.parametrize(
        ("q", "mi_nats"),
        [(1e-300, 1e-300), (1e-300, 1e-310), (1e-300, 3e-298), (1e-300, 6.9e-298), (1e-100, 1e-103)],
    )
    def test_extreme_masses_and_budgets(self, q, mi_nats):
        sigma = sigma_for_binary_mi(q, mi_nats)
        assert (1 - RELATIVE_TOLERANCE) * mi_nats <= exact_mi(q, sigma) <= mi_nats

    @pytest.mark.parametrize("mi_nats", [1e-12, 1e-50, 1e-300, 1e-310])
    def test_tiny_budgets_at_even_odds(self, mi_nats):
        """x - x^2 <= I <= x with x = 1 / (2 sigma^2): the mmse falls from 1 with slope -1 at most."""
        linear = 1 / (2 * mpmath.mpf(sigma_for_binary_mi(0.5, mi_nats)) ** 2)
        assert (1 - RELATIVE_TOLERANCE) * mi_nats <= linear - linear**2 <= linear <= mi_nats

    @pytest.mark.parametrize(("q", "mi_nats"), [(0.5, 5e-8), (0.01, 1e-6)])
    def test_tolerance_is_relative_where_an_absolute_one_overspent(self, q, mi_nats):
        absolute_tolerance = 1e-6
        assert mi_nats <= absolute_tolerance
        assert (1 - RELATIVE_TOLERANCE) * mi_nats <= exact_mi(q, sigma_for_binary_mi(q, mi_nats)) <= mi_nats

    @settings(max_examples=1000, deadline=None, database=None)
    @given(st.floats(-300, math.log10(0.5)), st.floats(-15, 0), st.booleans())
    def test_window_for_any_mass(self, log10_q, log10_share, from_above):
        q = 10**log10_q
        entropy = binary_entropy(q)
        mi_nats = entropy * (1 - 10**log10_share) if from_above else entropy * 10**log10_share
        if 0 < mi_nats < entropy:
            spent = binary_channel_mi(q, sigma_for_binary_mi(q, mi_nats))
            assert (1 - RELATIVE_TOLERANCE) * mi_nats <= spent <= mi_nats

    def test_limits(self):
        for q in (*MASSES, 0.0, 1.0):
            assert sigma_for_binary_mi(q, 0.0) == math.inf
            assert sigma_for_binary_mi(q, math.inf) == 0.0
            if q not in (0.0, 1.0):
                assert sigma_for_binary_mi(q, binary_entropy(q)) == 0.0
                assert sigma_for_binary_mi(q, math.nextafter(binary_entropy(q), 0.0)) > 0.0
        assert sigma_for_binary_mi(0.0, 1e-300) == 0.0
        assert sigma_for_binary_mi(0.5, math.log(2)) == 0.0
        # Below 1e-300 the mass is taken as larger than it is: less is spent, never more.
        assert binary_channel_mi(1e-310, sigma_for_binary_mi(1e-310, 1e-308)) <= 1e-308

    @pytest.mark.parametrize(
        ("q", "mi_nats"), [(math.nan, 0.1), (-0.1, 0.1), (1.1, 0.1), (0.5, -1e-9), (0.5, math.nan)]
    )
    def test_bad_input(self, q, mi_nats):
        bad = q if not 0 <= q <= 1 else mi_nats
        with pytest.raises(ValueError, match=str(bad).replace(".", r"\.")):
            sigma_for_binary_mi(q, mi_nats)

    def test_mean_call_is_below_a_millisecond(self):
        calls = [(q, mi_nats) for q in MASSES for mi_nats in requests(q)]

        def calibrate_all():
            for q, mi_nats in calls:
                sigma_for_binary_mi(q, mi_nats)

        calibrate_all()
        assert min(timeit.repeat(calibrate_all, number=5, repeat=5)) / 5 / len(calls) < 1e-3

    def test_charge_of_a_release(self):
        for minority in (0.5, 0.2, 1e-9, 1e-299):
            entropy = binary_entropy(minority)
            for share in (1e-3 * entropy, 0.9985 * entropy, 0.9995 * entropy, 7.0):
                noise_std, charge = calibrated_noise(minority, share)
                assert 0 < charge == binary_channel_mi(minority, noise_std) <= min(share, 0.999 * entropy)
        assert calibrated_noise(0.0, 1.0) == calibrated_noise(1e-300, 1.0)
        assert calibrated_noise(1e-320, 1.0)[1] > 0.99 * binary_entropy(1e-300)


class TestChannel:
    def test_limits_and_symmetry(self):
        assert binary_channel_mi(0.3, math.inf) == 0.0
        assert binary_channel_mi(0.3, 0.0) == binary_entropy(0.3)
        assert binary_channel_mi(0.3, 1e-200) == binary_entropy(0.3)
        assert binary_channel_mi(0.0, 1.0) == binary_channel_mi(1.0, 1.0) == 0.0
        assert binary_channel_mi(0.25, 0.8) == binary_channel_mi(0.75, 0.8)
        assert 0 < binary_channel_mi(0.5, 1e150) == pytest.approx(0.5e-300, rel=1e-12, abs=0)

    @pytest.mark.parametrize("q", [1e-12, 0.12, 0.5])
    @pytest.mark.parametrize("sigma", [0.085, 0.12, 1.7, 900.0, 3162.0, 3163.0, 5000.0, 1e8])
    def test_matches_quadrature(self, q, sigma):
        """Also on both sides of sigma = 3162.3, where a two-term series takes over."""
        assert abs(binary_channel_mi(q, sigma) / exact_mi(q, sigma) - 1) < 1e-11

    @pytest.mark.parametrize("q", [5e-324, 1e-300, 1e-50, 1e-12, 0.01, 0.5])
    def test_falls_with_noise_and_stays_in_range(self, q):
        values = [binary_channel_mi(q, sigma) for sigma in np.geomspace(1e-3, 1e6, 400).tolist()]
        assert max(values) <= binary_entropy(q)
        assert min(values) >= 0
        if q >= 1e-300:
            assert all(after <= before * (1 + 1e-11) for before, after in itertools.pairwise(values))

    @pytest.mark.parametrize(
        ("q", "sigma"), [(math.nan, 1.0), (-1e-9, 1.0), (1.5, 1.0), (0.5, -1.0), (0.5, math.nan)]
    )
    def test_bad_input(self, q, sigma):
        bad = q if not 0 <= q <= 1 else sigma
        with pytest.raises(ValueError, match=str(bad).replace(".", r"\.")):
            binary_channel_mi(q, sigma)

    def test_entropy(self):
        for p in (5e-324, 1e-300, 1e-12, 0.1, 0.5, 1 - 1e-9):
            with mpmath.workdps(50):
                assert binary_entropy(p) == pytest.approx(float(exact_entropy(p)), rel=4e-16, abs=0)
        assert binary_entropy(0.0) == binary_entropy(1.0) == 0.0
        for p in (math.nan, -0.1, 1.1):
            with pytest.raises(ValueError, match="probability"):
                binary_entropy(p)


def chi_square_p_value(counts, num_cells):
    observed = [*counts.values(), *[0] * (num_cells - len(counts))]
    assert len(observed) == num_cells
    return stats.chisquare(observed).pvalue


class TestMembership:
    def test_each_sample_in_exactly_half_or_k(self):
        rng = np.random.default_rng(0)
        member = draw_membership(50, 8, rng)
        assert member.dtype == np.bool_
        assert member.shape == (50, 8)
        assert (member.sum(axis=1) == 4).all()
        assert (draw_membership(50, 8, rng, sampling_rate=3).sum(axis=1) == 3).all()
        assert (draw_membership(50, 8, rng, sampling_rate=np.int64(7)).sum(axis=1) == 7).all()

    @pytest.mark.parametrize("num_samples", [1, 6, 7])
    def test_disjoint_pairs(self, num_samples):
        member = draw_membership(num_samples, 10, np.random.default_rng(1), disjoint_pairs=True)
        assert (member[:, 0::2] != member[:, 1::2]).all()
        assert (member[:, 0::2].sum(axis=0) == num_samples // 2).all()

    @pytest.mark.parametrize(("rate", "num_patterns"), [(None, 6), (2, 6), (1, 4), (3, 4)])
    def test_rows_are_uniform(self, rate, num_patterns):
        member = draw_membership(30_000, 4, np.random.default_rng(2), sampling_rate=rate)
        assert chi_square_p_value(Counter(map(tuple, member.tolist())), num_patterns) > 1e-4

    def test_marginals_and_pair_frequencies(self):
        """P(sample in m) = 1/2, P(sample in both m and m') = (M/2 - 1) / (2 (M - 1))."""
        num_samples, num_subsets = 40_000, 8
        member = draw_membership(num_samples, num_subsets, np.random.default_rng(3)).astype(float)
        both = member.T @ member
        for m, other in itertools.combinations_with_replacement(range(num_subsets), 2):
            p = 0.5 if m == other else 3 / 14
            assert abs(both[m, other] - num_samples * p) < 4.5 * math.sqrt(num_samples * p * (1 - p))

    def test_samples_are_independent(self):
        rng = np.random.default_rng(4)
        pairs = Counter(tuple(draw_membership(2, 4, rng).ravel().tolist()) for _ in range(6000))
        assert chi_square_p_value(pairs, 36) > 1e-4

    def test_pairs_are_uniform_and_independent(self):
        rng = np.random.default_rng(5)
        halves = (draw_membership(4, 4, rng, disjoint_pairs=True)[:, 0::2] for _ in range(6000))
        assert chi_square_p_value(Counter(tuple(half.ravel().tolist()) for half in halves), 36) > 1e-4

    @pytest.mark.parametrize(
        ("num_samples", "num_subsets", "options", "message"),
        [
            (0, 4, {}, "num_samples.*0"),
            (4, 5, {}, "even.*5"),
            (4, 0, {}, "num_subsets.*0"),
            (4, 4.0, {}, r"num_subsets.*4\.0"),
            (4, 4, {"sampling_rate": 0}, "sampling_rate.*0"),
            (4, 4, {"sampling_rate": 4}, "at most 3, got 4"),
            (4, 4, {"sampling_rate": 0.5}, r"integer.*0\.5"),
            (4, 4, {"sampling_rate": True}, "integer.*True"),
            (4, 4, {"sampling_rate": 2, "disjoint_pairs": True}, "sampling_rate=2.*exclude"),
            (4, 5, {"disjoint_pairs": True}, "even.*5"),
        ],
    )
    def test_bad_input(self, num_samples, num_subsets, options, message):
        with pytest.raises(ValueError, match=message) as caught:
            draw_membership(num_samples, num_subsets, np.random.default_rng(0), **options)
        assert "\n" not in str(caught.value)


class TestClipping:
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_definition_and_type(self, dtype):
        values = np.array([-30.0, -0.5, 0.0, 1e-40, 2.0, 1e30], dtype)
        before = values.copy()
        clipped = clip_derivatives(values, 2.0)
        assert clipped.dtype == dtype
        expected = [g * min(1.0, 2.0 / abs(g)) if g else 0.0 for g in values.tolist()]
        assert clipped.tolist() == pytest.approx(expected, rel=1e-15, abs=0)
        for no_clip in (None, math.inf, 1e300):
            unclipped = clip_derivatives(values, no_clip)
            np.testing.assert_array_equal(unclipped, values)
            unclipped[:] = 7.0
        np.testing.assert_array_equal(values, before)
        assert clip_derivatives(np.array([], dtype), 1.0).shape == (0,)
        assert clip_derivatives([3, -1], 2.0).tolist() == [2.0, -1.0]

    def test_clipping_can_change_a_sign(self):
        values, all_in = np.array([10.0, -1.0, -1.0]), np.ones((3, 1), bool)
        assert subset_signs(values, all_in) == 1
        assert subset_signs(clip_derivatives(values, 1.0), all_in) == -1

    @pytest.mark.parametrize("clip", [0.0, -1.0, math.nan, -math.inf])
    def test_bad_clip(self, clip):
        with pytest.raises(ValueError, match=f"clip.*{clip}"):
            clip_derivatives(np.ones(2), clip)

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_bad_derivative(self, bad):
        for clip in (None, 1.0):
            with pytest.raises(ValueError, match="1 of 3 derivatives"):
                clip_derivatives(np.array([1.0, bad, 2.0], np.float32), clip)
        with pytest.raises(ValueError, match="1 of 3 derivatives"):
            subset_means(np.array([1.0, bad, 2.0]), np.ones((3, 2), bool))


class TestSubsetMeans:
    @settings(max_examples=200, deadline=None, database=None)
    @given(st.integers(1, 40), st.integers(0, 2**32 - 1), st.sampled_from([0, 3, 6]))
    def test_means_are_those_of_exact_arithmetic(self, num_samples, seed, decades):
        rng = np.random.default_rng(seed)
        scale = 10.0 ** rng.uniform(-decades, decades, num_samples)
        values = (rng.standard_normal(num_samples) * scale).astype(np.float32)
        member = rng.random((num_samples, 6)) < 0.5
        means, signs = subset_means(values, member), subset_signs(values, member)
        assert means.dtype == np.float64
        assert signs.dtype == np.int8
        for m in range(6):
            chosen = [Fraction(g) for g in values[member[:, m]].tolist()]
            exact = sum(chosen, Fraction(0)) / max(len(chosen), 1)
            assert means[m] == pytest.approx(float(exact), rel=1e-15, abs=0)
            assert signs[m] == (1 if exact >= 0 else -1)

    def test_order_of_samples_does_not_matter(self):
        rng = np.random.default_rng(6)
        values = (rng.standard_normal(1000) * 10.0 ** rng.uniform(-6, 6, 1000)).astype(np.float32)
        member = draw_membership(1000, 128, rng)
        for _ in range(5):
            order = rng.permutation(1000)
            reordered = subset_means(values[order], member[order])
            np.testing.assert_array_equal(subset_means(values, member), reordered)

    def test_many_directions_are_each_as_alone(self):
        rng = np.random.default_rng(7)
        values = rng.standard_normal((70, 50)) * 10.0 ** rng.uniform(-30, 30, (70, 1))
        member = draw_membership(50, 8, rng)
        alone = [subset_means(row, member) for row in values]
        np.testing.assert_array_equal(subset_means(values, member), alone)

    def test_ties_empty_subsets_and_extremes(self):
        values = np.array([1e20, 1.0, -1e20, -1.0])
        member = np.array([[1, 0, 1, 0], [0, 0, 1, 1], [1, 0, 1, 0], [0, 0, 0, 1]], bool)
        assert subset_means(values, member).tolist() == [0.0, 0.0, 1 / 3, 0.0]
        assert subset_signs(values, member).tolist() == [1, 1, 1, 1]
        assert subset_signs(-values, member).tolist() == [1, 1, -1, 1]
        assert subset_means(np.zeros(3), np.ones((3, 2), bool)).tolist() == [0.0, 0.0]
        assert subset_means(np.array([5e-324, 5e-324]), np.ones((2, 1), bool)).tolist() == [5e-324]
        largest = sys.float_info.max
        assert subset_means(np.array([largest]), np.ones((1, 1), bool)).tolist() == [largest]

    @pytest.mark.parametrize(
        ("values", "member"),
        [
            (np.ones(3), np.ones((2, 4), bool)),
            (np.ones((3, 1)), np.ones((3, 4), bool)),
            (np.ones(3), np.ones((3, 4), int)),
            (np.ones(3), np.ones(3, bool)),
            (np.ones(0), np.ones((0, 4), bool)),
        ],
    )
    def test_shapes_that_do_not_fit(self, values, member):
        with pytest.raises(ValueError, match="membership"):
            subset_means(values, member)
