"""Head tuning against whole passes: what is kept, what is trained, and what a step then costs."""

from __future__ import annotations

import pytest
import torch
from builders import ARCHITECTURES, make_model, save_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from src.engine.head import RowsHead
from src.engine.layers import decoder_layers, only_head_trained
from src.ht_opt import HeadSettings, add_head, candidate_tokens
from src.lora import add_lora
from src.models import load_model
from src.objectives import AnswerLikelihood, CandidateScoring
from src.prefix import add_prefix
from src.utils import UserError
from src.zo.directions import ParameterSpace, StepRecord

PROMPTS = [
    "a very good film It was",
    "dull It was",
    "the plot of a film so slow and so cold It was",
    "warm It was",
]
ONE_TOKEN = [["terrible", "great"], ["great", "terrible"], ["great", "good"], ["great", "terrible", "bad"]]
SEVERAL_TOKENS = [["terrible", "very great"], ["great", "bad and dull"], ["so so good", "good"], ["a film", "bad"]]
ROWS = {"candidates": HeadSettings(tokens=(6, 7)), "all": HeadSettings(rows="all")}


def moved(model, seed=1, scale=0.1):
    """`model` after an update along one direction."""
    ParameterSpace(model).apply(StepRecord(0, (seed,), (-1.0,), scale))
    return model


def as_base(model, model_type):
    """A plain model with the same head as `model`, and float64 weights of the same values."""
    base = make_model(model_type, dtype=torch.float64)
    base.load_state_dict(make_model(model_type).state_dict())
    head = model.get_output_embeddings()
    weight = head.weight.detach().double().clone()
    if isinstance(head, RowsHead):
        weight[head.tokens] = head.rows.weight.detach().double()
    base.get_output_embeddings().weight = nn.Parameter(weight)
    return base


def objectives(model, tokenizer, **settings):
    answers = ["so very good", "bad", "warm and bright", "cold"]
    labels = [0, 1, 1, 0]
    return {
        "one token": CandidateScoring(model, tokenizer, PROMPTS, ONE_TOKEN, labels, **settings),
        "several tokens": CandidateScoring(model, tokenizer, PROMPTS, SEVERAL_TOKENS, labels, **settings),
        "likelihood": AnswerLikelihood(model, tokenizer, PROMPTS, answers, **settings),
    }


class CountedLayers:
    """Counts the passes through a model's layers."""

    def __init__(self, model):
        self.passes = 0
        product = next(m for m in decoder_layers(model)[0].modules() if isinstance(m, nn.Linear | Conv1D))
        product.register_forward_hook(self._count)

    def _count(self, *_):
        self.passes += 1


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("rows", ROWS)
def test_kept_states_give_the_losses_of_whole_passes(model_type, rows, tokenizer):
    model = add_head(make_model(model_type), ROWS[rows])
    kept = objectives(model, tokenizer, token_budget=30)
    layers = CountedLayers(model)
    first = {name: objective.losses() for name, objective in kept.items()}
    passes = layers.passes
    assert passes > 0
    for seed in range(2):
        moved(model, seed)
        plain = objectives(as_base(model, model_type), tokenizer)
        for name, objective in kept.items():
            losses = objective.losses()
            torch.testing.assert_close(losses, plain[name].losses(), rtol=2e-5, atol=1e-6)
            assert not torch.equal(losses, first[name])
            assert objective.losses([2, 0]).tolist() == pytest.approx(losses[[2, 0]].tolist(), rel=1e-6)
            objective.losses()
    again = layers.passes
    for objective in kept.values():
        objective.losses()
    assert layers.passes == again, "no pass through the layers for the same samples"


@pytest.mark.parametrize("model_type", ["opt", "llama", "gpt2"])
def test_an_untied_head_starts_as_the_embedding_and_leaves_it_alone(model_type):
    for settings in ROWS.values():
        model = add_head(make_model(model_type), settings)
        base = make_model(model_type)
        tied = base.get_output_embeddings().weight is base.get_input_embeddings().weight
        assert tied == (model_type != "llama")
        ids = torch.tensor([[5, 9, 4]])
        head = model.get_output_embeddings()
        start = head.rows.weight if settings.tokens else head.weight
        embedding = base.get_output_embeddings().weight
        assert torch.equal(start, embedding[list(settings.tokens)] if settings.tokens else embedding)
        torch.testing.assert_close(model(ids).logits, base(ids).logits)
        moved(model)
        assert (model(ids).logits - base(ids).logits).abs().max() > 0.01
        assert torch.equal(model.get_input_embeddings().weight, base.get_input_embeddings().weight)
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        for name, parameter in base.named_parameters():
            if name not in trained:
                assert torch.equal(dict(model.named_parameters())[name], parameter), name


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_only_the_candidates_rows_move(model_type):
    model = add_head(make_model(model_type), HeadSettings(tokens=(4, 9, 20)))
    assert ParameterSpace(model).num_elements == 3 * 32
    ids = torch.tensor([[5, 9, 4, 11]])
    before = model(ids).logits
    moved(model)
    changed = (model(ids).logits != before).flatten(0, 1).any(0)
    assert changed.nonzero()[:, 0].tolist() == [4, 9, 20]


