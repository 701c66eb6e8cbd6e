"""Drawing samples, the SST-2 template, and what wrong data says."""

from __future__ import annotations

import json

import pytest
from builders import make_model, make_tokenizer

from src.objectives import AnswerLikelihood, CandidateScoring, GenerationF1
from src.tasks import SST2, Limits, SQuAD, get_task
from src.utils import Parser, UserError, read_jsonl, write_json


def write_rows(folder, train, validation):
    (folder / "sst2").mkdir(parents=True, exist_ok=True)
    for split, rows in (("train", train), ("validation", validation)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "sst2" / f"{split}.jsonl").write_text(text)
    return str(folder)


def rows(count, word="film"):
    return [{"idx": i, "sentence": f"{word} {i} ", "label": i % 2} for i in range(count)]


def test_the_template_is_mezos():
    sample = SST2().sample({"sentence": "kids , spirit ", "label": 1})
    assert sample.prompt == "kids , spirit It was"
    assert sample.candidates == ("terrible", "great")
    assert sample.answer == "great"


def test_train_dev_and_test_are_disjoint_and_follow_their_seeds(tmp_path):
    folder = write_rows(tmp_path, rows(50), rows(12, "other"))
    sizes = {"num_train": 20, "num_dev": 10, "num_eval": 1000}
    first = SST2().splits(folder, train_set_seed=0, **sizes)
    assert [len(first.train), len(first.dev), len(first.test)] == [20, 10, 12]
    train, dev = ({s.prompt for s in split} for split in (first.train, first.dev))
    assert len(train) == 20
    assert len(dev) == 10
    assert not train & dev
    assert first == SST2().splits(folder, train_set_seed=0, **sizes)
    other = SST2().splits(folder, train_set_seed=1, **sizes)
    assert other.train != first.train
    assert other.test == first.test, "the test set does not depend on the draw of the training set"


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (rows(5), "fewer than num_train"),
        ([{"sentence": "a", "label": 2}] * 30, "neither 0 nor 1"),
        ([{"text": "a", "label": 1}] * 30, "sentence"),
        ([{"sentence": None, "label": 1}] * 30, "not as expected"),
    ],
)
def test_wrong_rows_are_one_line(train, message, tmp_path):
    folder = write_rows(tmp_path, train, rows(4))
    with pytest.raises(UserError, match=message):
        SST2().splits(folder, num_train=20, num_dev=5, num_eval=4, train_set_seed=0)


def test_a_missing_file_is_named_and_the_hub_is_not_asked(tmp_path):
    with pytest.raises(UserError, match=r"sst2/train\.jsonl.*DATA_DIR"):
        SST2().splits(str(tmp_path), num_train=2, num_dev=1, num_eval=1, train_set_seed=0)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "line 1 is not JSON"), ('{"a": 1}\n[]', "line 2 is not a JSON object")]
)
def test_damaged_lines_are_named(text, message, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_jsonl(path)


def test_an_unreachable_hub_is_one_line(monkeypatch):
    import datasets

    def offline(*_args, **_kwargs):
        raise ConnectionError("no network\nhere")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(
        UserError, match=r"cannot load nyu-mll/glue/sst2 from the hub \(no network here\); set DATA_DIR"
    ):
        SST2().splits(None, num_train=2, num_dev=1, num_eval=1, train_set_seed=0)


def test_unknown_tasks_are_named():
    with pytest.raises(UserError, match="unknown task 'MNLI'; known: SST2, SQuAD"):
        get_task("MNLI")


QUESTION = {
    "id": "q1",
    "title": "Films",
    "context": "the film was good",
    "question": " was it good ",
    "answers": {"text": ["so good ", "good", "so good"], "answer_start": [0, 0, 0]},
}


def write_squad(folder, train, validation=()):
    (folder / "squad").mkdir(parents=True, exist_ok=True)
    for split, questions in (("train", train), ("validation", validation or [QUESTION] * 4)):
        text = "".join(json.dumps(row) + "\n" for row in questions)
        (folder / "squad" / f"{split}.jsonl").write_text(text)
    return str(folder)


def test_the_squad_template_is_mezos():
    sample = SQuAD().sample(QUESTION)
    assert sample.prompt == "Title: Films\nContext: the film was good\nQuestion: was it good\nAnswer:"
    assert sample.answers == ("so good", "good")
    assert sample.answer == "so good"
    assert sample.candidates == ()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**QUESTION, "answers": {"text": []}}, "question 'q1' has no answer"),
        ({**QUESTION, "answers": {"text": ["  "]}}, "question 'q1' has no answer"),
        ({**QUESTION, "answers": None}, "not as expected"),
        ({"title": "a", "context": "b", "answers": {"text": ["c"]}}, "question"),
    ],
)
def test_questions_that_cannot_be_used_are_one_line(row, message, tmp_path):
    folder = write_squad(tmp_path, [row] * 30)
    with pytest.raises(UserError, match=message):
        SQuAD().splits(folder, num_train=20, num_dev=5, num_eval=4, train_set_seed=0)


