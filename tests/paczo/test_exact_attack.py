"""What an adversary learned from a run: the file, brute-force Bayes, and the bound over many runs."""

from __future__ import annotations

import json
import math
import stat
from fractions import Fraction

import numpy as np
import pytest
from lives import live, make_trainer

from paczo.bounds import naming_success, posterior_success
from paczo.exact_attack import exact_attack, posterior_from_ledger
from paczo.ledger import unpack_signs
from paczo.mechanisms import PacMI
from paczo.pac_utils import clip_derivatives, draw_membership, subset_signs
from src.record.chain import read_records

SHORT = {"max_steps": 40, "save_steps": 20, "eval_steps": 20, "logging_steps": 20}
BIT = {**SHORT, "pac_charge": "bit"}


def attack_of(folder):
    path = folder / "private" / "attack.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    return json.loads(path.read_text())


def test_the_file_is_brute_force_bayes_from_what_the_adversary_sees(tmp_path):
    """For each candidate subset the probability of the whole run's bits, in fractions; signs from the data."""
    trainer = make_trainer(tmp_path, pac_mi=0.5, **BIT)
    seen, release = [], trainer.release
    trainer.release = lambda step, derivatives: seen.append(derivatives.copy()) or release(step, derivatives)
    trainer.train()
    first, *lines, _ = read_records(tmp_path / "private" / "ledger.jsonl")
    likelihood = [Fraction(1)] * 8
    noisy = 0
    for line, derivatives in zip(lines, seen, strict=True):
        for bit, recorded, row in zip(line["coefficients"], line["releases"], derivatives, strict=True):
            signs = subset_signs(clip_derivatives(row, trainer.args.pac_clip), trainer.membership)
            assert signs.tolist() == unpack_signs(recorded["signs"], 8).tolist()
            if recorded["kind"] == "noisy":
                noisy += 1
                flip = Fraction(recorded["flip"])
                likelihood = [p * (1 - flip if s == bit else flip) for p, s in zip(likelihood, signs, strict=True)]
    assert noisy > 10
    posterior = [p / sum(likelihood) for p in likelihood]
    inside = [sum(p for p, m in zip(posterior, row, strict=True) if m) for row in trainer.membership]
    likelier = [max(p, 1 - p) for p in inside]
    truth = trainer.membership[:, trainer._secret]
    right = [(p > Fraction(1, 2)) == bool(t) for p, t in zip(inside, truth, strict=True)]
    found = attack_of(tmp_path)
    assert found["member"]["mean_posterior"] == pytest.approx(float(sum(likelier) / len(likelier)), rel=1e-12)
    assert found["member"]["worst_posterior"] == pytest.approx(float(max(likelier)), rel=1e-12)
    assert found["member"]["right"] == sum(right) / len(right)
    assert found["naming"]["posterior"] == pytest.approx(float(max(posterior)), rel=1e-12)
    assert found["naming"]["right"] == (posterior[trainer._secret] == max(posterior))
    assert found["member"]["bound"] == posterior_success(0.5)
    assert found["naming"]["bound"] == naming_success(0.5, 8)
    np.testing.assert_allclose(posterior_from_ledger(first, lines), trainer.mechanism.posterior, rtol=1e-12)


@pytest.mark.parametrize("abstain", [False, True])
def test_zero_nats_leave_the_prior(abstain, tmp_path):
    live(tmp_path, **SHORT, pac_mi=None, pac_zpl=True, pac_zpl_abstain=abstain)
    found = attack_of(tmp_path)
    assert found["member"] == dict.fromkeys(("mean_posterior", "worst_posterior", "right", "prior", "bound"), 0.5)
    assert set(found["naming"].values()) == {1 / 8}


def test_a_real_charge_and_no_accounting_have_no_such_file(tmp_path):
    """There the posterior does not follow from what is public."""
    live(tmp_path / "real", **SHORT)
    live(tmp_path / "none", **SHORT, pac_mi=None, no_privacy=True)
    assert not list(tmp_path.rglob("attack.json"))


def test_it_is_written_where_a_run_died_at_its_end(tmp_path):
    live(tmp_path, **BIT)
    expected = attack_of(tmp_path)
    (tmp_path / "private" / "attack.json").unlink()
    transcript = tmp_path / "transcript.jsonl"
    lines = transcript.read_bytes().splitlines(keepends=True)
    head = json.loads((tmp_path / "private" / "head.json").read_text())
    # The state after the ledger's closing line, before anything else of the end.
    ledger = [json.loads(line) for line in (tmp_path / "private" / "ledger.jsonl").read_text().splitlines()]
    head |= {"lines": head["lines"] - 1, "ledger": ledger[-2]["chain"]}
    head["transcript"] = json.loads(lines[-2])["chain"]
    transcript.write_bytes(b"".join(lines[:-1]))
    (tmp_path / "private" / "head.json").write_text(json.dumps(head))
    live(tmp_path, **BIT)
    assert attack_of(tmp_path) == expected


def test_right_guesses_are_as_many_as_posteriors_say_and_below_the_bound():
    """1,000 runs of 20 releases: calibrated, and the mean success far below what the budget allows."""
    budget, runs, num_subsets = 0.33, 1000, 8
    rng = np.random.default_rng(1)
    sure, right, named, named_right = (np.zeros(runs) for _ in range(4))
    for run in range(runs):
        membership = draw_membership(12, num_subsets, rng)
        secret = int(rng.integers(num_subsets))
        mechanism = PacMI(num_subsets, secret, budget, 20, rng, charge="bit")
        for _ in range(20):
            mechanism.release(np.where(rng.random(num_subsets) < 0.5, 1, -1))
        found = exact_attack(mechanism.posterior, membership, secret)
        sure[run], right[run] = found["member"]["mean_posterior"], found["member"]["right"]
        named[run], named_right[run] = found["naming"]["posterior"], found["naming"]["right"]
    for claimed, true in ((sure, right), (named, named_right)):
        assert abs(np.mean(claimed - true)) < 4 * np.std(claimed - true) / math.sqrt(runs)
    assert sure.mean() < posterior_success(budget) - 0.1
    assert named.mean() < naming_success(budget, num_subsets)
    assert sure.mean() > 0.55, "or nothing was learned and nothing tested"


def test_ties_count_half():
    membership = np.array([[True, False], [False, True]])
    found = exact_attack(np.array([0.5, 0.5]), membership, 1)
    assert found["member"] == {"mean_posterior": 0.5, "worst_posterior": 0.5, "right": 0.5}
    assert found["naming"] == {"posterior": 0.5, "right": 0.5}
    found = exact_attack(np.array([0.9, 0.1]), membership, 1)
    assert found["member"]["right"] == 0.0
    assert found["member"]["worst_posterior"] == pytest.approx(0.9)
    assert found["naming"]["right"] == 0.0
