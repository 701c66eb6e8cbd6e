"""A run that dies, at whatever instant, goes on as if it had not; what does not belong to it is refused."""

from __future__ import annotations

import json
import random
import shutil

import lives
import pytest
import torch
from deaths import Died, checkpoints, die_and_resume, dying_after, history, kill_and_resume, outcome, read_lines
from lives import STEPS, live, make_trainer

from paczo.randomness import SecretRandom
from src.record.chain import RecordError, read_records
from src.utils import UserError


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    return folder, live(folder)


def test_fifty_deaths_change_nothing(uninterrupted, tmp_path, monkeypatch):
    """45 injected deaths in one run of 200 steps; the killed processes are in the test below."""
    folder, expected = uninterrupted
    trainer = die_and_resume(tmp_path / "run", random.Random(5), monkeypatch, deaths=45)
    assert outcome(tmp_path / "run") == outcome(folder)
    assert torch.equal(trainer.model.weight, expected.model.weight)
    assert trainer.privacy() == expected.privacy()
    assert trainer.mechanism.log_posterior.tolist() == expected.mechanism.log_posterior.tolist()
    assert trainer.mechanism.releases == expected.mechanism.releases
    assert history(trainer) == history(expected)
    assert trainer.state.best_global_step == expected.state.best_global_step
    assert checkpoints(tmp_path / "run") == checkpoints(folder)


def test_killed_processes_change_nothing(uninterrupted, tmp_path):
    folder, expected = uninterrupted
    run = tmp_path / "run"
    kill_and_resume(run, "pac", random.Random(6))
    trainer = live(run)
    assert outcome(run) == outcome(folder)
    assert torch.equal(trainer.model.weight, expected.model.weight)
    assert trainer.privacy() == expected.privacy()


@pytest.mark.parametrize("instant", range(1, 60, 3))
def test_death_at_the_very_start(instant, tmp_path, monkeypatch):
    """Ledger, header and first steps: every state resumes, or nothing was released and the run is refused."""
    run = tmp_path / "run"
    changes = {"max_steps": 4}
    with dying_after(instant, monkeypatch):
        try:
            live(run, **changes)
        except Died:
            pass
        else:
            pytest.skip("the run has fewer instants")
    reference = tmp_path / "reference"
    live(reference, **changes)
    if not read_lines(run):
        assert not (run / "transcript.jsonl").exists()
        with pytest.raises(RecordError):
            make_trainer(run, **changes).train(resume_from_checkpoint=True)
        return
    live(run, **changes)
    assert outcome(run) == outcome(reference)


def test_no_release_is_made_twice_with_secrets_of_the_operating_system(tmp_path, monkeypatch):
    """Every noise number is used for one published step only, and a step that died unpublished keeps its own."""
    drawn = []
    original = SecretRandom.standard_normal

    def standard_normal(self, purpose, index):
        value = original(self, purpose, index)
        drawn.append((index, value))
        return value

    monkeypatch.setattr(SecretRandom, "standard_normal", standard_normal)
    run = tmp_path / "run"
    changes = {"pac_secret_seed": None, "max_steps": 60}
    trainer = die_and_resume(run, random.Random(7), monkeypatch, deaths=12, longest=200, **changes)
    lines = [line for line in read_records(run / "private" / "ledger.jsonl")[1:] if "step" in line]
    assert [line["step"] for line in lines] == list(range(60))
    noisy = [r for line in lines for r in line["releases"] if r["kind"] == "noisy"]
    assert len({r["noisy_sign"] for r in noisy}) == len(noisy) > 5
    assert len(set(drawn)) == len({index for index, _ in drawn}), "one release was given two different noises"
    assert len(drawn) > len(noisy), "no release was ever made again, so nothing was tested"
    assert sum(r["mi_nats"] for r in noisy) == pytest.approx(trainer.privacy()["spent_nats"], rel=1e-12)


@pytest.mark.parametrize(
    "mode",
    [
        {"pac_mi": 1.0, "pac_charge": "bit"},
        {"pac_zpl": True},
        {"pac_zpl": True, "pac_zpl_abstain": True},
        *({"no_privacy": True, "ablation": name} for name in ("none", "raw_half", "random_sign")),
    ],
    ids=["bit", "pac_zpl", "abstain", "none", "raw_half", "random_sign"],
)
def test_the_other_mechanisms_resume_too(mode, tmp_path, monkeypatch):
    changes = {"pac_mi": None, **mode, "max_steps": 40, "load_best_model_at_end": False}
    expected = live(tmp_path / "one", **changes)
    trainer = die_and_resume(tmp_path / "two", random.Random(8), monkeypatch, deaths=4, longest=200, **changes)
    assert outcome(tmp_path / "one") == outcome(tmp_path / "two")
    assert torch.equal(trainer.model.weight, expected.model.weight)
    assert trainer.privacy() == expected.privacy()


