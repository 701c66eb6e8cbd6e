"""A DP run that dies, at whatever instant, goes on as if it had not; what does not belong to it is refused."""

from __future__ import annotations

import random
import shutil
import stat

import numpy as np
import pytest
import torch
from deaths import (
    KINDS,
    Died,
    checkpoints,
    damage,
    die_and_resume,
    dying_after,
    exit_code,
    history,
    kill_and_resume,
    outcome,
    read_lines,
)
from lives import Distances, live, make_dp_trainer

from baselines import mechanism
from paczo.randomness import SecretRandom
from src.record.chain import RecordError, read_records
from src.utils import UserError

STEPS = 80
DP = {"make": make_dp_trainer, "max_steps": STEPS}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    return folder, live(folder, **DP)


def test_twenty_two_deaths_change_nothing(uninterrupted, tmp_path, monkeypatch):
    folder, expected = uninterrupted
    run = tmp_path / "run"
    trainer = die_and_resume(run, random.Random(5), monkeypatch, deaths=22, longest=90, **DP)
    assert outcome(run) == outcome(folder)
    assert torch.equal(trainer.model.weight, expected.model.weight)
    assert trainer.privacy() == expected.privacy()
    assert trainer.releases == STEPS
    assert history(trainer) == history(expected)
    assert trainer.state.best_global_step == expected.state.best_global_step
    assert checkpoints(run) == checkpoints(folder)


def test_killed_processes_change_nothing(tmp_path):
    expected = live(tmp_path / "one", make_dp_trainer)
    kill_and_resume(tmp_path / "two", "dp", random.Random(6))
    trainer = live(tmp_path / "two", make_dp_trainer)
    assert outcome(tmp_path / "one") == outcome(tmp_path / "two")
    assert torch.equal(trainer.model.weight, expected.model.weight)


@pytest.mark.parametrize("changes", [{"dp_k": 1}, {"dp_accountant": "pld"}])
def test_the_other_mechanisms_resume_too(changes, tmp_path, monkeypatch):
    changes = {**DP, **changes, "max_steps": 40}
    expected = live(tmp_path / "one", **changes)
    trainer = die_and_resume(tmp_path / "two", random.Random(8), monkeypatch, deaths=2, longest=150, **changes)
    assert outcome(tmp_path / "one") == outcome(tmp_path / "two")
    assert torch.equal(trainer.model.weight, expected.model.weight)


@pytest.mark.parametrize("instant", range(1, 60, 9))
def test_death_at_the_very_start(instant, tmp_path, monkeypatch):
    """Ledger, header and first steps: every state resumes, or nothing was released and the run is refused."""
    run, changes = tmp_path / "run", {**DP, "max_steps": 20}
    with dying_after(instant, monkeypatch), pytest.raises(Died):
        live(run, **changes)
    if not read_lines(run):
        assert not (run / "transcript.jsonl").exists()
        with pytest.raises(RecordError):
            make_dp_trainer(run, max_steps=20).train(resume_from_checkpoint=True)
        return
    live(run, **changes)
    live(tmp_path / "reference", **changes)
    assert outcome(run) == outcome(tmp_path / "reference")


def test_no_noise_is_used_twice_with_secrets_of_the_operating_system(tmp_path, monkeypatch):
    """A step that is made again draws its own noise on its own batch; a released one is never made again."""
    drawn, made = {}, []
    original, total = mechanism.discrete_gaussian, mechanism.Grid.total

    def discrete_gaussian(bits, std):
        index = bits._next_word >> 32
        value = original(bits, std)
        assert drawn.setdefault(index, value) == value, "one coordinate was given two different noises"
        return value

    def watched(self, derivatives):
        made.append(derivatives.tobytes())
        return total(self, derivatives)

    monkeypatch.setattr(mechanism, "discrete_gaussian", discrete_gaussian)
    monkeypatch.setattr(mechanism.Grid, "total", watched)
    run, changes = tmp_path / "run", {**DP, "dp_secret_seed": None, "max_steps": 40}
    trainer = die_and_resume(run, random.Random(7), monkeypatch, deaths=8, longest=60, **changes)
    lines = read_records(run / "private" / "ledger.jsonl")
    assert [line["step"] for line in lines[1:-1]] == list(range(40))
    assert sorted(drawn) == list(range(40 * 3)), "each coordinate of each step once"
    assert len(made) > 40 == trainer.releases, "no step was ever made again, so nothing was tested"
    assert trainer.privacy()["private"]


def test_the_ledger_holds_the_key_and_nothing_of_batches(uninterrupted):
    folder, _ = uninterrupted
    private = folder / "private"
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in private.iterdir()} == {
        "ledger.jsonl": 0o600,
        "head.json": 0o600,
    }
    first, *steps, end = read_records(private / "ledger.jsonl")
    assert sorted(first) == ["data", "format", "key", "secrets", "transcript"]
    assert all(sorted(line) == ["coefficients", "step"] for line in steps)
    assert sorted(end) == ["end"]
    assert bytes.fromhex(first["key"]) == SecretRandom.from_seed(11).export_key()
    public = (folder / "transcript.jsonl").read_text()
    assert first["key"] not in public
    assert first["data"] not in public
    for path in folder.glob("checkpoints/*/*"):
        assert first["key"].encode() not in path.read_bytes()


