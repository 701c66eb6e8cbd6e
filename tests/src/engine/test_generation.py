"""Greedy generation against the library's own, one prompt at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from builders import ARCHITECTURES, make_model

from src.engine.decoding import Decoding, shared_beginnings
from src.engine.encoding import Window
from src.metrics import f1_score
from src.objectives import GenerationF1

PROMPTS = [
    "a very good film It was",
    "dull",
    "the plot of a film so slow and so cold It was",
    "warm It was",
    "an actor of the plot",
    "great great film",
]


def one_by_one(model, tokenizer, prompt, max_new_tokens, **options):
    """`generate` without batch, padding or early leaving."""
    ids = torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"]])
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=False, **options
    )
    return tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).split("\n")[0].strip()


def model_that_stops(model_type):
    """A random model whose end-of-text token wins now and then, at other steps for other prompts."""
    model = make_model(model_type)
    head = model.get_output_embeddings()
    with torch.no_grad():
        head.weight[2] = 1.05 * head.weight[4:].abs().mean(0) * torch.sign(head.weight[9])
    return model


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("token_budget", [1, 64, 4096])
def test_answers_are_those_of_the_library(model_type, token_budget, tokenizer):
    model = model_that_stops(model_type)
    objective = GenerationF1(model, tokenizer, PROMPTS, [["good"]] * 6, 12, token_budget=token_budget)
    expected = [one_by_one(model, tokenizer, prompt, 12) for prompt in PROMPTS]
    assert objective.texts() == expected
    assert objective.texts([4, 1]) == [expected[4], expected[1]]


SHARED = " ".join(["the actor and the plot of a dull film was cold"] * 2)
BEGINNINGS = [
    *(f"{SHARED} {end}" for end in ("so very good", "slow", "a bright film It was", "so very bad")),
    *(f"warm {SHARED} {end}" for end in ("It was", "great and good")),
    "dull",
    f"bright {SHARED} a film",
    SHARED,
]


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("token_budget", [60, 4096])
def test_answers_to_prompts_that_begin_alike_are_those_of_the_library(model_type, token_budget, tokenizer):
    model = model_that_stops(model_type)
    golds = [["good"]] * len(BEGINNINGS)
    objective = GenerationF1(model, tokenizer, BEGINNINGS, golds, 12, token_budget=token_budget)
    assert objective.texts() == [one_by_one(model, tokenizer, prompt, 12) for prompt in BEGINNINGS]


def test_what_begins_alike_goes_through_the_model_once(tokenizer, monkeypatch):
    model = make_model("llama")
    objective = GenerationF1(model, tokenizer, BEGINNINGS, [["good"]] * len(BEGINNINGS), 1)
    seen = []
    forward = model.model.forward

    def counted(*args, **inputs):
        seen.append(inputs["input_ids"].numel())
        return forward(*args, **inputs)

    monkeypatch.setattr(model.model, "forward", counted)
    objective.texts()
    assert len(seen) == 2
    assert sum(seen) < 0.8 * objective.num_tokens
    seen.clear()
    model.config.sliding_window = 30
    objective.texts()
    assert len(seen) == 1, "a window counts places in the cache, so nothing is shared"


def test_groups_of_rows_that_begin_alike():
    common = list(range(100, 130))
    rows = [[*common, 1, 2], [5, 6], [*common, 3], [*common[:25], 7], common, [*common[:10], 8, 9]]
    lengths = np.array([len(row) for row in rows])
    ids = np.array([row + [0] * (32 - len(row)) for row in rows])
    groups, shared = shared_beginnings(ids, lengths)
    assert shared.tolist() == [25, 0, 25, 25, 25, 0]
    assert len({groups[0], groups[2], groups[3], groups[4]}) == 1
    assert len(set(groups.tolist())) == 3
    alone = shared_beginnings(ids[:1], lengths[:1])
    assert [part.tolist() for part in alone] == [[0], [0]]
    twins = shared_beginnings(ids[[4, 4]], lengths[[4, 4]])
    assert twins[1].tolist() == [29, 29], "the last token is each row's own"


def test_answers_end_at_different_steps(tokenizer):
    """The case above is worth its name: rows leave, and leave at different times."""
    lengths = set()
    for model_type in ARCHITECTURES:
        texts = GenerationF1(model_that_stops(model_type), tokenizer, PROMPTS, [["good"]] * 6, 12).texts()
        lengths.update(len(tokenizer(text)["input_ids"]) for text in texts)
    assert len(lengths) > 3


def test_losses_are_minus_the_f1(tokenizer):
    model = make_model("llama")
    golds = [["good", "a film"], ["so cold"], ["plot"], ["a"], ["the actor"], ["great"]]
    objective = GenerationF1(model, tokenizer, PROMPTS, golds, 12)
    expected = [-f1_score(text, gold) for text, gold in zip(objective.texts(), golds, strict=True)]
    losses = objective.losses()
    assert losses.dtype == torch.float32
    np.testing.assert_allclose(losses.numpy(), expected, rtol=1e-6)
    assert objective.losses([5, 0]).tolist() == losses[[5, 0]].tolist()
    assert objective.metrics() == {
        "loss": pytest.approx(np.mean(expected)),
        "f1": pytest.approx(-np.mean(expected)),
    }
    assert objective.may_be_zero


def test_an_answer_ends_before_a_newline(tokenizer):
    tokenizer.add_tokens(["x\ny"])
    model = make_model("llama")
    model.resize_token_embeddings(len(tokenizer))
    ids = torch.tensor([tokenizer(PROMPTS[0], add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        best = int(model(input_ids=ids).logits[0, -1].argmax())
        model.lm_head.weight[-1] = 2 * model.lm_head.weight[best]
    assert GenerationF1(model, tokenizer, PROMPTS[:1], [["good"]]).texts() == [""]


@pytest.mark.parametrize(
    "decoding",
    [Decoding(num_beams=3), Decoding(sampling=True, top_k=1), Decoding(sampling=True, temperature=1e-4)],
    ids=["beams", "top_k 1", "cold"],
)
def test_other_ways_to_decode_are_the_librarys(decoding, tokenizer):
    """Sampling that leaves one choice is greedy; beams are compared with the library's, one prompt at a time."""
    model = model_that_stops("llama")
    objective = GenerationF1(model, tokenizer, PROMPTS, [["good"]] * 6, 12, decoding=decoding)
    expected = [one_by_one(model, tokenizer, prompt, 12, num_beams=decoding.num_beams) for prompt in PROMPTS]
    assert objective.texts() == expected
    assert objective.texts([3]) == expected[3:4]
    if decoding.num_beams > 1:
        assert expected != [one_by_one(model, tokenizer, prompt, 12) for prompt in PROMPTS], "beams matter here"


