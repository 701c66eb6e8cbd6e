"""The zeroth-order trainer inside the library's loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from builders import make_model
from torch import nn
from transformers import get_polynomial_decay_schedule_with_warmup

from src import transcript
from src.lora import LoraSettings, add_lora
from src.objectives import CandidateScoring, Objective
from src.utils import UserError
from src.zo.arguments import ZOArguments
from src.zo.directions import direction_seeds
from src.zo.sources import central_difference, check_sound
from src.zo.trainer import ZOTrainer

PROMPTS = ["a very good film It was", "dull It was", "cold and slow It was", "warm It was"]


class Quadratic(Objective):
    """l_i = |w - target_i|^2 / 2 on a bare parameter: every number of a step is known in closed form."""

    def __init__(self, model, targets):
        super().__init__(model, len(targets))
        self.targets = targets

    @torch.no_grad()
    def losses(self):
        return ((self.model.weight[0] - self.targets) ** 2).sum(1) / 2


def arguments(folder, **settings):
    values = {
        "output_dir": str(folder),
        "max_steps": 5,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "polynomial",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return ZOArguments(**{**values, **settings})


def objective_of(model, tokenizer):
    return CandidateScoring(model, tokenizer, PROMPTS, [["terrible", "great"]] * 4, [1, 0, 0, 1])


def test_a_run_is_mezo_with_the_full_batch(tmp_path):
    """Every step against a direct calculation: derivative along z, schedule, update."""
    torch.manual_seed(0)
    model = nn.Linear(6, 1, bias=False)
    weight = model.weight.detach()[0].double().clone()
    targets = torch.randn(10, 6)
    trainer = ZOTrainer(model, arguments(tmp_path, max_steps=20, learning_rate=0.05), Quadratic(model, targets))
    trainer.train()
    _, records = transcript.read(tmp_path / "transcript.jsonl")
    reference = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.05)
    schedule = get_polynomial_decay_schedule_with_warmup(reference, 0, 20, lr_end=1e-7, power=1.0)
    for step, record in enumerate(records):
        (seed,) = direction_seeds(trainer.args.seed, step, 1)
        assert record.seeds == (seed,)
        z = torch.empty(6).normal_(generator=torch.Generator().manual_seed(seed)).double()
        slope = (z @ (weight - targets.double().mean(0))).item()
        assert record.coefficients[0] == pytest.approx(slope, rel=2e-3, abs=2e-3)
        assert record.learning_rate == schedule.get_last_lr()[0]
        weight -= record.learning_rate * record.coefficients[0] * z
        reference.step()
        schedule.step()
    torch.testing.assert_close(model.weight[0].double(), weight, rtol=0, atol=1e-5)
    assert len(records) == trainer.state.global_step == 20
    distance = [((w - targets.double().mean(0)) ** 2).sum() for w in (weight, torch.zeros(6).double())]
    assert math.isfinite(distance[0])


def test_the_seed_decides_the_directions_and_nothing_else_does(tmp_path, tokenizer):
    def train(name, seed, noise):
        model = add_lora(make_model("opt"), LoraSettings(r=2))
        trainer = ZOTrainer(model, arguments(tmp_path / name, seed=seed), objective_of(model, tokenizer))
        torch.manual_seed(noise)
        np.random.seed(noise)
        trainer.train()
        return trainer.space.checksum()

    assert train("a", 1, 0) == train("b", 1, 123)
    assert train("c", 2, 0) != train("d", 1, 0)


def test_evaluation_logs_checkpoints_and_the_best_model_are_the_librarys(tmp_path, tokenizer):
    model = add_lora(make_model("opt"), LoraSettings(r=2))
    train = objective_of(model, tokenizer)
    args = arguments(
        tmp_path,
        max_steps=9,
        learning_rate=0.05,
        eval_strategy="steps",
        save_strategy="steps",
        eval_steps=2,
        save_steps=2,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        logging_steps=3,
    )
    trainer = ZOTrainer(model, args, train, train)
    trainer.train()
    history = trainer.state.log_history
    evaluations = {entry["step"]: entry["eval_loss"] for entry in history if "eval_loss" in entry}
    assert sorted(evaluations) == [2, 4, 6, 8, 9]
    best = min(evaluations, key=evaluations.get)
    assert trainer.state.best_global_step == best
    assert trainer.evaluate()["eval_loss"] == pytest.approx(evaluations[best], abs=1e-7)
    assert trainer.evaluate(train, metric_key_prefix="test")["test_loss"] == trainer.evaluate()["eval_loss"]
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert f"checkpoint-{best}" in names
    assert len(names) == 2
    assert [entry["step"] for entry in history if "loss" in entry] == [3, 6, 9]
    assert not any("grad_norm" in entry for entry in history)


def test_the_logged_loss_is_the_mean_of_the_two_points(tmp_path, tokenizer):
    model = make_model("opt")
    objective = objective_of(model, tokenizer)
    start = objective.metrics()["loss"]
    trainer = ZOTrainer(model, arguments(tmp_path, max_steps=1, logging_steps=1), objective)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(start, rel=1e-3)


class Broken(Objective):
    def __init__(self, model, values, from_call=0):
        super().__init__(model, len(values))
        self.values, self.calls, self.from_call = torch.tensor(values), 0, from_call

    def losses(self):
        self.calls += 1
        good = torch.arange(1.0, len(self.values) + 1) * self.calls
        return self.values if self.calls > self.from_call else good


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, math.nan, 2.0], r"step 2: 1 of 3 losses are NaN or infinite"),
        ([1.0, -math.inf, math.inf], r"step 2: 2 of 3 losses"),
        ([0.0, 0.0, 0.0], r"step 2: all 3 losses are zero"),
    ],
)
def test_broken_losses_stop_the_run_before_anything_is_released(values, message, tmp_path):
    model = make_model("opt")
    trainer = ZOTrainer(model, arguments(tmp_path), Broken(model, values, from_call=4))
    with pytest.raises(UserError, match=message):
        trainer.train()
    _, records = transcript.read(tmp_path / "transcript.jsonl")
    assert len(records) == 2
    again = transcript.replay(make_model("opt"), tmp_path / "transcript.jsonl")
    for left, right in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(left, right), "the stopped run's parameters are what its transcript says"


def test_a_step_that_changes_nothing_is_noticed(tmp_path, tokenizer):
    model = make_model("opt").to(torch.float16)
    trainer = ZOTrainer(
        model,
        arguments(tmp_path, learning_rate=1e-12, lr_scheduler_type="constant"),
        objective_of(model, tokenizer),
    )
    trainer.release = lambda step, derivatives: (1.0,)
    with pytest.raises(UserError, match="changed no trainable parameter"):
        trainer.train()


def test_a_step_that_changes_frozen_parameters_is_noticed(tmp_path, tokenizer):
    model = add_lora(make_model("opt"), LoraSettings(r=2))
    trainer = ZOTrainer(model, arguments(tmp_path), objective_of(model, tokenizer))
    frozen = next(p for p in model.parameters() if not p.requires_grad)
    apply = trainer.create_optimizer() and trainer.space.apply

    def spill(record):
        apply(record)
        frozen.data.add_(1e-3)

    trainer.space.apply = spill
    with pytest.raises(UserError, match="frozen"):
        trainer.train()


def test_a_warm_up_step_of_rate_zero_passes_the_guard(tmp_path, tokenizer):
    model = make_model("opt")
    args = arguments(tmp_path, lr_scheduler_type="linear", warmup_steps=2)
    trainer = ZOTrainer(model, args, objective_of(model, tokenizer))
    trainer.train()
    _, records = transcript.read(tmp_path / "transcript.jsonl")
    assert records[0].learning_rate == 0 < records[1].learning_rate


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"zo_eps": 0.0}, "zo_eps must be positive"),
        ({"zo_eps": math.inf}, "zo_eps must be positive and finite"),
        ({"eval_steps": 0}, "eval_steps must be positive"),
        ({"logging_steps": -1}, "logging_steps must be positive"),
        ({"save_steps": math.nan}, "save_steps must be positive"),
        ({"max_steps": -1}, "max_steps must be at least 1"),
        ({"gradient_accumulation_steps": 2}, "must be 1"),
        ({"auto_find_batch_size": True}, "must be off"),
        ({"learning_rate": -1e-3}, "learning_rate must be positive and finite"),
        ({"learning_rate": math.nan}, "learning_rate must be positive and finite"),
        (
            {"learning_rate": 1e-8, "lr_scheduler_type": "polynomial"},
            "which learning_rate must lie above",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message, tmp_path):
    with pytest.raises(UserError, match=message):
        arguments(tmp_path, **settings)


def test_there_must_be_a_run_to_resume(tmp_path, tokenizer):
    model = make_model("opt")
    trainer = ZOTrainer(model, arguments(tmp_path), objective_of(model, tokenizer))
    with pytest.raises(UserError, match=r"cannot read .*transcript\.jsonl"):
        trainer.train(resume_from_checkpoint=True)


def test_a_subclass_with_releases_of_its_own_must_say_how_it_resumes(tmp_path, tokenizer):
    class Noisy(ZOTrainer):
        def release(self, step, derivatives):
            return (1.0,)

    model = make_model("opt")
    with pytest.raises(UserError, match="Noisy cannot resume a run"):
        Noisy(model, arguments(tmp_path), objective_of(model, tokenizer)).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("with_checkpoint", [True, False])
def test_a_stopped_run_goes_on_to_the_same_end(with_checkpoint, tmp_path, tokenizer):
    settings = {"max_steps": 8, "save_strategy": "steps" if with_checkpoint else "no", "save_steps": 3}
    settings["no_derivative_check"] = True  # it asks for losses too

    def trainer_in(folder):
        model = add_lora(make_model("opt"), LoraSettings(r=2))
        return ZOTrainer(model, arguments(folder, **settings), objective_of(model, tokenizer))

    whole = trainer_in(tmp_path / "whole")
    whole.train()
    first = trainer_in(tmp_path / "parts")
    losses, calls = first.train_dataset.losses, iter(range(9))
    first.train_dataset.losses = lambda: losses() if next(calls, None) is not None else exec("raise KeyError")
    with pytest.raises(KeyError):
        first.train()
    second = trainer_in(tmp_path / "parts")
    second.train(resume_from_checkpoint=True)
    assert len(second.step_seconds) == 4
    names = [folder / "transcript.jsonl" for folder in (tmp_path / "whole", tmp_path / "parts")]
    assert names[0].read_bytes() == names[1].read_bytes()
    assert whole.space.checksum() == second.space.checksum()


def test_evaluation_needs_an_objective(tmp_path, tokenizer):
    model = make_model("opt")
    trainer = ZOTrainer(model, arguments(tmp_path), objective_of(model, tokenizer))
    with pytest.raises(UserError, match="needs an Objective"):
        trainer.evaluate([1, 2, 3])


def test_losses_that_may_be_zero_do_not_stop_a_run():
    """All answers of a generation may be wrong, so that every F1 is zero."""
    zeros = torch.zeros(3)
    derivatives, losses = central_difference(zeros, zeros, 1e-3)[None], zeros.numpy()
    assert derivatives.tolist() == [[0.0, 0.0, 0.0]]
    check_sound(derivatives, losses, 0, may_be_zero=True)
    with pytest.raises(UserError, match="all 3 losses are zero"):
        check_sound(derivatives, losses, 0)


WORDS = ("very good", "dull", "cold", "warm", "slow", "bright")


class ManyDirections(ZOTrainer):
    num_directions = 3


def lora_model():
    return add_lora(make_model("llama"), LoraSettings(r=2))


def test_exact_derivatives_train_as_central_ones(tmp_path, tokenizer):
    """Float64 central differences are the oracle: the same signs, step after step."""
    records = {}
    for kind in ("central", "exact"):
        model = add_lora(make_model("opt"), LoraSettings(r=2)).double()
        args = arguments(tmp_path / kind, max_steps=8, learning_rate=0.02, zo_derivative=kind, zo_eps=1e-5)
        trainer = ManyDirections(model, args, Doubled(objective_of(model, tokenizer)))
        trainer.train()
        head, records[kind] = transcript.read(tmp_path / kind / "transcript.jsonl")
        assert head["public"]["zo_derivative"] == kind
    for central, exact in zip(records["central"], records["exact"], strict=True):
        assert central.seeds == exact.seeds
        np.testing.assert_allclose(central.coefficients, exact.coefficients, rtol=1e-4, atol=1e-5)
        assert np.array_equal(np.sign(central.coefficients), np.sign(exact.coefficients))


class Doubled(Objective):
    """A `CandidateScoring` whose losses are not rounded to float32."""

    def __init__(self, inner):
        super().__init__(inner.model, len(inner))
        self.inner = inner

    def pieces(self, token_budget, rows=None):
        return self.inner.pieces(token_budget, rows)

    def piece_losses(self, piece, watcher=None):
        labels = self.inner.labels[piece.samples]
        scores = self.inner._scorer.piece_scores(piece, watcher)
        return nn.functional.cross_entropy(scores, labels, reduction="none")

    @torch.no_grad()
    def losses(self, samples=None):
        result = torch.empty(len(self), dtype=torch.float64)
        for piece in self.pieces(10**6):
            result[piece.samples] = self.piece_losses(piece)
        return result if samples is None else result[torch.as_tensor(samples)]


def test_an_exact_run_is_replayed_and_resumed_like_any_other(tmp_path, tokenizer):
    def trainer(folder, **settings):
        model = lora_model()
        args = arguments(tmp_path / folder, learning_rate=0.02, zo_derivative="exact", **settings)
        return ManyDirections(model, args, objective_of(model, tokenizer))

    whole = trainer("whole", max_steps=6)
    whole.train()
    replayed = transcript.replay(make_model("llama"), tmp_path / "whole" / "transcript.jsonl")
    for found, wanted in zip(replayed.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(found, wanted)
    stopped = trainer("stopped", max_steps=6, save_strategy="steps", save_steps=2)
    release = stopped.release

    def dies(step, derivatives):
        if step == 3:
            raise KeyboardInterrupt
        return release(step, derivatives)

    stopped.release = dies
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    again = trainer("stopped", max_steps=6, save_strategy="steps", save_steps=2)
    again.train(resume_from_checkpoint=True)
    assert again.space.checksum() == whole.space.checksum()
    other = lora_model()
    args = arguments(tmp_path / "stopped", max_steps=6, learning_rate=0.02, zo_derivative="central")
    with pytest.raises(UserError, match="zo_derivative differs"):
        ManyDirections(other, args, objective_of(other, tokenizer)).train(resume_from_checkpoint=True)


def test_the_first_step_tells_how_true_central_differences_are(tmp_path, tokenizer, caplog):
    def check(name, dtype=torch.float32, **settings):
        model = lora_model().to(dtype)
        caplog.clear()
        trainer = ZOTrainer(
            model, arguments(tmp_path / name, max_steps=2, **settings), objective_of(model, tokenizer)
        )
        trainer.train()
        warned = [message for message in caplog.messages if "--zo_derivative exact" in message]
        return trainer.derivative_check, warned, trainer.space.checksum()

    found, warned, parameters = check("float32")
    assert found["correlation"] > 0.99
    assert found["error"] < 0.1
    assert not warned
    noisy, warned, _ = check("bfloat16", torch.bfloat16, zo_eps=1e-5)
    assert noisy["correlation"] < 0.5 < noisy["error"]
    assert len(warned) == 1
    assert check("off", no_derivative_check=True) == (None, [], parameters)
    assert check("exact", zo_derivative="exact")[:2] == (None, [])


def test_an_objective_without_a_derivative_is_refused_before_a_step(tmp_path):
    model = nn.Linear(6, 1, bias=False)
    trainer = ZOTrainer(model, arguments(tmp_path, zo_derivative="exact"), Quadratic(model, torch.randn(10, 6)))
    with pytest.raises(UserError, match="Quadratic have no derivative; use --zo_derivative central"):
        trainer.train()
    with pytest.raises(UserError, match="zo_derivative must be central or exact, got 'forward'"):
        arguments(tmp_path, zo_derivative="forward")
