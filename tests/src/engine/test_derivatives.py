"""Exact derivatives against autograd's gradient of each sample's loss, in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from builders import make_model
from torch import nn

from src.engine import derivatives as engine
from src.engine.derivatives import exact_derivatives
from src.engine.encoding import Window, joined
from src.engine.scoring import SequenceScorer
from src.ht_opt import HeadSettings, add_head
from src.lora import LoraSettings, add_lora
from src.objectives import AnswerLikelihood, CandidateScoring, GenerationF1
from src.prefix import PrefixSettings, add_prefix
from src.utils import UserError
from src.zo import directions
from src.zo import noise as noise_module
from src.zo.directions import ParameterSpace
from src.zo.sources import CentralDifferences

PROMPTS = [
    "a very good film It was",
    "dull It was",
    "cold and slow It was",
    "warm It was",
    "so very very good a plot of the actor It was",
]
LABELS = [0, 0, 1, 1, 1]
CANDIDATES = {
    "one token": [["terrible", "great"]] * 5,
    "several tokens": [["so bad", "very great film"]] * 5,
    "five": [["so", "bad", "good", "a film", "warm"]] * 5,
    "ragged": [
        ["so bad", "very great film", "good"],
        ["bad"],
        ["so", "good film"],
        ["bad a", "great"],
        ["a", "so bad"],
    ],
}
ADDED = {
    "lora": lambda model, **lora: add_lora(model, LoraSettings(r=3, **lora)),
    "prefix": lambda model: add_prefix(model, PrefixSettings(num_prefix=3)),
    "rows": lambda model: add_head(model, HeadSettings(tokens=(6, 7, 10))),
    "head": lambda model: add_head(model, HeadSettings(rows="all")),
}
TRACKS = ("full", *ADDED)
ARCHITECTURES = ("opt", "llama", "qwen2", "gemma", "gpt2")
SEEDS = (5, 6, 7)


class Nobody:
    def announce(self, *segments):
        pass


def rms_norm(module, hidden):
    """The library's norms, without their step through float32, which a comparison in float64 would show."""
    eps = getattr(module, "variance_epsilon", None) or module.eps
    weight = module.weight + 1 if "Gemma" in type(module).__name__ else module.weight
    return hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + eps) * weight


@pytest.fixture
def build(monkeypatch):
    def make(architecture, track, dtype=torch.float64, **lora):
        model = make_model(architecture, dtype=dtype)
        if dtype == torch.float64:
            for kind in {type(m) for m in model.modules() if type(m).__name__.endswith("RMSNorm")}:
                monkeypatch.setattr(kind, "forward", rms_norm)
        if track == "full":
            return model.requires_grad_(True)
        model = ADDED[track](model, **lora)
        generator = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            if parameter.requires_grad:  # B starts at zero, where half of the derivatives are
                parameter.data.normal_(std=0.3, generator=generator)
        return model

    return make


def scoring(model, tokenizer, kind="one token", **settings):
    return CandidateScoring(model, tokenizer, PROMPTS, CANDIDATES[kind], LABELS, **settings)


def noise(space, seed):
    """The direction of a seed, parameter by parameter."""
    before = {name: p.detach().clone() for name, p in space.parameters.items()}
    for parameter in space.parameters.values():
        parameter.data.zero_()
    space.apply(directions.StepRecord(0, (seed,), (-1.0,), 1.0))
    found = {name: p.detach().clone() for name, p in space.parameters.items()}
    for name, parameter in space.parameters.items():
        parameter.data.copy_(before[name])
    return found


def by_autograd(objective, space, seeds):
    """float64 (K, N): <grad l_i, z_k>, one gradient a sample."""
    result = torch.zeros(len(seeds), len(objective), dtype=torch.float64)
    zs = [noise(space, seed) for seed in seeds]
    for piece in objective.pieces(10**6):
        losses = objective.piece_losses(piece, Nobody())
        for slot, sample in enumerate(piece.samples.tolist()):
            gradients = torch.autograd.grad(
                losses[slot], list(space.parameters.values()), retain_graph=True, allow_unused=True
            )
            for k, z in enumerate(zs):
                pairs = zip(z.values(), gradients, strict=True)
                result[k, sample] = sum((g * part).sum() for part, g in pairs if g is not None)
    return result


def check_against_autograd(objective, space, seeds=SEEDS):
    before = [p.detach().clone() for p in objective.model.parameters()]
    found, losses = exact_derivatives(objective, space, seeds)
    truth = by_autograd(objective, space, seeds)
    assert truth.abs().max() > 0
    assert ((found - truth).abs().max() / truth.abs().max()).item() < 1e-10
    torch.testing.assert_close(losses.float(), objective.losses(), rtol=1e-5, atol=1e-6)
    for parameter, old in zip(objective.model.parameters(), before, strict=True):
        assert parameter.grad is None
        assert torch.equal(parameter, old)