def test_samples_follow_their_seed_and_leave_the_global_generator_alone(tokenizer):
    model = model_that_stops("llama")

    def texts(seed):
        decoding = Decoding(sampling=True, temperature=2.0, seed=seed)
        return GenerationF1(model, tokenizer, PROMPTS, [["good"]] * 6, 12, decoding=decoding).texts()

    before = torch.get_rng_state()
    assert texts(1) == texts(1)
    assert texts(1) != texts(2), "72 tokens of 50 at a high temperature agree with a chance far below 1e-9"
    assert torch.equal(torch.get_rng_state(), before)


def test_an_answer_may_end_at_another_token(tokenizer):
    model = make_model("llama")
    whole = GenerationF1(model, tokenizer, PROMPTS[:1], [["good"]], 12).texts()[0].split()
    assert len(whole) > 3
    end = whole[2]
    short = GenerationF1(model, tokenizer, PROMPTS[:1], [["good"]], 12, decoding=Decoding(eos_token=end))
    assert short.texts() == [" ".join(whole[: whole.index(end)])]


@pytest.mark.parametrize(
    "wrong", [{"eos_token": ""}, {"num_beams": 0}, {"temperature": 0.0}, {"top_p": 1.5}, {"top_k": 0}]
)
def test_wrong_ways_to_decode_are_refused(wrong):
    with pytest.raises(ValueError, match=r"eos_token is empty|must be at least 1"):
        Decoding(**wrong)


def test_a_prompt_that_is_too_long_is_cut_or_refused(tokenizer):
    model, prompts = make_model("opt"), ["film " * 250, "dull"]
    strict = Window(model, tokenizer, truncate=False, reserved=50)
    with pytest.raises(ValueError, match="sample 0 has 250 tokens and 50 new ones, the model takes 256"):
        GenerationF1(model, tokenizer, prompts, [["a"]] * 2, window=strict)
    with pytest.warns(UserWarning, match="1 of 2 samples are longer than 206 tokens"):
        cut = GenerationF1(model, tokenizer, prompts, [["a"]] * 2)
    assert cut.texts()[0] == one_by_one(model, tokenizer, "film " * 206, 50)


@pytest.mark.parametrize(
    ("prompts", "answers", "tokens", "message"),
    [
        (PROMPTS[:2], [["a"]], 5, "must be equal"),
        (PROMPTS[:1], [[]], 5, "no gold answer"),
        ([""], [["a"]], 5, "no prompt"),
        (PROMPTS[:1], [["a"]], 0, "max_new_tokens"),
        (["film"], [["a"]], 256, "256 tokens leave no room for a prompt and 256 new ones"),
    ],
)
def test_bad_samples_are_named(prompts, answers, tokens, message, tokenizer):
    with pytest.raises(ValueError, match=message):
        GenerationF1(make_model("opt"), tokenizer, prompts, answers, tokens)
