"""The attack: its Bayes rules against brute force, its intervals, and that it tells sound from broken."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from scipy.stats import binom, norm

from paczo import audit
from paczo.attack import (
    MECHANISMS,
    Runs,
    Setting,
    clopper_pearson,
    index_hits,
    log_posterior_from_bits,
    log_posterior_from_flips,
    log_posterior_from_noisy_signs,
    log_posterior_of_a_sceptic,
    member_hits,
    play,
)
from paczo.pac_utils import flip_for_mi, sigma_for_binary_mi
from src.utils import UserError


def normalised(log_posterior):
    weights = np.exp(log_posterior - log_posterior.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def example(rng, count=3, subsets=4):
    signs = rng.choice([-1.0, 1.0], (1, count, subsets))
    noise_std = rng.uniform(0.5, 3.0, (1, count))
    noisy = rng.normal(size=(1, count))
    member = rng.random((1, subsets)) < 0.5
    flips = rng.uniform(0.01, 0.5, (1, count))
    return Runs(signs, np.where(noisy >= 0, 1.0, -1.0), noise_std, noisy, flips, np.array([1]), member)


def test_the_posterior_from_bits_is_bayes_by_simulation():
    runs = example(np.random.default_rng(0))
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(2_000_000, runs.bits.shape[1])) * runs.noise_std[0]
    likelihood = [
        (np.where(runs.signs[0, :, m] + noise >= 0, 1.0, -1.0) == runs.bits[0]).all(axis=1).mean()
        for m in range(4)
    ]
    expected = np.array(likelihood) / sum(likelihood)
    np.testing.assert_allclose(normalised(log_posterior_from_bits(runs))[0], expected, atol=3e-3)


def test_the_posterior_from_noisy_signs_is_the_gaussian_density():
    runs = example(np.random.default_rng(2))
    density = [
        math.prod(
            math.exp(-((s - r) ** 2) / (2 * d * d))
            for s, r, d in zip(runs.signs[0, :, m], runs.noisy_signs[0], runs.noise_std[0], strict=True)
        )
        for m in range(4)
    ]
    expected = np.array(density) / sum(density)
    np.testing.assert_allclose(normalised(log_posterior_from_noisy_signs(runs))[0], expected, rtol=1e-12)


def test_the_posterior_from_flips_is_the_product_of_exact_likelihoods():
    runs = example(np.random.default_rng(4))
    likelihood = [
        math.prod(
            1 - Fraction(f) if s == b else Fraction(f)
            for s, b, f in zip(runs.signs[0, :, m], runs.bits[0], runs.flips[0], strict=True)
        )
        for m in range(4)
    ]
    expected = [float(value / sum(likelihood)) for value in likelihood]
    np.testing.assert_allclose(normalised(log_posterior_from_flips(runs))[0], expected, rtol=1e-12)


def test_free_releases_say_nothing():
    runs = example(np.random.default_rng(3))
    nothing = {
        "noise_std": runs.noise_std * np.inf,
        "noisy_signs": runs.noisy_signs * 0,
        "flips": runs.flips * 0 + 0.5,
    }
    free = replace(runs, **nothing)
    for rule in (log_posterior_from_bits, log_posterior_from_noisy_signs, log_posterior_from_flips):
        np.testing.assert_allclose(normalised(rule(free)), 0.25)
    for quiet in (replace(runs, signs=np.ones_like(runs.signs)), replace(runs, bits=runs.bits * 0)):
        np.testing.assert_allclose(normalised(log_posterior_of_a_sceptic(quiet)), 0.25)


def test_guesses_are_the_most_probable_ones():
    probabilities = np.array([[0.1, 0.4, 0.3, 0.2], [0.7, 0.1, 0.1, 0.1]])
    member = np.array([[True, False, True, True], [False, True, True, False]])
    for first, second in itertools.product(range(4), repeat=2):
        runs = Runs(*(np.zeros((2, 1)) for _ in range(5)), np.array([first, second]), member)
        rng = np.random.default_rng(0)
        assert index_hits(runs, np.log(probabilities), rng) == (first == 1) + (second == 0)
        assert member_hits(runs, np.log(probabilities), rng) == int(member[0, first]) + int(not member[1, second])


def test_ties_are_broken_fairly():
    count = 40_000
    runs = Runs(
        *(np.zeros((count, 1)) for _ in range(5)), np.zeros(count, int), np.tile([True, False], (count, 1))
    )
    assert abs(index_hits(runs, np.zeros((count, 2)), np.random.default_rng(0)) / count - 0.5) < 0.01
    assert abs(member_hits(runs, np.zeros((count, 2)), np.random.default_rng(0)) / count - 0.5) < 0.01


@pytest.mark.parametrize(("hits", "trials"), [(0, 20), (20, 20), (7, 20), (501, 1000)])
def test_clopper_pearson_inverts_the_binomial_tails(hits, trials):
    low, high = clopper_pearson(hits, trials)
    assert low == 0 if hits == 0 else binom.sf(hits - 1, trials, low) == pytest.approx(0.005, rel=1e-6)
    assert high == 1 if hits == trials else binom.cdf(hits, trials, high) == pytest.approx(0.005, rel=1e-6)


def test_one_release_between_two_subsets_succeeds_as_the_channel_says():
    """P(right) = Phi(1 / sigma) with sigma from the calibration: what is published has the noise it should."""
    setting = Setting("pac-mi", 0.33, 0.33, num_subsets=2, steps=1)
    played = play(setting, 4000, 3)
    disagree = played.signs[:, 0, 0] != played.signs[:, 0, 1]
    right = played.bits[disagree, 0] == played.signs[disagree, 0, played.secret[disagree]]
    low, high = clopper_pearson(int(right.sum()), len(right))
    assert low < norm.cdf(1 / sigma_for_binary_mi(0.5, 0.33)) < high


def test_one_bit_between_two_subsets_succeeds_as_the_flip_says():
    setting = Setting("pac-mi-bit", 0.33, 0.33, num_subsets=2, steps=1)
    played = play(setting, 4000, 3)
    disagree = played.signs[:, 0, 0] != played.signs[:, 0, 1]
    right = played.bits[disagree, 0] == played.signs[disagree, 0, played.secret[disagree]]
    low, high = clopper_pearson(int(right.sum()), len(right))
    assert low < 1 - flip_for_mi(0.5, 0.33) < high
    assert set(np.unique(played.flips[disagree])) == {flip_for_mi(0.5, 0.33)}
    assert low > 0.82, "more than the sign of a noisy value gives at equal nats"


def test_where_the_subsets_disagree_an_abstaining_run_says_nothing_at_all():
    """The sceptic, who finds whatever follows the secret, is left with ties."""
    played = play(Setting("pac-zpl-abstain", 0.0, 0.0, directions=2, steps=6), 300, 2)
    assert set(np.unique(played.bits)) == {-1.0, 0.0, 1.0}
    values = log_posterior_of_a_sceptic(played)
    assert np.ptp(values, axis=1).max() == 0.0


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_runs_are_a_function_of_the_seed_and_have_fair_secrets(mechanism):
    setting = Setting(mechanism, 0.33, 0.33, directions=2, steps=3)
    one, again, other = play(setting, 200, 5), play(setting, 200, 5), play(setting, 200, 6)
    np.testing.assert_array_equal(one.bits, again.bits)
    assert not np.array_equal(one.secret, other.secret)
    assert one.signs.shape == (200, 6, 8)
    assert np.bincount(one.secret, minlength=8).min() > 5
    assert np.all(one.member.sum(axis=1) == 4)


def test_sound_mechanisms_pass_and_broken_ones_are_caught(tmp_path):
    chosen = [s for s in audit.settings() if s.directions == 1 and s.claimed_nats in (0.0, 0.11)]
    assert {s.mechanism for s in chosen} == set(MECHANISMS)
    findings = [f for number, s in enumerate(chosen) for f in audit.attack(s, 400, number)]
    assert {f.setting.is_control for f in findings} == {True, False}
    assert [p for p in audit.problems(findings) if "off blind" not in p] == []
    audit.draw(findings, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    assert "caught" in audit.table(findings)


def test_a_leak_and_a_missed_control_are_reported():
    leak = audit.Finding(Setting("pac-zpl-abstain", 0, 0), "sceptic", "member", 1000, 700, 0.5, 0.5, 0.66, 0.74)
    missed = audit.Finding(Setting("quant_half", 0, 0), "sceptic", "member", 1000, 500, 0.5, 0.5, 0.46, 0.54)
    found = audit.problems([leak, missed])
    assert any("succeeds above its bound" in line for line in found)
    assert any("off blind guessing" in line for line in found)
    assert any("quant_half" in line and "not caught" in line for line in found)


def test_the_command_writes_its_files_and_fails_on_problems(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(audit, "settings", lambda: [Setting("quant_half", 0.0, 0.0)])
    audit.main(["--runs", "50", "--workers", "1", "--out", str(tmp_path / "a")])
    assert json.loads((tmp_path / "a" / "audit.json").read_text())["problems"] == []
    monkeypatch.setattr(audit, "settings", lambda: [Setting("pac-zpl", 0.0, 0.0, steps=1)])
    monkeypatch.setattr(audit, "ZPL_MARGIN", -1.0)
    with pytest.raises(SystemExit) as stopped:
        audit.main(["--runs", "50", "--workers", "1", "--out", str(tmp_path / "b")])
    assert stopped.value.code == 1
    assert "PROBLEM" in capsys.readouterr().out
    with pytest.raises(UserError, match="runs must be at least 1"):
        audit.main(["--runs", "0"])
