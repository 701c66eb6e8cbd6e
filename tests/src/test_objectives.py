"""Losses against a plain, unbatched float64 forward pass written with nothing of the engine."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from builders import ARCHITECTURES, make_model

from src.engine import scoring
from src.engine.batching import BATCH_OVERHEAD_TOKENS, ScoredSequence, TokenTable, launch_tokens, partition
from src.engine.encoding import Window
from src.lora import add_lora
from src.objectives import AnswerLikelihood, CandidateScoring
from src.sample_data.learning_task import pretrain
from src.utils import encode

PROMPTS = [
    "a very good film It was",
    "dull It was",
    "the plot of a film so slow and so cold It was",
    "warm It was",
]
ONE_TOKEN = [["terrible", "great"]] * 4
SEVERAL_TOKENS = [["terrible", "very great", "so so good"], ["great", "bad and dull"], ["bad", "good"], ["a film"]]


def plain_scores(model, tokenizer, prompt, options):
    """Mean log-probability of each option, one sequence at a time, from the whole vocabulary in float64."""
    wide = make_wide(model)
    start = next(encode(tokenizer, [prompt]))
    scores = []
    for option in options:
        ids = next(encode(tokenizer, [f"{prompt} {option}"]))
        with torch.no_grad():
            log_probs = wide(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        picked = [log_probs[t - 1, ids[t]].item() for t in range(len(start), len(ids))]
        scores.append(np.mean(picked))
    return np.array(scores)


def make_wide(model):
    wide = make_model(model.config.model_type, dtype=torch.float64)
    wide.load_state_dict(model.state_dict())
    return wide


def plain_loss(scores, label):
    return -(scores[label] - np.log(np.exp(scores - scores.max()).sum()) - scores.max())


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("candidates", [ONE_TOKEN, SEVERAL_TOKENS], ids=["one token", "several tokens"])
@pytest.mark.parametrize("token_budget", [None, 1])
def test_losses_equal_an_unbatched_float64_pass(model_type, candidates, token_budget, tokenizer):
    model = make_model(model_type)
    labels = [0, 1, 1, 0]
    objective = CandidateScoring(model, tokenizer, PROMPTS, candidates, labels, token_budget=token_budget)
    scores = [plain_scores(model, tokenizer, p, c) for p, c in zip(PROMPTS, candidates, strict=True)]
    expected = [plain_loss(s, label) for s, label in zip(scores, labels, strict=True)]
    losses = objective.losses()
    assert losses.dtype == torch.float32
    np.testing.assert_allclose(losses.numpy(), expected, rtol=1e-5, atol=1e-7)
    assert objective.predictions().tolist() == [int(s.argmax()) for s in scores]
    metrics = objective.metrics()
    assert metrics["loss"] == pytest.approx(np.mean(expected), rel=1e-5)
    assert metrics["accuracy"] == np.mean([s.argmax() == label for s, label in zip(scores, labels, strict=True)])


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_likelihood_is_the_mean_over_the_answers_tokens(model_type, tokenizer):
    model = make_model(model_type)
    answers = ["so very good", "bad", "warm and bright", "cold"]
    objective = AnswerLikelihood(model, tokenizer, PROMPTS, answers)
    expected = [-plain_scores(model, tokenizer, p, [a])[0] for p, a in zip(PROMPTS, answers, strict=True)]
    np.testing.assert_allclose(objective.losses().numpy(), expected, rtol=1e-5)
    assert objective.metrics() == {"loss": pytest.approx(np.mean(expected), rel=1e-5)}


def test_the_logits_of_a_micro_batch_are_bounded(tokenizer, monkeypatch):
    model = make_model("llama")
    answers = ["so very good", "bad", "warm and bright", "cold"]
    whole = AnswerLikelihood(model, tokenizer, PROMPTS, answers)
    monkeypatch.setattr(scoring, "MOST_LOGITS", 4 * model.config.vocab_size)
    parts = AnswerLikelihood(model, tokenizer, PROMPTS, answers)
    scored = [len(batch.targets) for batch in parts._scorer._make_plan(parts.token_budget, None)]
    assert len(scored) > 1
    assert max(scored) <= 4
    torch.testing.assert_close(parts.losses(), whole.losses(), rtol=1e-5, atol=1e-6)


def test_losses_follow_the_parameters_and_leave_the_model_as_it_was(tokenizer):
    model = make_model("llama")
    objective = CandidateScoring(model, tokenizer, PROMPTS, ONE_TOKEN, [0, 1, 1, 0])
    before = objective.losses()
    ids = torch.tensor([[4, 5, 6]])
    whole = model(input_ids=ids).logits
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1.5)
    assert (objective.losses() != before).all()
    assert whole.shape == (1, 3, model.config.vocab_size)
    assert model(input_ids=ids).logits.shape == whole.shape, "the restricted head outlived its pass"


def test_dropout_is_off_even_where_the_model_was_left_in_training_mode(tokenizer):
    model = make_model("opt").train()
    objective = CandidateScoring(model, tokenizer, PROMPTS, ONE_TOKEN, [0, 1, 1, 0])
    assert torch.equal(objective.losses(), objective.losses())


def test_adapters_take_part(tokenizer):
    model = add_lora(make_model("llama"))
    objective = CandidateScoring(model, tokenizer, PROMPTS, ONE_TOKEN, [0, 1, 1, 0])
    before = objective.losses()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.3)
    assert (objective.losses() != before).any()


def test_half_precision_losses_are_float32_and_close(tokenizer):
    wide = CandidateScoring(make_model("llama"), tokenizer, PROMPTS, ONE_TOKEN, [0, 1, 1, 0]).losses()
    narrow_model = make_model("llama").to(torch.bfloat16)
    narrow = CandidateScoring(narrow_model, tokenizer, PROMPTS, ONE_TOKEN, [0, 1, 1, 0]).losses()
    assert narrow.dtype == torch.float32
    assert torch.allclose(wide, narrow, rtol=0.1, atol=0.05)
    assert not torch.equal(wide, narrow)


@pytest.mark.parametrize(
    ("prompts", "candidates", "labels", "message"),
    [
        ([], [], [], "at least one sample"),
        (PROMPTS, ONE_TOKEN, [0, 1], "must be equal"),
        (["a It was"], [["great"]], [1], "label 1 is outside its 1 candidates"),
        (["a It was"], [["great"]], [-1], "label -1 is outside"),
        (["a It was"], [["great", ""]], [0], "adds no token"),
        ([""], [["great"]], [0], "the prompt has no token"),
    ],
)
def test_bad_samples_are_named(prompts, candidates, labels, message, tokenizer):
    with pytest.raises(ValueError, match=message):
        CandidateScoring(make_model("gpt2"), tokenizer, prompts, candidates, labels)


def test_a_sample_that_is_too_long_is_cut_or_refused(tokenizer):
    model, prompts = make_model("gpt2"), ["a It was", "film " * 300]
    strict = Window(model, tokenizer, truncate=False)
    with pytest.raises(ValueError, match="sample 1 has 301 tokens, the model takes 256"):
        CandidateScoring(model, tokenizer, prompts, [["great"]] * 2, [0, 0], window=strict)
    with pytest.warns(UserWarning, match="1 of 2 samples are longer than 256 tokens and lose their beginning"):
        cut = CandidateScoring(model, tokenizer, prompts, [["great", "bad"]] * 2, [0, 0])
    short = CandidateScoring(model, tokenizer, ["film " * 255], [["great", "bad"]], [0])
    assert cut.losses()[1] == pytest.approx(float(short.losses()[0]), rel=1e-5)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("candidates", [ONE_TOKEN, SEVERAL_TOKENS], ids=["one token", "several tokens"])
def test_losses_of_some_samples_are_theirs(model_type, candidates, tokenizer):
    objective = CandidateScoring(make_model(model_type), tokenizer, PROMPTS, candidates, [0, 1, 1, 0])
    whole = objective.losses()
    for samples in ([2], [3, 0], torch.tensor([1, 2, 3]), np.array([3, 2, 1, 0])):
        torch.testing.assert_close(
            objective.losses(samples), whole[torch.as_tensor(samples)], rtol=1e-5, atol=1e-6
        )
    answers = AnswerLikelihood(make_model(model_type), tokenizer, PROMPTS, ["bad", "so good", "cold", "a film"])
    torch.testing.assert_close(answers.losses([3, 1]), answers.losses()[[3, 1]], rtol=1e-5, atol=1e-6)


def test_micro_batches_are_sorted_within_budget_and_whole():
    rng = np.random.default_rng(0)
    sequences = [ScoredSequence([1] * int(n), int(n) - 1) for n in rng.integers(2, 40, size=200)]
    batches = TokenTable(sequences, torch.device("cpu")).micro_batches(100)
    rows = torch.cat([batch.rows for batch in batches]).tolist()
    assert sorted(rows) == list(range(200))
    widths = [batch.input_ids.shape[1] for batch in batches]
    assert widths == sorted(widths)
    assert all(batch.input_ids.numel() <= 100 or len(batch.rows) == 1 for batch in batches)
    padded = sum(batch.input_ids.numel() for batch in batches)
    assert padded < 1.1 * sum(len(s.ids) for s in sequences), "sorting by length leaves little padding"


def cost_of(runs, least):
    return sum(max(least, len(run) * run[-1]) + BATCH_OVERHEAD_TOKENS for run in runs)


def brute_force_cost(lengths, budget, least):
    """Least cost over all ways to cut."""
    best = math.inf
    for cuts in itertools.product([False, True], repeat=len(lengths) - 1):
        ends = [i + 1 for i, cut in enumerate(cuts) if cut] + [len(lengths)]
        runs = [lengths[a:b] for a, b in itertools.pairwise([0, *ends])]
        if all(len(run) == 1 or len(run) * run[-1] <= budget for run in runs):
            best = min(best, cost_of(runs, least))
    return best


@pytest.mark.parametrize("least", [0, 90])
@pytest.mark.parametrize("seed", range(20))
def test_the_partition_is_the_cheapest(seed, least):
    rng = np.random.default_rng(seed)
    lengths = np.sort(rng.integers(1, 60, size=9))
    budget = int(rng.integers(20, 200))
    cuts = partition(lengths, budget, least)
    cost = cost_of([lengths[a:b] for a, b in itertools.pairwise(cuts)], least)
    assert cost == brute_force_cost(lengths.tolist(), budget, least)


def test_a_gpu_takes_few_micro_batches_of_a_small_model_and_more_of_a_large_one():
    """A launch costs a small model more tokens; a CPU pays nothing for one."""
    small, large = make_model("opt"), make_model("opt")
    large.config.hidden_size, large.config.ffn_dim = 2048, 8192
    cuda = torch.device("cuda")
    assert launch_tokens(small, torch.device("cpu")) == 0
    assert 1500 < launch_tokens(large, cuda) < 3000 < launch_tokens(small, cuda)
    lengths = np.sort(np.random.default_rng(0).integers(5, 60, size=256))
    counts = [len(partition(lengths, 32768, least)) - 1 for least in (0, launch_tokens(large, cuda), 10**6)]
    assert counts[0] > 2 * counts[1] > 2 * counts[2] == 2


def test_the_learning_task_starts_near_chance():
    task = pretrain()
    accuracy = task.objective(500, seed=2).metrics()["accuracy"]
    assert 0.45 <= accuracy <= 0.6


def test_candidates_of_several_tokens_behind_a_sliding_window(tokenizer):
    """A window counts columns of a cache, so that a short prompt beside a long one would lose its own tokens."""
    model = make_model("mistral")
    model.config.sliding_window = 6
    prompts = ["It was", "the plot of a film so slow and so cold It was", "dull It was"]
    candidates = [["very great", "so so bad"]] * 3

    def losses(rows):
        return CandidateScoring(
            model, tokenizer, [prompts[i] for i in rows], [candidates[i] for i in rows], [0] * len(rows)
        ).losses()

    alone = torch.cat([losses([row]) for row in range(3)])
    torch.testing.assert_close(losses([0, 1, 2]), alone, rtol=1e-5, atol=1e-5)