def test_a_task_makes_the_objective_of_its_loss(tmp_path):
    model, tokenizer = make_model("opt"), make_tokenizer()
    splits = SQuAD().splits(
        write_squad(tmp_path, [QUESTION] * 4), num_train=3, num_dev=1, num_eval=2, train_set_seed=0
    )
    task, samples = SQuAD(), splits.train
    generated = task.training_objective("non_diff", model, tokenizer, samples, Limits(max_new_tokens=3))
    assert type(generated) is GenerationF1
    assert generated.max_new_tokens == 3
    assert set(task.objective(model, tokenizer, samples, Limits(max_new_tokens=2)).metrics()) == {"loss", "f1"}
    likelihood = task.training_objective("only_train_option", model, tokenizer, samples)
    direct = AnswerLikelihood(model, tokenizer, [s.prompt for s in samples], ["so good"] * 3)
    assert likelihood.losses().tolist() == direct.losses().tolist()
    review = [SST2().sample({"sentence": "good film", "label": 1})]
    assert type(SST2().training_objective("train_as_classification", model, tokenizer, review)) is CandidateScoring
    for wrong, where in (("non_diff", SST2()), ("train_as_classification", SQuAD())):
        with pytest.raises(UserError, match=f"has no loss {wrong}"):
            where.training_objective(wrong, model, tokenizer, [])


def test_the_best_checkpoint_is_by_f1_for_squad_and_by_loss_for_sst2():
    assert (SQuAD.metric_for_best_model, SST2.metric_for_best_model) == ("eval_f1", "eval_loss")


def test_json_is_whole_or_not_there(tmp_path):
    path = tmp_path / "metrics.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="Out of range"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}


def test_the_parser_takes_no_abbreviation():
    from src.lora import LoraSettings

    assert Parser(LoraSettings).parse(["--alpha", "4"])[0].alpha == 4
    for wrong in (["--alp", "4"], ["--nothing"], ["--r", "x"]):
        with pytest.raises(UserError):
            Parser(LoraSettings).parse(wrong)


def test_real_sst2(data_dir):
    splits = SST2().splits(str(data_dir), num_train=1000, num_dev=500, num_eval=1000, train_set_seed=0)
    assert [len(splits.train), len(splits.dev), len(splits.test)] == [1000, 500, 872]
    assert 0.4 < sum(s.label for s in splits.test) / 872 < 0.6
    assert all(s.prompt.endswith(" It was") for s in splits.train)


def test_real_squad(data_dir):
    splits = SQuAD().splits(str(data_dir), num_train=150, num_dev=50, num_eval=1000, train_set_seed=0)
    assert [len(splits.train), len(splits.dev), len(splits.test)] == [150, 50, 93]
    for sample in splits.train:
        assert sample.prompt.startswith("Title: ")
        assert sample.prompt.endswith("\nAnswer:")
        assert all(answer in sample.prompt for answer in sample.answers)