@pytest.mark.parametrize("kind", CANDIDATES)
@pytest.mark.parametrize("track", TRACKS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_candidates(architecture, track, kind, build, tokenizer):
    model = build(architecture, track)
    check_against_autograd(scoring(model, tokenizer, kind), ParameterSpace(model))


@pytest.mark.parametrize("track", ["lora", "full"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padded_rows(architecture, track, build, tokenizer):
    model = build(architecture, track)
    model.config._attn_implementation = "eager"
    objective = scoring(model, tokenizer)
    assert objective.micro_batches()[0].layout is None
    check_against_autograd(objective, ParameterSpace(model))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_padded_rows_behind_a_prefix(architecture, build, tokenizer, monkeypatch):
    monkeypatch.setattr("src.engine.scoring.can_pack", lambda *_: False)
    model = build(architecture, "prefix")
    objective = scoring(model, tokenizer)
    assert objective.micro_batches()[0].layout is None
    check_against_autograd(objective, ParameterSpace(model))


@pytest.mark.parametrize("track", TRACKS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_answers(architecture, track, build, tokenizer):
    model = build(architecture, track)
    answers = ["great", "so bad a film", "good", "warm and cold", "a"]
    check_against_autograd(AnswerLikelihood(model, tokenizer, PROMPTS, answers), ParameterSpace(model))


def test_candidates_as_sequences_stay_together(build, tokenizer):
    """Candidates whose joined text changes the prompt's tokens are sequences of their own, of one sample."""
    model = build("llama", "lora")
    objective = scoring(model, tokenizer, "several tokens")
    groups = joined(tokenizer, Window(model, tokenizer), PROMPTS, CANDIDATES["several tokens"])
    objective._scorer = SequenceScorer(model, groups, objective.device)
    objective.derivative_budget = 25
    assert len(objective.pieces(25)) > 1
    check_against_autograd(objective, ParameterSpace(model))


def test_tied_and_untied_heads(build, tokenizer):
    for tied in (True, False):
        model = build("llama", "full")
        if tied:
            model.lm_head.weight = model.model.embed_tokens.weight
        space = ParameterSpace(model)
        assert ("lm_head.weight" in space.parameters) is not tied
        check_against_autograd(scoring(model, tokenizer), space)


def test_a_module_that_is_not_known_is_refused_by_name(build, tokenizer):
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.ones(1))

        def forward(self, hidden):
            return hidden * self.factor

    model = make_model("llama")
    model.model.norm = nn.Sequential(model.model.norm, Scale())
    with pytest.raises(UserError, match=r"factor belongs to a Scale, .*--zo_derivative central"):
        exact_derivatives(scoring(model, tokenizer), ParameterSpace(model), (1,))


def test_generated_answers_have_no_derivative(build, tokenizer):
    model = build("opt", "lora", torch.float32)
    objective = GenerationF1(model, tokenizer, PROMPTS, [["great"]] * 5, max_new_tokens=2)
    with pytest.raises(UserError, match=r"GenerationF1 have no derivative; use --zo_derivative central"):
        exact_derivatives(objective, ParameterSpace(model), (1,))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_central_differences_in_float64_agree(architecture, build, tokenizer):
    model = build(architecture, "lora")
    objective, space = scoring(model, tokenizer), ParameterSpace(model)
    scores = objective._scorer.piece_scores

    def losses():
        """The objective's, but in float64."""
        result = torch.empty(5, dtype=torch.float64)
        with torch.no_grad():
            for piece in objective.pieces(10**6):
                labels = objective.labels[piece.samples]
                result[piece.samples] = nn.functional.cross_entropy(scores(piece), labels, reduction="none")
        return result

    found, _ = exact_derivatives(objective, space, SEEDS)
    for k, seed in enumerate(SEEDS):
        plus, minus = space.two_point(seed, 1e-6, losses)
        assert (((plus - minus) / 2e-6 - found[k]).abs().max() / found.abs().max()).item() < 1e-6


@pytest.mark.parametrize("track", ["lora", "full"])
def test_many_directions_are_single_calls(track, build, tokenizer):
    model = build("llama", track, torch.float32)
    objective, space = scoring(model, tokenizer), ParameterSpace(model)
    seeds = tuple(range(100, 164))
    together, _ = exact_derivatives(objective, space, seeds)
    alone = torch.cat([exact_derivatives(objective, space, (seed,))[0] for seed in seeds])
    # A product with 64 columns adds in another order than one with a single column.
    assert ((together - alone).abs().max() / alone.abs().max()).item() < 1e-6


def test_neither_pieces_tiles_nor_samples_matter(build, tokenizer, monkeypatch):
    model = build("opt", "full")
    objective, space = scoring(model, tokenizer, "ragged"), ParameterSpace(model)
    whole, losses = exact_derivatives(objective, space, SEEDS)
    for budget, tile, block in itertools.product((1, 20), (1, 3 * 4 * 1000), (1000, 1 << 22)):
        monkeypatch.setattr(directions, "TILE_BYTES", tile)
        monkeypatch.setattr(directions, "CACHED_ELEMENTS", 0)
        for module in (directions, noise_module):
            monkeypatch.setattr(module, "BLOCK_SIZE", block)
        objective.derivative_budget = budget
        if block == 1 << 22:
            again, _ = exact_derivatives(objective, ParameterSpace(model), SEEDS)
            torch.testing.assert_close(again, whole, rtol=1e-9, atol=1e-12)
        else:  # other blocks are other directions
            check_against_autograd(objective, ParameterSpace(model))
    some, some_losses = exact_derivatives(objective, ParameterSpace(model), SEEDS, np.array([3, 0]))
    check_against_autograd(objective, ParameterSpace(model))
    assert some.shape == (3, 2)
    torch.testing.assert_close(some_losses, losses[[3, 0]], rtol=1e-9, atol=0)


def test_samples_may_be_asked_for_in_any_order_twice_or_not_at_all(build, tokenizer):
    model = build("opt", "lora")
    objective = CandidateScoring(model, tokenizer, PROMPTS, CANDIDATES["one token"], LABELS)
    space = ParameterSpace(model)
    every, losses = exact_derivatives(objective, space, SEEDS)
    wanted = [3, 1, 3, 0]
    some, their = exact_derivatives(objective, space, SEEDS, wanted)
    torch.testing.assert_close(some, every[:, wanted])
    torch.testing.assert_close(their, losses[wanted])
    none, no_losses = exact_derivatives(objective, space, SEEDS, [])
    assert (none.shape, no_losses.shape) == ((len(SEEDS), 0), (0,))


def test_layers_may_be_run_a_second_time(build, tokenizer):
    model = build("llama", "full")
    objective, space = scoring(model, tokenizer), ParameterSpace(model)
    whole, _ = exact_derivatives(objective, space, SEEDS)
    objective.recompute = True
    again, _ = exact_derivatives(objective, space, SEEDS)
    torch.testing.assert_close(again, whole, rtol=1e-9, atol=1e-12)
    assert "forward" not in vars(model.model.layers[0])


def test_a_full_gpu_gets_less_at_once(build, tokenizer, monkeypatch):
    model = build("llama", "lora")
    objective, space = scoring(model, tokenizer), ParameterSpace(model)
    whole, _ = exact_derivatives(objective, space, SEEDS)
    of_piece, budgets = engine._of_piece, []

    def full(objective, *args):
        budgets.append((objective.derivative_budget, objective.recompute))
        if not objective.recompute:
            raise torch.cuda.OutOfMemoryError
        return of_piece(objective, *args)

    monkeypatch.setattr(engine, "_of_piece", full)
    objective.derivative_budget = 40
    again, _ = exact_derivatives(objective, space, SEEDS)
    torch.testing.assert_close(again, whole, rtol=1e-9, atol=1e-12)
    assert budgets[0] == (40, False)
    assert budgets[1] == (20, False)
    assert budgets[-1][1]
    monkeypatch.setattr(engine, "_of_piece", lambda *_: (_ for _ in ()).throw(torch.cuda.OutOfMemoryError))
    with pytest.raises(torch.cuda.OutOfMemoryError):
        exact_derivatives(objective, space, SEEDS)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_the_signal(dtype, build, tokenizer):
    truth_model = build("llama", "lora", torch.float32)
    truth, _ = exact_derivatives(scoring(truth_model, tokenizer), ParameterSpace(truth_model), SEEDS)
    model = build("llama", "lora", torch.float32).to(dtype)
    objective, space = scoring(model, tokenizer), ParameterSpace(model)
    found, _ = exact_derivatives(objective, space, SEEDS)
    assert np.corrcoef(found.flatten(), truth.flatten())[0, 1] > 0.97
    central, _ = CentralDifferences(space, objective, 1e-3)(SEEDS)
    # The derivatives' own noise, which is what exact ones are for.
    assert (
        np.corrcoef(central.flatten(), truth.flatten())[0, 1] < np.corrcoef(found.flatten(), truth.flatten())[0, 1]
    )


def test_an_update_from_kept_noise_is_the_one_that_draws(build, tokenizer):
    record = directions.StepRecord(0, SEEDS, (1.0, 0.0, -0.5), 0.1)
    kept, fresh = (build("llama", "lora", torch.float32) for _ in range(2))
    space = ParameterSpace(kept)
    exact_derivatives(scoring(kept, tokenizer), space, SEEDS)
    assert space._tile_seeds == SEEDS
    space.apply(record)
    ParameterSpace(fresh).apply(record)
    assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), fresh.parameters(), strict=True))
