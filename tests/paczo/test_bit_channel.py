"""The channel of one released bit: its information in multiprecision, the flip's window, the grid's ends."""

import itertools
import math
import timeit

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paczo import pac_utils
from paczo.bit_channel import (
    FLIP_GRID,
    binary_entropy,
    binary_mi,
    binary_symmetric_mi,
    calibrated_flip,
    flip_for_mi,
    flip_log_odds,
    relative_entropy,
)

MASSES = (1e-12, 1e-6, 0.01, 0.12, 0.5, 1 - 1e-6)
WINDOW = 1 - 1e-6


def exact_entropy(p):
    return -p * mpmath.log(p) - (1 - p) * mpmath.log1p(-p) if 0 < p < 1 else mpmath.mpf(0)


def exact_mi(q, flip):
    """h(q (1 - f) + (1 - q) f) - h(f): the definition, with digits enough for its cancellation."""
    q, flip = mpmath.mpf(q), mpmath.mpf(flip)
    return exact_entropy(q * (1 - flip) + (1 - q) * flip) - exact_entropy(flip)


def requests(q):
    entropy = binary_entropy(q)
    near_the_top = (0.9, 0.99, 0.999, 1 - 1e-6, 1 - 1e-9, 1 - 1e-12)
    return [*np.geomspace(1e-12, 0.8 * entropy, 25).tolist(), *(share * entropy for share in near_the_top)]


def test_the_names_are_in_pac_utils():
    assert pac_utils.flip_for_mi is flip_for_mi
    assert pac_utils.binary_symmetric_mi is binary_symmetric_mi


