"""Several runs on one secret: what is carried over, how budgets add, and what is refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from lives import live, make_trainer

from paczo.bounds import posterior_success
from paczo.ledger import unpack_signs
from paczo.run_mechanism import run_id
from src import transcript
from src.record.chain import RecordError, _canonical, link, read_records
from src.utils import UserError

SHORT = {"max_steps": 30, "save_steps": 15, "eval_steps": 15, "logging_steps": 15, "pac_mi": 0.4}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run of each charge, and of zero nats."""
    folders = {}
    for name, changes in (
        ("real", {}),
        ("bit", {"pac_charge": "bit"}),
        ("zpl", {"pac_mi": None, "pac_zpl": True}),
    ):
        folders[name] = tmp_path_factory.mktemp("finished") / name
        live(folders[name], **{**SHORT, **changes})
    return folders


@pytest.fixture
def source(finished, tmp_path):
    """A copy of the finished run with the real charge."""
    return shutil.copytree(finished["real"], tmp_path / "source")


def follow(source, folder, **changes):
    given = {**SHORT, "pac_secret_seed": 12, "pac_continue_from": str(source / "private"), **changes}
    return make_trainer(folder, **given)


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def log_likelihood(folder):
    """Of all recorded noisy releases, (M,), from the Gaussian densities or the flips."""
    total = np.zeros(8)
    for line in read_records(folder / "private" / "ledger.jsonl")[1:-1]:
        for bit, release in zip(line["coefficients"], line["releases"], strict=True):
            signs = unpack_signs(release["signs"], 8)
            if release["noise_std"] is not None:
                total -= (signs - release["noisy_sign"]) ** 2 / (2 * release["noise_std"] ** 2)
            elif release["flip"] is not None:
                total += np.log(np.where(signs == bit, 1 - release["flip"], release["flip"]))
    return total


@pytest.mark.parametrize("first", ["real", "bit", "zpl"])
@pytest.mark.parametrize("charge", ["real", "bit"])
def test_the_posterior_after_both_is_that_of_all_releases_together(first, charge, finished, tmp_path):
    """Bayes over the releases of both runs, as if they were one; the second run's q and shares rest on it too."""
    source = shutil.copytree(finished[first], tmp_path / "source")
    before = read_records(source / "private" / "ledger.jsonl")
    trainer = follow(source, tmp_path / "second", pac_charge=charge)
    np.testing.assert_allclose(trainer.mechanism.posterior, before[-1]["posterior"], rtol=1e-12)
    trainer.train()
    head = read_records(tmp_path / "second" / "private" / "ledger.jsonl")[0]
    assert head["secret"] == before[0]["secret"] == trainer._secret
    assert head["key"] != before[0]["key"]
    total = log_likelihood(source) + log_likelihood(tmp_path / "second")
    expected = np.exp(total - total.max())
    np.testing.assert_allclose(trainer.mechanism.posterior, expected / expected.sum(), rtol=1e-9)
    assert (tmp_path / "second" / "private" / "attack.json").exists() == (first != "real" and charge == "bit")


def test_budgets_add_and_every_output_says_so(source, tmp_path):
    spent = make_trainer(tmp_path / "other", **SHORT)
    assert "earlier" not in spent.privacy()
    second = follow(source, tmp_path / "second", pac_mi=0.1)
    second.train()
    report = second.privacy()
    assert report["budget_nats"] == pytest.approx(0.5, rel=1e-15)
    assert report["earlier"] == {"runs": 1, "budget_nats": 0.4}
    assert report["posterior_success_bound"] == posterior_success(report["budget_nats"])
    earlier_spent = read_records(source / "private" / "ledger.jsonl")[-2]["spent_nats"]
    assert report["spent_nats"] == pytest.approx(second.mechanism.spent_nats + earlier_spent, rel=1e-15)
    head, _ = transcript.read(tmp_path / "second" / "transcript.jsonl")
    source_id = transcript.read(source / "transcript.jsonl")[0]["public"]["run_id"]
    assert head["public"]["continues"] == {"run_id": source_id, "runs": 1, "budget_nats": 0.4}
    third = follow(tmp_path / "second", tmp_path / "third", pac_mi=None, pac_zpl=True, pac_secret_seed=13)
    third.train()
    assert third.privacy()["earlier"]["runs"] == 2
    assert third.privacy()["budget_nats"] == report["budget_nats"]
    assert third.mechanism.log_posterior.tolist() == second.mechanism.log_posterior.tolist()
    assert third._secret == second._secret


