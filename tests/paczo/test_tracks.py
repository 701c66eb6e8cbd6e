"""Private runs that train a prefix or the head: they learn, die and go on, and end with the best checkpoint."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import TrainerCallback

from paczo.pac_trainer import PACArguments, PACTrainer
from src import transcript
from src.ht_opt import HeadSettings, add_head, candidate_tokens
from src.prefix import add_prefix
from src.record.checkpoints import read_weights
from src.sample_data.learning_task import CANDIDATES, LearningTask, pretrain
from src.utils import UserError


def add_candidates(model, tokenizer):
    tokens = candidate_tokens(tokenizer, "It was", [f" {name}" for name in CANDIDATES])
    return add_head(model, HeadSettings(tokens=tokens))


TRACKS = {
    "prefix": (lambda model, tokenizer: add_prefix(model), 4 * 5 * 32, {"learning_rate": 0.2, "max_steps": 150}),
    "head": (add_candidates, 2 * 32, {"learning_rate": 0.01, "max_steps": 60}),
}


@pytest.fixture(scope="module")
def pretrained():
    return pretrain()


def tracked(pretrained, track):
    """The pretrained model again, with the track."""
    model = TRACKS[track][0](copy.deepcopy(pretrained.model), pretrained.tokenizer)
    return LearningTask(model, pretrained.tokenizer)


def trainer_of(task, folder, *, num_samples=100, **changes):
    values = {
        "output_dir": str(folder),
        "lr_scheduler_type": "polynomial",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "pac_zpl": True,
        "pac_secret_seed": 3,
    }
    dev = task.objective(40, seed=3)
    return PACTrainer(task.model, PACArguments(**{**values, **changes}), task.objective(num_samples, seed=1), dev)


@pytest.mark.parametrize("track", TRACKS)
def test_pac_zpl_learns_and_changes_nothing_but_the_track(track, pretrained, tmp_path):
    task = tracked(pretrained, track)
    test = task.objective(300, seed=2)
    before = test.metrics()["accuracy"]
    trainer = trainer_of(task, tmp_path, **TRACKS[track][2])
    trainer.train()
    after = test.metrics()["accuracy"]
    assert before < 0.6
    assert after > 0.9
    assert trainer.space.num_elements == TRACKS[track][1]
    assert trainer.space._buffers[0].snapshot.numel() == TRACKS[track][1], (
        "the copy is as small as what is trained"
    )
    now, start = dict(task.model.named_parameters()), dict(tracked(pretrained, track).model.named_parameters())
    for name, parameter in now.items():
        assert torch.equal(parameter, start[name]) != parameter.requires_grad, name
    plain = dict(pretrained.model.named_parameters())
    for name in set(plain) & set(now):
        assert torch.equal(plain[name], now[name]), name
    again = transcript.replay(copy.deepcopy(pretrained.model), tmp_path / "transcript.jsonl")
    assert again.track == task.model.track
    for name, parameter in again.named_parameters():
        assert torch.equal(parameter, now[name]), name


class Death(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise KeyboardInterrupt


@pytest.mark.parametrize("track", TRACKS)
def test_a_run_that_died_goes_on_and_ends_with_the_best_checkpoint(track, pretrained, tmp_path):
    settings = {
        "num_samples": 24,
        "learning_rate": TRACKS[track][2]["learning_rate"],
        "max_steps": 8,
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "eval_steps": 2,
        "save_steps": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
    }
    whole = trainer_of(tracked(pretrained, track), tmp_path / "whole", **settings)
    whole.train()
    died = trainer_of(tracked(pretrained, track), tmp_path / "died", **settings)
    died.add_callback(Death())
    with pytest.raises(KeyboardInterrupt):
        died.train()
    resumed = trainer_of(tracked(pretrained, track), tmp_path / "died", **settings)
    resumed.train(resume_from_checkpoint=True)
    one, other = (transcript.read(tmp_path / name / "transcript.jsonl") for name in ("whole", "died"))
    assert one == other
    best = whole.state.best_global_step
    assert resumed.state.best_global_step == best
    saved = read_weights(tmp_path / "whole" / "checkpoints" / f"checkpoint-{best}")
    for trainer in (whole, resumed):
        parameters = trainer.space.parameters
        assert saved.keys() == parameters.keys(), "a checkpoint holds what is trained and no more"
        assert all(torch.equal(saved[name], parameter) for name, parameter in parameters.items())
        losses = {e["step"]: e["eval_loss"] for e in trainer.state.log_history if "eval_loss" in e}
        assert trainer.evaluate()["eval_loss"] == pytest.approx(losses[best], rel=1e-6)
    part = transcript.replay(copy.deepcopy(pretrained.model), tmp_path / "whole" / "transcript.jsonl", steps=best)
    assert all(torch.equal(dict(part.named_parameters())[name], tensor) for name, tensor in saved.items())


def test_a_transcript_of_one_track_does_not_go_on_with_another(pretrained, tmp_path):
    settings = {"num_samples": 8, "max_steps": 2, "learning_rate": 0.01}
    trainer_of(tracked(pretrained, "head"), tmp_path, **settings).train()
    other = trainer_of(tracked(pretrained, "prefix"), tmp_path, **settings)
    with pytest.raises(UserError, match="is of another run"):
        other.train(resume_from_checkpoint=True)
    with pytest.raises(UserError, match="started from another model"):
        transcript.replay(tracked(pretrained, "prefix").model, tmp_path / "transcript.jsonl")