class TestFlip:
    @pytest.mark.parametrize("q", MASSES)
    def test_spends_what_was_asked_and_never_more(self, q):
        """Down to 1e-12 nats. For q = 1e-12 the grid ends before: there no smaller flip would do either."""
        with mpmath.workdps(60):
            for mi_nats in requests(q):
                flip = flip_for_mi(q, mi_nats)
                count = flip * FLIP_GRID
                assert count == int(count) >= 1
                exact = exact_mi(q, flip)
                assert exact <= mi_nats, (q, mi_nats, flip)
                if q == 1e-12 and flip < 2.0**-36:
                    assert exact_mi(q, flip - 1 / FLIP_GRID) > mi_nats * (1 - 6e-7)
                else:
                    assert exact >= WINDOW * mi_nats, (q, mi_nats, flip)

    @pytest.mark.parametrize("q", [1e-10, 3e-10, 1e-8, 0.3])
    def test_the_window_holds_from_a_mass_of_1e10_up(self, q):
        with mpmath.workdps(60):
            for mi_nats in requests(q):
                assert WINDOW * mi_nats <= exact_mi(q, flip_for_mi(q, mi_nats)) <= mi_nats

    @pytest.mark.parametrize("q", [1e-300, 1e-150, 1e-50, 1e-20, 1e-12, 1e-11, 1e-4, 0.5])
    def test_where_the_grid_ends(self, q):
        """From 2^-36 to 1/2 - 2^-31 the window holds for any mass; outside, no smaller flip would do."""
        with mpmath.workdps(20 + int(-2 * math.log10(q)) + 60):
            for share in (1e-40, 1e-25, 1e-19, 1e-15, 1e-9, 1e-3, 0.05, 0.3, 0.7, 0.95, 0.999, 1 - 1e-9):
                mi_nats = share * binary_entropy(q)
                if mi_nats < 1e-300:
                    continue
                flip = flip_for_mi(q, mi_nats)
                exact = exact_mi(q, flip)
                assert exact <= mi_nats
                if 2.0**-36 <= flip <= 0.5 - 2.0**-31:
                    assert exact >= WINDOW * mi_nats
                else:
                    assert exact_mi(q, flip - 1 / FLIP_GRID) > mi_nats * (1 - 6e-7)

    def test_neighbours_on_the_grid_are_close_where_the_window_is_claimed(self):
        """At both ends of the claimed range one step of the grid is less than 5e-7 of the information."""
        for q in (1e-200, 1e-30, 1e-12, 1e-3, 0.5):
            with mpmath.workdps(500):
                for count in (2**17, 2**40, 2**52 - 2**22):
                    step = exact_mi(q, mpmath.mpf(count - 1) / FLIP_GRID) / exact_mi(q, count / FLIP_GRID)
                    assert step - 1 < 5e-7

    @settings(max_examples=500, deadline=None, database=None)
    @given(st.floats(-300, math.log10(0.5)), st.floats(-15, 0), st.booleans())
    def test_never_above_for_any_mass(self, log10_q, log10_share, from_above):
        q = 10**log10_q
        entropy = binary_entropy(q)
        mi_nats = entropy * (1 - 10**log10_share) if from_above else entropy * 10**log10_share
        if 0 < mi_nats < entropy:
            flip = flip_for_mi(q, mi_nats)
            spent = binary_symmetric_mi(q, flip)
            assert spent <= mi_nats * (1 - 4e-7)
            if 2.0**-36 <= flip <= 0.5 - 2.0**-31:
                assert spent >= WINDOW * mi_nats

    def test_limits(self):
        for q in (*MASSES, 0.0, 1.0, 5e-324):
            assert flip_for_mi(q, 0.0) == 0.5
            assert flip_for_mi(q, math.inf) == 0.0
            if q not in (0.0, 1.0):
                entropy = binary_entropy(q)
                assert flip_for_mi(q, entropy) == 0.0
                assert flip_for_mi(q, math.nextafter(entropy, 0.0)) >= 2.0**-53
        assert flip_for_mi(0.5, math.log(2)) == 0.0
        smallest = binary_symmetric_mi(0.5, 0.5 - 2.0**-53)
        assert flip_for_mi(0.5, 1.001 * smallest) == 0.5 - 2.0**-53
        assert flip_for_mi(0.5, 0.999 * smallest) == 0.5
        assert flip_for_mi(0.25, 0.1) == flip_for_mi(0.75, 0.1)

    @pytest.mark.parametrize(
        ("q", "mi_nats"), [(math.nan, 0.1), (-0.1, 0.1), (1.1, 0.1), (0.5, -1e-9), (0.5, math.nan)]
    )
    def test_bad_input(self, q, mi_nats):
        bad = q if not 0 <= q <= 1 else mi_nats
        with pytest.raises(ValueError, match=str(bad).replace(".", r"\.")):
            flip_for_mi(q, mi_nats)

    def test_mean_call_is_below_a_millisecond(self):
        calls = list(itertools.product(MASSES, (1e-12, 1e-7, 1e-3, 0.3)))

        def calibrate_all():
            for q, mi_nats in calls:
                flip_for_mi(q, mi_nats)

        calibrate_all()
        assert min(timeit.repeat(calibrate_all, number=1, repeat=5)) / len(calls) < 1e-3

    def test_charge_of_a_release(self):
        for minority in (0.5, 0.2, 1e-9, 1e-299):
            entropy = binary_entropy(minority)
            for share in (1e-3 * entropy, 0.9985 * entropy, 0.9995 * entropy, 7.0):
                flip, charge = calibrated_flip(minority, share)
                assert 2.0**-53 <= flip <= 0.5
                assert 0 < charge == binary_symmetric_mi(minority, flip) <= min(share, 0.999 * entropy)
        assert calibrated_flip(0.0, 1.0) == calibrated_flip(1e-300, 1.0)
        assert calibrated_flip(1e-320, 1.0)[1] > 0
        assert calibrated_flip(0.5, 1e-40) == (0.5, 0.0)

    def test_a_bit_says_more_than_the_sign_of_a_noisy_value_at_equal_nats(self):
        """sqrt(beta / 2) against sqrt(beta / pi) for small budgets: pi / 2 times the inverse variance."""
        for mi_nats in (1e-4, 1e-6, 1e-9):
            sigma = pac_utils.sigma_for_binary_mi(0.5, mi_nats)
            real, bit = 0.5 * math.erf(1 / sigma / math.sqrt(2)), 0.5 - flip_for_mi(0.5, mi_nats)
            assert bit == pytest.approx(math.sqrt(mi_nats / 2), rel=1e-3)
            assert real == pytest.approx(math.sqrt(mi_nats / math.pi), rel=1e-3)
            assert (bit / real) ** 2 == pytest.approx(math.pi / 2, rel=1e-3)