def test_what_is_public_says_nothing_of_the_posterior(source, tmp_path):
    follow(source, tmp_path / "second").train()
    text = (tmp_path / "second" / "transcript.jsonl").read_text()
    for private in ("posterior", '"secret"', "spent"):
        assert private not in text


def test_a_run_that_continues_another_resumes_exactly(source, tmp_path, monkeypatch):
    whole = follow(shutil.copytree(source, tmp_path / "copy"), tmp_path / "whole")
    whole.train()
    trainer = follow(source, tmp_path / "second")
    losses, calls = trainer.train_dataset.losses, iter(range(70))

    def interrupted():
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return losses()

    trainer.train_dataset.losses = interrupted
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    with pytest.raises(RecordError, match="its earlier_runs differ"):
        make_trainer(tmp_path / "second", **SHORT, pac_secret_seed=12).train(resume_from_checkpoint=True)
    resumed = follow(source, tmp_path / "second")
    resumed.train(resume_from_checkpoint=True)
    for name in ("transcript.jsonl", "private/ledger.jsonl"):
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert resumed.privacy() == whole.privacy()


def test_a_run_is_continued_by_one_run_only(source, tmp_path):
    """Two runs from one posterior would each count less than both have said."""
    first = follow(source, tmp_path / "first")
    twin = follow(source, tmp_path / "twin", pac_secret_seed=14)
    first.train()
    with pytest.raises(UserError, match=f"continued by run {run_id(first._random)} already"):
        follow(source, tmp_path / "second", pac_secret_seed=15)
    with pytest.raises(UserError, match="already"):
        twin.train()
    assert not (tmp_path / "twin" / "transcript.jsonl").exists()
    assert not files(tmp_path / "second")
    assert sorted(path.name for path in (source / "private").iterdir()) == [
        "continued_by",
        "head.json",
        "ledger.jsonl",
    ]


@pytest.mark.parametrize("death", ["before its ledger", "before its claim"])
def test_a_run_killed_before_it_claims_another_goes_on_and_bars_no_one(death, source, tmp_path, monkeypatch):
    def die(*_):
        raise KeyboardInterrupt

    where = {"before its ledger": "paczo.private_run.Ledger", "before its claim": "paczo.pac_trainer.claim"}
    with monkeypatch.context() as patch:
        patch.setattr(where[death], die)
        with pytest.raises(KeyboardInterrupt):
            follow(source, tmp_path / "second").train()
    assert not (source / "private" / "continued_by").exists()
    begun = death == "before its claim"
    again = follow(source, tmp_path / "second")
    again.train(resume_from_checkpoint=begun)
    assert (source / "private" / "continued_by").read_text().strip() == run_id(again._random)
    with pytest.raises(UserError, match="already"):
        follow(source, tmp_path / "third", pac_secret_seed=15)


def test_a_run_that_continues_another_is_not_overwritten_by_one_that_could_not(source, tmp_path):
    first = follow(source, tmp_path / "first")
    first.train()
    second = follow(source, tmp_path / "first")  # as the command makes it before it empties the folder
    with pytest.raises(UserError, match=f"continued by run {run_id(first._random)} already"):
        second.check_new()
    make_trainer(tmp_path / "other", **SHORT).check_new()


def chained(lines):
    """The lines of a record file with their chain made anew, as a careful forger would."""
    chain, text = "", ""
    for line in lines:
        chain = link(chain, line)
        text += _canonical({**line, "chain": chain}) + "\n"
    return text, chain