def stopped(folder, monkeypatch, instants=900, **changes):
    with dying_after(instants, monkeypatch), pytest.raises(Died):
        live(folder, **changes)
    return folder


def test_checkpoints_are_optional_and_any_complete_one_will_do(uninterrupted, tmp_path, monkeypatch):
    folder, expected = uninterrupted
    run = stopped(tmp_path / "run", monkeypatch)
    assert checkpoints(run)
    for change in ("none", "first", "torn"):
        copy = shutil.copytree(run, tmp_path / change)
        names = checkpoints(copy)
        wanted = True
        if change == "none":
            shutil.rmtree(copy / "checkpoints")
        elif change == "first":
            wanted = str(copy / "checkpoints" / names[0])
        else:
            (copy / "checkpoints" / names[-1] / "trainer_state.json").write_text('{"global_step": ')
        trainer = make_trainer(copy)
        trainer.train(resume_from_checkpoint=wanted)
        assert outcome(copy) == outcome(folder)
        assert torch.equal(trainer.model.weight, expected.model.weight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": 250}, "max_steps differs: was 200, is 250"),
        ({"learning_rate": 0.03}, "learning_rate differs"),
        ({"pac_mi": 2.0}, "pac_mi differs"),
        ({"pac_charge": "bit"}, "mechanism differs"),
        ({"pac_mi": None, "pac_zpl": True, "pac_zpl_abstain": True}, "differs"),
        ({"pac_k": 1}, "pac_k|release that is recorded|differs"),
        ({"seed": 43}, "membership"),
        ({"weight_decay": 0.0}, "start differs"),
        ({"pac_secret_seed": 12}, "its key"),
        ({"pac_secret_seed": None}, "its secrets"),
        ({"data_seed": 1}, "its data"),
        ({"model_seed": 1}, "start differs"),
        ({"lr_scheduler_type": "linear"}, "lr_scheduler_type differs"),
        ({"zo_inplace": True}, "zo_inplace cannot be resumed"),
    ],
)
def test_another_run_is_refused(changes, message, uninterrupted, tmp_path):
    run = shutil.copytree(uninterrupted[0], tmp_path / "run")
    before = outcome(run)
    with pytest.raises(UserError, match=message):
        make_trainer(run, **changes).train(resume_from_checkpoint=True)
    assert outcome(run) == before


def test_files_of_different_runs_or_moments_are_refused(uninterrupted, tmp_path, monkeypatch):
    """Another ledger, a missing head, an older state of one file or both, a checkpoint of another run."""
    run = stopped(tmp_path / "run", monkeypatch)
    other = stopped(tmp_path / "other", monkeypatch, pac_secret_seed=13)
    older = stopped(tmp_path / "older", monkeypatch, instants=300)
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
            live(copy) if case != "no ledger" else make_trainer(copy).train(resume_from_checkpoint=True)
    weights = sorted(run.glob("checkpoints/*/model.safetensors"))[-1]
    shutil.copy(sorted(other.glob("checkpoints/*/model.safetensors"))[0], weights)
    with pytest.raises(RecordError, match="differs from the transcript in weight"):
        live(run)


def test_two_processes_cannot_continue_one_run(tmp_path, monkeypatch):
    run = stopped(tmp_path / "run", monkeypatch)
    first, second = make_trainer(run), make_trainer(run)
    first._prepare_to_resume(True)
    with pytest.raises(UserError, match="another process is writing"):
        second.train(resume_from_checkpoint=True)
    first.close_records()


def test_a_trainer_trains_once_and_a_new_run_does_not_overwrite(uninterrupted, tmp_path):
    run = shutil.copytree(uninterrupted[0], tmp_path / "run")
    trainer = make_trainer(run)
    with pytest.raises(UserError, match="holds another run"):
        trainer.train()
    with pytest.raises(UserError, match="has trained already"):
        trainer.train()
    with pytest.raises(UserError, match="is no complete checkpoint"):
        make_trainer(run).train(resume_from_checkpoint=str(tmp_path))


def test_the_command_lines_value_is_taken(uninterrupted, tmp_path):
    folder, expected = uninterrupted
    run = shutil.copytree(folder, tmp_path / "run")
    trainer = make_trainer(run, resume_from_checkpoint="True")
    trainer.train()
    assert outcome(run) == outcome(folder)
    assert torch.equal(trainer.model.weight, expected.model.weight)


def test_training_with_a_recorded_transcript_and_no_data_gives_the_same_model(uninterrupted):
    from src import transcript

    folder, expected = uninterrupted
    best = expected.state.best_global_step
    model = transcript.replay(lives.base_model(), folder / "transcript.jsonl", steps=best)
    assert torch.equal(model.weight, expected.model.weight)
    assert json.loads((folder / "private" / "head.json").read_text())["lines"] == STEPS + 2