class TestInformation:
    @pytest.mark.parametrize("q", [1e-250, 1e-50, 1e-12, 0.01, 0.5, 1 - 1e-6])
    def test_matches_the_definition(self, q):
        """Also where h - h cancels completely in double precision: flips near 1/2 and rare signs."""
        with mpmath.workdps(700 if q < 1e-100 else 200):
            for flip in (2.0**-53, 1e-12, 0.01, 0.3, 0.49, 0.5 - 2.0**-20, 0.5 - 2.0**-53):
                assert abs(binary_symmetric_mi(q, flip) / exact_mi(q, flip) - 1) < 1e-13

    def test_any_binary_channel(self):
        """Against the sum over the joint table, in 60 digits."""
        rng = np.random.default_rng(0)
        with mpmath.workdps(60):
            for _ in range(300):
                p_one, low, high = rng.random(), *sorted(10 ** rng.uniform(-9, 0, 2))
                low, gap = float(low), float(high - low)
                joint = {
                    (x, y): (p if x else 1 - p) * (t if y else 1 - t)
                    for p in [mpmath.mpf(p_one)]
                    for x, t in ((0, mpmath.mpf(low)), (1, mpmath.mpf(low) + mpmath.mpf(gap)))
                    for y in (0, 1)
                }
                columns = [joint[0, y] + joint[1, y] for y in (0, 1)]
                rows = [joint[x, 0] + joint[x, 1] for x in (0, 1)]
                exact = sum(v * mpmath.log(v / rows[x] / columns[y]) for (x, y), v in joint.items() if v > 0)
                assert abs(binary_mi(p_one, low, gap) / exact - 1) < 1e-12

    def test_limits(self):
        assert binary_symmetric_mi(0.3, 0.5) == 0.0
        assert binary_symmetric_mi(0.3, 0.0) == binary_entropy(0.3)
        assert binary_symmetric_mi(0.0, 0.1) == binary_symmetric_mi(1.0, 0.1) == 0.0
        assert binary_symmetric_mi(0.25, 0.1) == binary_symmetric_mi(0.75, 0.1)
        assert binary_mi(0.5, 0.0, 1.0) == pytest.approx(math.log(2), rel=1e-15)
        assert binary_mi(0.5, 0.2, 0.0) == binary_mi(0.0, 0.2, 0.5) == binary_mi(0.5, 0.0, 0.0) == 0.0
        assert relative_entropy(0.5, 0.0) == 0.0

    def test_falls_with_the_flip(self):
        for q in (1e-12, 0.01, 0.5):
            values = [binary_symmetric_mi(q, flip) for flip in np.linspace(0, 0.5, 300).tolist()]
            assert all(after < before for before, after in itertools.pairwise(values))

    @pytest.mark.parametrize(
        ("q", "flip"), [(math.nan, 0.1), (1.5, 0.1), (0.5, -0.1), (0.5, 0.6), (0.5, math.nan)]
    )
    def test_bad_input(self, q, flip):
        with pytest.raises(ValueError, match="must lie in"):
            binary_symmetric_mi(q, flip)

    def test_log_odds(self):
        assert flip_log_odds(0.5) == 0.0
        for flip in (2.0**-53, 0.1, 0.4999, 0.5 - 2.0**-53):
            with mpmath.workdps(40):
                exact = float(mpmath.log((1 - mpmath.mpf(flip)) / mpmath.mpf(flip)))
            assert flip_log_odds(flip) == pytest.approx(exact, rel=1e-15, abs=0)