def forge(source, change):
    """Rewrites the ledger of a finished run, with its chain and its head."""
    path = source / "private" / "ledger.jsonl"
    lines = read_records(path)
    change(lines)
    text, chain = chained(lines)
    path.write_text(text)
    head = json.loads((source / "private" / "head.json").read_text())
    (source / "private" / "head.json").write_text(json.dumps({**head, "ledger": chain}))


def another_posterior(lines):
    lines[-1]["posterior"] = [1 / 8] * 8


def no_posterior(lines):
    lines[-1]["posterior"] = None


def another_secret(lines):
    lines[0]["secret"] = (lines[0]["secret"] + 1) % 8


def stated_secret_without_its_posterior(lines):
    """As a run would look that was told which S* to use, and starts from the uniform posterior."""
    another_secret(lines)
    lines[0]["earlier_runs"] = None


def other_signs(lines):
    release = next(r for line in lines[1:-1] for r in line["releases"] if r["kind"] == "noisy")
    release["signs"] = f"{0xFF ^ int(release['signs'], 16):02x}"


def less_spent(lines):
    for line in lines[1:-1]:
        line["spent_nats"] /= 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (another_posterior, "the posterior at its end is not the one that its releases give"),
        (no_posterior, "the posterior at its end is not the one"),
        (another_secret, "states a secret without the posterior"),
        (stated_secret_without_its_posterior, "states a secret without the posterior"),
        (other_signs, "does not give the release that is recorded"),
        (less_spent, "do not add up"),
    ],
)
def test_a_forged_or_missing_posterior_is_refused(change, message, source, tmp_path):
    forge(source, change)
    with pytest.raises(RecordError, match=message):
        follow(source, tmp_path / "second")
    assert not files(tmp_path / "second")


def test_a_run_that_was_told_its_secret_does_not_resume(source):
    forge(source, stated_secret_without_its_posterior)
    with pytest.raises(RecordError, match="the secret does not follow from its key"):
        make_trainer(source, **SHORT).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_seed": 1}, "its data"),
        ({"seed": 43}, "its membership"),
        ({"pac_m": 6}, "its num_subsets"),
        ({"pac_disjoint_pairs": True}, "its membership"),
        ({"count": 20}, "its membership"),
        ({"pac_secret_seed": None}, "its secrets"),
        ({"pac_secret_seed": 11}, "take another --pac_secret_seed"),
        ({"pac_mi": None, "no_privacy": True}, "excludes --no_privacy"),
    ],
)
def test_a_foreign_posterior_is_refused(changes, message, source, tmp_path):
    with pytest.raises(UserError, match=message):
        follow(source, tmp_path / "second", **changes)
    assert not files(tmp_path / "second")
    assert not (source / "private" / "continued_by").exists()


def test_what_is_no_finished_and_accounted_run_is_refused(source, tmp_path):
    unfinished = tmp_path / "unfinished"
    trainer = make_trainer(unfinished, **SHORT)
    calls = iter(range(30))
    losses = trainer.train_dataset.losses
    trainer.train_dataset.losses = lambda: losses() if next(calls, None) is not None else 1 / 0
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    with pytest.raises(UserError, match="has not ended; resume it"):
        follow(unfinished, tmp_path / "second")
    live(tmp_path / "plain", **{**SHORT, "pac_mi": None, "no_privacy": True})
    with pytest.raises(UserError, match="was not accounted"):
        follow(tmp_path / "plain", tmp_path / "second")
    with pytest.raises(UserError, match="holds no ledger"):
        follow(tmp_path / "nowhere", tmp_path / "second")
    with pytest.raises(UserError, match="cannot continue itself"):
        follow(source, source)
    (source / "transcript.jsonl").unlink()
    with pytest.raises(RecordError, match="cannot read"):
        follow(source, tmp_path / "second")


def test_a_ledger_of_the_private_side_is_private(source, tmp_path):
    trainer = follow(source, tmp_path / "second")
    trainer.train()
    for path in (tmp_path / "second" / "private").iterdir():
        assert path.stat().st_mode & 0o077 == 0
    assert (source / "private" / "continued_by").stat().st_mode & 0o077 == 0
