"""The frozen front: what the layers before the first adapter give is computed once, and changes nothing."""

from __future__ import annotations

import pytest
import torch
from builders import make_model

from src.engine.derivatives import exact_derivatives
from src.engine.front import FrozenFront
from src.engine.layers import decoder_layers
from src.ht_opt import HeadSettings, add_head
from src.lora import LoraSettings, add_lora
from src.objectives import AnswerLikelihood, CandidateScoring
from src.utils import UserError
from src.zo.directions import ParameterSpace, StepRecord

ARCHITECTURES = ("opt", "llama", "qwen2", "gemma", "gpt2")
PROMPTS = ["a very good film It was", "dull It was", "cold and slow It was", "warm It was"]
SEEDS = (1, 2)


def build(architecture, **settings):
    """Adapters on the second of two layers."""
    return add_lora(make_model(architecture, **settings), LoraSettings(r=2, layers="last:1"))


def objectives(model, tokenizer):
    one = CandidateScoring(model, tokenizer, PROMPTS, [["terrible", "great"]] * 4, [1, 0, 0, 1])
    return one, AnswerLikelihood(model, tokenizer, PROMPTS, ["great", "bad", "so bad", "good film"])


def without_front(objective):
    objective._scorer.front.depth = 0
    return objective


def calls_of(layer):
    """How often the layer's first norm runs."""
    calls = []
    norm = next(m for name, m in layer.named_modules() if "norm" in name or name.startswith("ln_"))
    norm.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_losses_and_derivatives_are_those_of_whole_passes(architecture, tokenizer):
    model = build(architecture)
    space = ParameterSpace(model)
    for kept, whole in zip(objectives(model, tokenizer), objectives(model, tokenizer), strict=True):
        without_front(whole)
        front = kept._scorer.front
        assert front.depth == 1
        calls = calls_of(decoder_layers(model)[0])
        for step in range(3):
            torch.testing.assert_close(kept.losses(), whole.losses(), rtol=1e-6, atol=1e-6)
            found, _ = exact_derivatives(kept, space, SEEDS)
            truth, _ = exact_derivatives(whole, space, SEEDS)
            torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-6)
            assert found.abs().max() > 0
            space.apply(StepRecord(step, SEEDS, (1.0, -1.0), 0.1))
        # The whole passes, and one pass forward of each plan of the kept ones.
        assert len(calls) == 3 * 2 + 2
        assert front.kept_bytes == 2 * kept.num_tokens * 32 * 4


