"""Every task's losses and predictions against plain float64 passes, one text at a time, without the engine."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import make_model, make_text_tokenizer

from src import sample_data
from src.engine import scoring
from src.samples import Limits, Scoring, demonstrations
from src.tasks import TASKS, get_task
from src.utils import UserError

SAMPLE_DATA = Path(sample_data.__file__).parent
CHOOSING = [task.name for task in TASKS.values() if not task.generates]
POSITIONS = 1024
ARCHITECTURES = ("opt", "llama", "qwen2", "gpt2")


@pytest.fixture(scope="module", params=ARCHITECTURES)
def pair(request):
    """A model with its tokenizer; GPT-2's and Qwen2's put nothing in front of a text."""
    return make_pair(request.param)


@functools.cache
def make_pair(model_type):
    tokenizer = make_text_tokenizer(bos=model_type in ("opt", "llama"))
    return make_model(model_type, vocab_size=len(tokenizer), positions=POSITIONS), tokenizer


def rows_of(name, split="train"):
    path = SAMPLE_DATA / name.lower() / f"{split}.jsonl"
    return [row for row in map(json.loads, path.read_text().splitlines()) if row.get("label") != -1]


def samples_of(name, count=5):
    return get_task(name).samples(rows_of(name)[:count])


@functools.cache
def make_wide(model_type):
    """The same weights in float64."""
    model, tokenizer = make_pair(model_type)
    wide = make_model(model_type, dtype=torch.float64, vocab_size=len(tokenizer), positions=POSITIONS)
    wide.load_state_dict(model.state_dict())
    return wide


def token_scores(model, tokenizer, text, count):
    """Log-probabilities of a text's last `count` tokens."""
    wide = make_wide(model.config.model_type)
    ids = tokenizer(text)["input_ids"]
    with torch.no_grad():
        scores = wide(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
    return np.array([scores[t - 1, ids[t]].item() for t in range(len(ids) - count, len(ids))])


def length(tokenizer, text):
    return len(tokenizer(text)["input_ids"])


def plain_scores(model, tokenizer, prompt, continuations, before="", reduce=np.mean):
    counts = [length(tokenizer, prompt + c) - length(tokenizer, prompt) for c in continuations]
    return np.array(
        [
            reduce(token_scores(model, tokenizer, before + prompt + c, count))
            for c, count in zip(continuations, counts, strict=True)
        ]
    )


def cross_entropy(scores, label):
    return np.log(np.exp(scores - scores.max()).sum()) + scores.max() - scores[label]


@pytest.mark.parametrize("name", CHOOSING)
def test_classification_losses_and_accuracy(name, pair):
    model, tokenizer = pair
    task, samples = get_task(name), samples_of(name)
    scores = [plain_scores(model, tokenizer, s.prompt, s.continuations) for s in samples]
    expected = [cross_entropy(found, s.label) for found, s in zip(scores, samples, strict=True)]
    hits = [int(found.argmax()) in s.right for found, s in zip(scores, samples, strict=True)]
    for budget in (None, 1, 300):
        objective = task.training_objective(
            "train_as_classification", model, tokenizer, samples, Limits(token_budget=budget)
        )
        np.testing.assert_allclose(objective.losses().numpy(), expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(objective.losses([3, 1]).numpy(), np.array(expected)[[3, 1]], rtol=1e-5)
        assert objective.predictions().tolist() == [int(found.argmax()) for found in scores]
        assert objective.metrics()["accuracy"] == np.mean(hits)


def test_the_numbers_of_candidates_differ():
    """The cases above hold 2, 3, 5, 6 and ragged numbers, of one token and of several, with several right ones."""
    counts = {name: {len(s.continuations) for s in samples_of(name, 24)} for name in CHOOSING}
    assert {tuple(found) for found in counts.values()} == {(2,), (3,), (5,), (6,)}
    assert max(len(s.right) for s in samples_of("ReCoRD", 24)) == 2
    tokenizer = make_text_tokenizer()
    lengths = {length(tokenizer, "\n" + word) - length(tokenizer, "\n") for word in ("Yes", "Entity")}
    assert min(lengths) == 1 < max(lengths)


def test_ragged_numbers_of_candidates(pair):
    model, tokenizer = pair
    rows = rows_of("ReCoRD")[:4]
    for row, kept in zip(rows, (6, 2, 5, 3), strict=True):
        row["entities"] = sorted({*row["entities"][: kept - 1], row["answers"][0]})
    samples = get_task("ReCoRD").samples(rows)
    assert len({len(s.continuations) for s in samples}) >= 3
    scores = [plain_scores(model, tokenizer, s.prompt, s.continuations) for s in samples]
    expected = [cross_entropy(found, s.label) for found, s in zip(scores, samples, strict=True)]
    for budget in (None, 1):
        objective = get_task("ReCoRD").objective(model, tokenizer, samples, Limits(token_budget=budget))
        np.testing.assert_allclose(objective.losses().numpy(), expected, rtol=1e-5)
        assert objective.predictions().tolist() == [int(found.argmax()) for found in scores]


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("loss", ["only_train_option", "full_text"])
def test_likelihoods(name, loss, pair):
    """For SQuAD and DROP the line break behind the answer counts."""
    model, tokenizer = pair
    task, samples = get_task(name), samples_of(name, 3)
    expected = []
    for s in samples:
        text = s.prompt + s.continuations[s.label]
        answer = length(tokenizer, text) - length(tokenizer, s.prompt)
        count = answer if loss == "only_train_option" else length(tokenizer, text) - 1
        expected.append(-token_scores(model, tokenizer, text, count).mean())
        assert not task.generates or text.endswith("\n")
    losses = task.training_objective(loss, model, tokenizer, samples).losses()
    np.testing.assert_allclose(losses.numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["SST2", "TREC", "CB", "Copa", "ReCoRD"])
def test_calibration_subtracts_the_scores_behind_the_empty_prompt(name):
    model, tokenizer = make_pair("opt")
    task, samples = get_task(name), samples_of(name, 6)
    shown = [demonstrations(get_task(name).samples([row])) for row in rows_of(name)[6:12]]
    for calibration, before, known in (
        ("sfc", shown, [""] * 6),
        ("icl_sfc", shown, shown),
        ("sfc", None, [""] * 6),
    ):
        objective = task.objective(model, tokenizer, samples, scoring=Scoring(before, calibration))
        expected = []
        for s, text, other in zip(samples, before or [""] * 6, known, strict=True):
            own = plain_scores(model, tokenizer, s.prompt, s.continuations, text, np.sum)
            expected.append(own - plain_scores(model, tokenizer, s.sfc_prompt, s.continuations, other, np.sum))
        assert objective.predictions().tolist() == [int(found.argmax()) for found in expected]
        plain = task.objective(model, tokenizer, samples, scoring=Scoring(before))
        assert objective.losses().tolist() == plain.losses().tolist(), "the loss is not calibrated"
        hits = [int(found.argmax()) in s.right for found, s in zip(expected, samples, strict=True)]
        assert objective.metrics() == {"loss": plain.metrics()["loss"], "accuracy": np.mean(hits)}


def test_calibration_changes_predictions():
    model, tokenizer = make_pair("llama")
    changed = 0
    for name in CHOOSING:
        samples = samples_of(name, 12)
        plain = get_task(name).objective(model, tokenizer, samples).predictions()
        calibrated = (
            get_task(name).objective(model, tokenizer, samples, scoring=Scoring(None, "sfc")).predictions()
        )
        changed += int((plain != calibrated).sum())
    assert changed > 10


def test_calibration_needs_a_first_token_and_a_choice():
    model, tokenizer = make_pair("gpt2")
    with pytest.raises(ValueError, match="the prompt has no token"):
        get_task("CB").objective(model, tokenizer, samples_of("CB"), scoring=Scoring(None, "sfc"))
    get_task("SST2").objective(model, tokenizer, samples_of("SST2"), scoring=Scoring(None, "sfc"))
    with pytest.raises(UserError, match="DROP has no SFC calibration: it generates answers; drop --sfc"):
        get_task("DROP").objective(model, tokenizer, samples_of("DROP"), scoring=Scoring(None, "sfc"))


def test_demonstrations_stand_in_front_in_order_joined_once():
    samples = get_task("SQuAD").samples(
        {"title": "T", "context": "C", "question": q, "answers": {"text": ["A"]}} for q in ("one", "two")
    )
    first = "Title: T\nContext: C\nQuestion: one\nAnswer: A"
    assert demonstrations(samples) == f"{first}\n\n{first.replace('one', 'two')}\n\n"
    reviews = get_task("SST2").samples([{"sentence": "so bad", "label": 0}, {"sentence": "warm", "label": 1}])
    assert demonstrations(reviews) == "so bad It was terrible\n\nwarm It was great\n\n"
    assert demonstrations([]) == ""


@pytest.mark.parametrize("name", ["SST2", "CB", "Copa", "SQuAD"])
def test_samples_behind_demonstrations(name, pair):
    model, tokenizer = pair
    task, samples = get_task(name), samples_of(name, 4)
    shown = [demonstrations(get_task(name).samples(rows_of(name)[begin : begin + 2])) for begin in (4, 6, 8, 10)]
    objective = task.objective(model, tokenizer, samples, Limits(max_new_tokens=6), Scoring(shown))
    if not task.generates:
        scores = [
            plain_scores(model, tokenizer, s.prompt, s.continuations, text)
            for s, text in zip(samples, shown, strict=True)
        ]
        assert objective.predictions().tolist() == [int(found.argmax()) for found in scores]
        return
    for text, sample, answer in zip(shown, samples, objective.texts(), strict=True):
        ids = torch.tensor([tokenizer(text + sample.prompt)["input_ids"]])
        output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        assert (
            answer == tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True).split("\n")[0].strip()
        )


@pytest.mark.parametrize("name", ["CB", "TREC", "ReCoRD", "DROP"])
def test_what_is_too_long_loses_its_oldest_part(name, pair, monkeypatch):
    """The first token stays where the tokenizer puts one, and all of the continuation; demonstrations go first."""
    model, tokenizer = pair
    task, samples = get_task(name), samples_of(name, 3)
    shown = [demonstrations(get_task(name).samples(rows_of(name)[5:9]))] * 3
    limit = 60
    kept = tokenizer("")["input_ids"]

    def cut(text, most):
        ids = tokenizer(text)["input_ids"]
        return ids if len(ids) <= most else kept + ids[len(ids) - (most - len(kept)) :]

    seen = []
    plain = scoring.scored_logits

    def recorded(model, batch, *args, **kwargs):
        for row, end in zip(batch.input_ids, batch.lengths, strict=True):
            seen.append(row[:end].tolist())
        return plain(model, batch, *args, **kwargs)

    monkeypatch.setattr(scoring, "scored_logits", recorded)
    monkeypatch.setattr(scoring, "can_pack", lambda model, longest: False)
    limits = Limits(max_length=limit, max_new_tokens=7)
    if task.generates:
        with pytest.warns(UserWarning, match=f"3 of 3 samples are longer than {limit - 7} tokens"):
            objective = task.objective(model, tokenizer, samples, limits, Scoring(shown))
        table = objective._table
        expected = [cut(text + s.prompt, limit - 7) for text, s in zip(shown, samples, strict=True)]
        assert [table.ids[row, :end].tolist() for row, end in enumerate(table.ends)] == expected
        with pytest.warns(UserWarning, match="lose their beginning"):
            answers = task.training_objective("only_train_option", model, tokenizer, samples, limits)
        answers.losses()
        assert sorted(seen) == sorted(cut(s.prompt + s.continuations[0], limit - 7) for s in samples)
        return
    with pytest.warns(UserWarning, match=f"3 of 3 samples are longer than {limit} tokens"):
        objective = task.objective(model, tokenizer, samples, limits, Scoring(shown))
    losses = objective.losses()
    for text, s, loss in zip(shown, samples, losses, strict=True):
        scores = []
        for c in s.continuations:
            count = length(tokenizer, s.prompt + c) - length(tokenizer, s.prompt)
            ids = torch.tensor([cut(text + s.prompt + c, limit)])
            assert ids.shape[1] == limit
            with torch.no_grad():
                found = model(input_ids=ids).logits[0].double().log_softmax(-1)
            scores.append(np.mean([found[t - 1, ids[0, t]].item() for t in range(limit - count, limit)]))
        assert float(loss) == pytest.approx(cross_entropy(np.array(scores), s.label), rel=1e-4)


def test_a_sample_that_would_be_only_continuation_is_refused():
    model, tokenizer = make_pair("llama")
    samples = samples_of("Copa")
    longest = max(length(tokenizer, " " + c) for s in samples for c in s.continuations)
    with pytest.raises(ValueError, match="is only continuation"):
        get_task("Copa").objective(model, tokenizer, samples, Limits(max_length=longest - 4))
    with pytest.raises(ValueError, match=r"sample 0 has \d+ tokens, the model takes 20"):
        get_task("Copa").objective(model, tokenizer, samples, Limits(max_length=20, truncate=False))


def test_equal_candidates_count_as_the_first(pair):
    model, tokenizer = pair
    copa = {"premise": "It rained.", "question": "cause", "choice1": "Clouds.", "choice2": "clouds.", "label": 1}
    record = {"passage": "P", "query": "@placeholder left.", "answers": ["Bob"]}
    for name, rows, right in (
        ("Copa", [copa] * 9, 0),
        ("ReCoRD", [{**record, "entities": ["Bob"] * count} for count in (2, 3, 4, 2, 5)], 0),
    ):
        samples = get_task(name).samples(rows)
        for budget in (None, 1):
            objective = get_task(name).objective(model, tokenizer, samples, Limits(token_budget=budget))
            assert objective.predictions().tolist() == [right] * len(samples)
            assert objective.metrics()["accuracy"] == 1.0
            counts = [len(s.continuations) for s in samples]
            np.testing.assert_allclose(objective.losses().numpy(), np.log(counts), rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.* lose their beginning")
@pytest.mark.parametrize("name", TASKS)
def test_real_rows_are_scored(name, data_dir):
    """With all that real texts bring: quotation marks, other alphabets, long passages."""
    model, tokenizer = make_pair("opt")
    task = TASKS[name]
    rows = task.rows("validation", str(data_dir))
    samples = task.samples(rows[index] for index in range(6))
    with np.errstate(all="raise"):
        kinds = ["only_train_option", "non_diff" if task.generates else "train_as_classification"]
        for loss in kinds:
            losses = task.training_objective(loss, model, tokenizer, samples, Limits(max_new_tokens=3)).losses()
            assert torch.isfinite(losses).all()
            assert loss == "non_diff" or (losses > 0).all()