def test_a_row_of_the_head_is_the_row_of_the_whole_matrix(tokenizer):
    """A step over the candidates' rows is the same rows' step over the matrix, where the direction is the same."""
    few, many = (add_head(make_model("opt"), settings) for settings in ROWS.values())
    delta = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        few.get_output_embeddings().rows.weight += delta
        many.get_output_embeddings().weight[[6, 7]] += delta
    for name, objective in objectives(few, tokenizer).items():
        torch.testing.assert_close(objective.losses(), objectives(many, tokenizer)[name].losses())
    ids = torch.tensor([[5, 9, 4]])
    torch.testing.assert_close(few(ids).logits, many(ids).logits)


def test_a_tied_head_moves_both_uses_and_keeps_nothing(tokenizer):
    model = add_head(make_model("opt"), HeadSettings(untied=False, rows="all"))
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        "model.decoder.embed_tokens.weight"
    ]
    assert not only_head_trained(model)
    objective = objectives(model, tokenizer)["one token"]
    objective.losses()
    moved(model)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    base = make_model("opt")
    base.load_state_dict(model.state_dict())
    torch.testing.assert_close(objective.losses(), objectives(base, tokenizer)["one token"].losses())


@pytest.mark.parametrize("rows", ROWS)
def test_a_saved_head_is_small_and_loads_again(rows, tmp_path):
    base = save_model(tmp_path / "base", "opt")
    model = moved(add_head(load_model(base)[0], ROWS[rows]))
    model.save_pretrained(tmp_path / "saved")
    again, _ = load_model(str(tmp_path / "saved"))
    assert again.track == ROWS[rows]
    ids = torch.tensor([[5, 9, 4]])
    assert torch.equal(again(ids).logits, model(ids).logits)
    size = (tmp_path / "saved" / "track.safetensors").stat().st_size
    assert size < 200 + 4 * 32 * (2 if rows == "candidates" else model.config.vocab_size)


def test_candidates_tokens_are_those_behind_the_prompt(tokenizer):
    assert candidate_tokens(tokenizer, "It was", [" great", " terrible"]) == (6, 7)
    several = candidate_tokens(tokenizer, "It was", [" so good", " great", " so"])
    assert several == tuple(sorted(tokenizer.convert_tokens_to_ids(["so", "good", "great"])))


def test_what_cannot_be_trained_is_refused_in_a_line():
    for settings, message in [
        ({"rows": "some"}, "unknown head rows 'some': use candidates or all"),
        ({}, "needs the candidates' tokens"),
        ({"rows": "all", "tokens": (1,)}, "rows 'all' takes none"),
        ({"tokens": (7, 6)}, "sorted and different"),
        ({"tokens": (6, 7), "untied": False}, "untie it, or train all rows"),
    ]:
        with pytest.raises(UserError, match=message):
            HeadSettings(**settings)
    model = make_model("llama")
    for settings, message in [
        (HeadSettings(untied=False, rows="all"), "not tied"),
        (HeadSettings(tokens=(1, 999)), "rows, so none for some token"),
    ]:
        with pytest.raises(UserError, match=message):
            add_head(model, settings)
    assert all(p.requires_grad for p in model.parameters())
    for add in (add_lora, add_prefix, lambda model: add_head(model, ROWS["all"])):
        with pytest.raises(UserError, match=r"the model has a .* track; choose one of lora, prefix and head"):
            add_head(add(make_model("opt")), ROWS["all"])
        with pytest.raises(UserError, match="the model has a head track; choose one"):
            add(add_head(make_model("opt"), ROWS["candidates"]))
    odd = make_model("opt")
    odd.set_output_embeddings(nn.Sequential(odd.get_output_embeddings()))
    with pytest.raises(UserError, match="needs a linear head, model type 'opt'"):
        add_head(odd, ROWS["all"])