def test_other_samples_are_other_micro_batches(tokenizer):
    model = build("llama")
    objective, _ = objectives(model, tokenizer)
    whole, _ = objectives(model, tokenizer)
    without_front(whole)
    for samples in (None, [2, 0], [1], None):
        torch.testing.assert_close(objective.losses(samples), whole.losses(samples), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("track", ["layers", "head"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_any_samples_begin_behind_what_was_kept_of_all(architecture, track, packs, tokenizer):
    model = build(architecture, dtype=torch.float64)
    if track == "head":
        model = add_head(make_model(architecture, dtype=torch.float64), HeadSettings(tokens=(6, 7)))
    space = ParameterSpace(model)
    for kept, whole in zip(objectives(model, tokenizer), objectives(model, tokenizer), strict=True):
        without_front(whole)
        for objective in (kept, whole):
            objective._scorer._packs &= packs
        kept.keep_front()
        held = kept.front.kept_bytes
        assert held == (32 * 8) * (kept.num_tokens if track == "layers" else len(scored_of(kept)))
        calls = calls_of(decoder_layers(model)[0])
        for step, samples in enumerate([[2, 0], [1], [3, 2, 1], None, [0]]):
            torch.testing.assert_close(kept.losses(samples), whole.losses(samples), rtol=1e-6, atol=1e-6)
            found, _ = exact_derivatives(kept, space, SEEDS, samples)
            truth, _ = exact_derivatives(whole, space, SEEDS, samples)
            torch.testing.assert_close(found, truth, rtol=1e-9, atol=1e-12)
            assert found.abs().max() > 0
            space.apply(StepRecord(step, SEEDS, (1.0, -1.0), 0.1))
        assert len(calls) == 5 * 2  # of the whole passes alone
        assert kept.front.kept_bytes == held


def scored_of(objective):
    return torch.cat([batch.owners for batch in objective.micro_batches()])


@pytest.mark.parametrize("each", [False, True])
def test_layers_that_are_run_a_second_time_may_be_passed_by(each, tokenizer):
    model = build("opt")
    space = ParameterSpace(model)
    kept, _ = objectives(model, tokenizer)
    whole, _ = objectives(model, tokenizer)
    without_front(whole)
    kept.recompute = True
    if each:
        kept.keep_front()
    for step in range(3):
        found, _ = exact_derivatives(kept, space, SEEDS)
        truth, _ = exact_derivatives(whole, space, SEEDS)
        torch.testing.assert_close(found, truth, rtol=1e-5, atol=1e-5)
        space.apply(StepRecord(step, SEEDS, (1.0, -1.0), 0.1))
    assert not any("forward" in layer.__dict__ for layer in decoder_layers(model))


def test_a_front_that_does_not_fit_twice_is_not_kept_for_each_sample(tokenizer, monkeypatch):
    model = build("llama")
    objective, _ = objectives(model, tokenizer)
    before = objective.losses([2, 0])

    def full(_):
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(torch, "bincount", full)
    objective.keep_front()
    torch.testing.assert_close(objective.losses([2, 0]), before, rtol=0, atol=0)


def test_what_is_kept_of_each_sample_is_what_the_pass_gave(tokenizer):
    model = build("llama")
    objective, _ = objectives(model, tokenizer)
    before = objective.losses()
    objective.keep_front()
    torch.testing.assert_close(objective.losses(), before, rtol=0, atol=0)
    torch.testing.assert_close(objective.losses([3, 1]), before[[3, 1]], rtol=1e-6, atol=1e-6)


def test_samples_that_do_not_all_fit_are_passed_as_before(tokenizer, monkeypatch):
    monkeypatch.setattr("src.engine.front.CPU_KEPT_BYTES", 1000)
    model = build("llama")
    objective, _ = objectives(model, tokenizer)
    objective.token_budget = 6
    before = objective.losses([2, 0])
    objective.keep_front()
    assert objective.front.kept_bytes <= 1000
    torch.testing.assert_close(objective.losses([2, 0]), before, rtol=0, atol=0)


def test_nothing_is_kept_where_something_in_front_or_outside_is_trained(tokenizer):
    assert FrozenFront(add_lora(make_model("llama"), LoraSettings(r=2))).depth == 0
    model = build("llama")
    assert FrozenFront(model).depth == 1
    model.get_base_model().model.norm.weight.requires_grad_(True)
    assert FrozenFront(model).depth == 0


def test_no_more_is_kept_than_fits(tokenizer, monkeypatch):
    monkeypatch.setattr("src.engine.front.CPU_KEPT_BYTES", 1000)
    model = build("llama")
    objective, _ = objectives(model, tokenizer)
    objective.token_budget = 6
    before = objective.losses()
    assert 0 < objective._scorer.front.kept_bytes <= 1000
    torch.testing.assert_close(objective.losses(), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("first:2", "must be all, last:N or numbers"),
        ("last:x", "must be all, last:N or numbers"),
        ("last:3", "does not fit a model of 2 layers, 0 to 1"),
        ("last:0", "does not fit a model of 2 layers"),
        ("1,2", "does not fit a model of 2 layers"),
    ],
)
def test_layers_that_are_not_there_are_refused(layers, message):
    with pytest.raises(UserError, match=message):
        add_lora(make_model("llama"), LoraSettings(r=2, layers=layers))


def test_adapters_lie_where_they_were_asked_for():
    names = [
        n
        for n, p in add_lora(make_model("llama"), LoraSettings(r=2, layers="0")).named_parameters()
        if p.requires_grad
    ]
    assert names
    assert all(".layers.0." in name for name in names)