def test_the_coefficients_are_noise_and_the_batchs_sum(uninterrupted):
    """A step in the middle of the run, from its key alone and the parameters it was made at."""
    folder, trainer = uninterrupted
    step = read_records(folder / "private" / "ledger.jsonl")[1 + 40]
    assert step["step"] == 40
    empty = np.zeros((3, 0), np.float32)
    noise = mechanism.release(trainer.grid, empty, SecretRandom.from_seed(11), 40)
    sums = np.array(step["coefficients"]) / 3 * 0.4 * trainer.count - noise
    size = len(trainer.batch(40))
    assert 0 < np.linalg.norm(sums) <= 2.0 * size * (1 + 1e-9)


def stopped(folder, monkeypatch, instants=300, **changes):
    with dying_after(instants, monkeypatch), pytest.raises(Died):
        live(folder, **{**DP, **changes})
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": 90}, "max_steps differs: was 80, is 90"),
        ({"dp_epsilon": 1.5}, "dp_epsilon differs"),
        ({"dp_accountant": "pld"}, "dp_accountant differs"),
        ({"dp_clip": 3.0}, "dp_clip differs"),
        ({"dp_k": 2}, "dp_k differs"),
        ({"dp_sample_rate": 0.401}, "dp_sample_rate differs"),
        ({"dp_secret_seed": 12}, "its key"),
        ({"dp_secret_seed": None}, "its secrets"),
        ({"data_seed": 1}, "its data"),
        ({"count": 23}, "its data"),
        ({"model_seed": 1}, "start differs"),
        ({"learning_rate": 0.03}, "learning_rate differs"),
        ({"zo_inplace": True}, "zo_inplace cannot be resumed"),
    ],
)
def test_another_run_is_refused(changes, message, uninterrupted, tmp_path):
    run = shutil.copytree(uninterrupted[0], tmp_path / "run")
    before = outcome(run)
    with pytest.raises(UserError, match=message):
        make_dp_trainer(run, **{"max_steps": STEPS, **changes}).train(resume_from_checkpoint=True)
    assert outcome(run) == before


def test_files_of_different_runs_or_moments_are_refused(tmp_path, monkeypatch):
    run = stopped(tmp_path / "run", monkeypatch)
    other = stopped(tmp_path / "other", monkeypatch, dp_secret_seed=None)
    older = stopped(tmp_path / "older", monkeypatch, instants=150)
    cases = {
        "ledger": [("private/ledger.jsonl", other)],
        "private": [("private/ledger.jsonl", other), ("private/head.json", other)],
        "head": [("private/head.json", None)],
        "transcript set back": [("transcript.jsonl", older)],
        "both set back": [("transcript.jsonl", older), ("private/ledger.jsonl", older)],
        "no transcript": [("transcript.jsonl", None)],
        "no ledger": [("private/ledger.jsonl", None)],
    }
    for case, replacements in cases.items():
        copy = shutil.copytree(run, tmp_path / case)
        for name, source in replacements:
            (copy / name).unlink()
            if source is not None:
                shutil.copy(source / name, copy / name)
        with pytest.raises(RecordError):
            make_dp_trainer(copy, max_steps=STEPS).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("state", ["finished", "stopped"])
def test_forty_eight_damages_are_refused(state, uninterrupted, tmp_path, monkeypatch, capsys):
    """Half of them to the transcript, half to the ledger."""
    run = uninterrupted[0]
    if state == "stopped":  # between two steps
        run, losses, calls = tmp_path / "stopped", Distances.losses, iter(range(200))

        def interrupted(self, samples=None):
            if next(calls, None) is None:
                raise KeyboardInterrupt
            return losses(self, samples)

        with monkeypatch.context() as patch:
            patch.setattr(Distances, "losses", interrupted)
            with pytest.raises(KeyboardInterrupt):
                live(run, **DP)
    work, rng = shutil.copytree(run, tmp_path / "work"), random.Random(state)

    def resume():
        make_dp_trainer(work, max_steps=STEPS).train(resume_from_checkpoint=True)

    for number in range(48):
        name, kind = ("transcript.jsonl", "private/ledger.jsonl")[number % 2], KINDS[number // 2 % len(KINDS)]
        content = (run / name).read_bytes()
        while (damaged := damage(content, kind, rng)) == content:
            pass
        (work / name).write_bytes(damaged)
        assert exit_code(resume) == 2, (number, name, kind)
        error = capsys.readouterr().err
        assert error.startswith("error: "), error
        assert error.count("\n") == 1, error
        assert (work / name).read_bytes() == damaged, "refusing must not write"
        (work / name).write_bytes(content)
    resume()
    assert outcome(work) == outcome(uninterrupted[0])
