"""Where rows come from, how samples are drawn and scored, and what wrong data says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from builders import make_model, make_tokenizer

import src
from src.objectives import AnswerLikelihood, CandidateScoring, GenerationF1
from src.rows import draw_train
from src.tasks import TASKS, Limits, draw, get_task
from src.utils import Parser, UserError, read_jsonl, write_json

SST2, SQUAD = get_task("SST2"), get_task("SQuAD")


def write_rows(folder, train, validation):
    (folder / "sst2").mkdir(parents=True, exist_ok=True)
    for split, rows in (("train", train), ("validation", validation)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "sst2" / f"{split}.jsonl").write_text(text)
    return str(folder)


def rows(count, word="film"):
    return [{"idx": i, "sentence": f"{word} {i} ", "label": i % 2} for i in range(count)]


# NumPy's legacy generator (RandomState), which the sources draw with.
PERMUTATIONS = {
    (0, 10): [2, 8, 4, 9, 1, 6, 7, 3, 0, 5],
    (42, 12): [10, 9, 0, 8, 5, 2, 1, 11, 4, 7, 3, 6],
    (3, 67349): [41871, 29669, 14905, 57807, 38840, 38130, 52226, 42185],
}


@pytest.mark.parametrize(("seed", "count"), PERMUTATIONS)
def test_draws_are_the_sources(seed, count):
    expected = PERMUTATIONS[seed, count]
    drawn = draw(count, len(expected), seed)
    assert drawn.tolist() == expected
    assert drawn.dtype == "int64"
    train, dev = draw_train("SST2", count, 3, 2, seed)
    assert (train.tolist(), dev.tolist()) == (expected[:3], expected[3:5])
    assert draw_train("SST2", count, 3, 0, seed)[1].tolist() == []


@pytest.mark.parametrize(
    ("name", "rows", "num_train", "num_dev", "left"),
    [
        ("CB", 250, 1000, 100, 150),
        ("Copa", 400, 1000, 100, 300),
        ("WSC", 554, 1000, 100, 454),
        ("WSC", 554, 1000, 500, 54),
    ],
)
def test_of_too_few_rows_the_dev_set_is_whole(name, rows, num_train, num_dev, left):
    order = draw(rows, rows, 5).tolist()
    with pytest.warns(UserWarning, match=f"{name} has {rows} training rows, .*: {left} are trained on"):
        train, dev = draw_train(name, rows, num_train, num_dev, 5)
    assert (train.tolist(), dev.tolist()) == (order[:left], order[left:])
    assert len(dev) == num_dev
    assert get_task(name).num_dev == 100
    assert get_task("RTE").num_dev == 500


def test_fewer_than_32_rows_are_not_trained_on():
    with pytest.raises(
        UserError, match=r"CB has 131 training rows, fewer than num_train \+ num_dev = 1000 \+ 100"
    ):
        draw_train("CB", 131, 1000, 100, 0)
    assert len(draw_train("CB", 31, 31, 0, 0)[0]) == 31, "as many as were asked for"


def test_train_dev_and_test_are_disjoint_and_follow_their_seeds(tmp_path):
    folder = write_rows(tmp_path, rows(50), rows(12, "other"))
    sizes = {"num_train": 20, "num_dev": 10, "num_eval": 1000}
    first = SST2.splits(folder, train_set_seed=0, **sizes)
    assert [len(first.train), len(first.dev), len(first.test)] == [20, 10, 12]
    train, dev = ({s.prompt for s in split} for split in (first.train, first.dev))
    assert len(train) == 20
    assert len(dev) == 10
    assert not train & dev
    assert first == SST2.splits(folder, train_set_seed=0, **sizes)
    other = SST2.splits(folder, train_set_seed=1, **sizes)
    assert other.train != first.train
    assert other.test != first.test, "the test set moves with the draw of the training set"
    assert {s.prompt for s in other.test} == {s.prompt for s in first.test}
    whole = SST2.splits(folder, train_set_seed=1, num_train=20, num_dev=0, num_eval=None)
    assert [s.prompt for s in whole.test] == [f"other {i} It was" for i in range(12)], "in the order of the rows"
    assert whole.dev == []


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (rows(5), "fewer than num_train"),
        ([{"sentence": "a", "label": 2}] * 30, "label 2 is none of 0 to 1"),
        ([{"text": "a", "label": 1}] * 30, "sentence"),
        ([{"sentence": None, "label": 1}] * 30, "not as expected"),
    ],
)
def test_wrong_rows_are_one_line(train, message, tmp_path):
    folder = write_rows(tmp_path, train, rows(4))
    with pytest.raises(UserError, match=message):
        SST2.splits(folder, num_train=20, num_dev=5, num_eval=4, train_set_seed=0)


def test_a_missing_file_is_named_and_the_hub_is_not_asked(tmp_path):
    with pytest.raises(UserError, match=r"sst2/train\.jsonl.*DATA_DIR"):
        SST2.splits(str(tmp_path), num_train=2, num_dev=1, num_eval=1, train_set_seed=0)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "line 1 is not JSON"), ('{"a": 1}\n[]', "line 2 is not a JSON object")]
)
def test_damaged_lines_are_named(text, message, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_jsonl(path)


def test_line_separators_within_a_text_end_no_line(tmp_path):
    rows = [{"sentence": "one\u2028two\u0085three"}, {"sentence": "four"}]
    path = tmp_path / "rows.jsonl"
    path.write_bytes("\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode())
    assert read_jsonl(path) == rows


def test_an_unreachable_hub_is_one_line(monkeypatch):
    import datasets

    def offline(*_args, **_kwargs):
        raise ConnectionError("no network\nhere")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(
        UserError, match=r"cannot load nyu-mll/glue/sst2 from the hub \(no network here\); set DATA_DIR"
    ):
        SST2.splits(None, num_train=2, num_dev=1, num_eval=1, train_set_seed=0)


def test_rows_without_a_label_are_left_out_before_the_draw(tmp_path):
    (tmp_path / "snli").mkdir()
    found = [{"premise": str(i), "hypothesis": "b", "label": -1 if i % 3 == 0 else i % 3} for i in range(60)]
    for split in ("train", "validation"):
        text = "".join(json.dumps(row) + "\n" for row in found)
        (tmp_path / "snli" / f"{split}.jsonl").write_text(text)
    labelled = [row for row in found if row["label"] != -1]
    splits = get_task("SNLI").splits(str(tmp_path), num_train=10, num_dev=5, num_eval=7, train_set_seed=3)
    expected = [labelled[i]["premise"] for i in draw(40, 15, 3)]
    assert [sample.prompt.split()[0] for sample in splits.train + splits.dev] == expected
    assert [s.prompt.split()[0] for s in splits.test] == [labelled[i]["premise"] for i in draw(40, 7, 3)]


def hub(monkeypatch, rows, features=None):
    """The hub's client in the place of which `rows` come; returns the list of what it is asked for."""
    import datasets

    asked = []

    def load_dataset(path, name, *, split, revision):
        asked.append((path, name, split, revision))
        return datasets.Dataset.from_list(rows, features=features)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_the_hub_is_asked_for_the_right_splits(monkeypatch):
    rows = [{"premise": str(i), "hypothesis": "b", "label": i % 4 - 1} for i in range(40)]
    asked = hub(monkeypatch, rows)
    sizes = {"num_train": 5, "num_dev": 2, "num_eval": 3, "train_set_seed": 0}
    assert {sample.label for sample in get_task("SNLI").splits(None, **sizes).train} <= {0, 1, 2}
    get_task("MNLI").rows("validation", None)
    assert asked == [
        ("stanfordnlp/snli", "plain_text", "train", None),
        ("stanfordnlp/snli", "plain_text", "validation", None),
        ("nyu-mll/glue", "mnli", "validation_matched", None),
    ]
    get_task("TREC").rows("validation", None)
    assert asked[-1] == ("CogComp/trec", None, "test", "refs/convert/parquet")


def test_labels_of_the_hub_must_mean_what_the_task_takes_them_for(monkeypatch):
    from datasets import ClassLabel, Features, Value

    rows = [{"text": "Who ?", "coarse_label": 3}]
    names = ["ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM"]
    features = Features({"text": Value("string"), "coarse_label": ClassLabel(names=names)})
    hub(monkeypatch, rows, features)
    assert len(get_task("TREC").rows("train", None)) == 1
    names[1:3] = "DESC", "ENTY"
    features = Features({"text": Value("string"), "coarse_label": ClassLabel(names=names)})
    hub(monkeypatch, rows, features)
    with pytest.raises(UserError, match="CogComp/trec: coarse_label has the classes"):
        get_task("TREC").rows("train", None)


def test_tasks_are_known_in_upper_and_lower_case():
    assert get_task("trec") is get_task("TREC") is get_task("Trec")
    assert [task.folder for task in TASKS.values()] == list(TASKS)
    with pytest.raises(
        UserError, match="unknown task 'QNLI'; known: SST2, SST5, TREC, MNLI, SNLI, RTE, CB, BoolQ"
    ):
        get_task("QNLI")


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
    sample = SQUAD.sample(QUESTION)
    assert sample.prompt == "Title: Films\nContext: the film was good\nQuestion: was it good\nAnswer:"
    assert sample.answers == ("so good", "good")
    assert sample.continuations == (" so good\n",)


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
        SQUAD.splits(folder, num_train=20, num_dev=5, num_eval=4, train_set_seed=0)


def test_a_task_makes_the_objective_of_its_loss(tmp_path):
    model, tokenizer = make_model("opt"), make_tokenizer()
    splits = SQUAD.splits(
        write_squad(tmp_path, [QUESTION] * 4), num_train=3, num_dev=1, num_eval=2, train_set_seed=0
    )
    task, samples = SQUAD, splits.train
    generated = task.training_objective("non_diff", model, tokenizer, samples, Limits(max_new_tokens=3))
    assert type(generated) is GenerationF1
    assert generated.max_new_tokens == 3
    assert set(task.objective(model, tokenizer, samples, Limits(max_new_tokens=2)).metrics()) == {"loss", "f1"}
    likelihood = task.training_objective("only_train_option", model, tokenizer, samples)
    direct = AnswerLikelihood(model, tokenizer, [s.prompt for s in samples], ["so good\n"] * 3)
    assert likelihood.losses().tolist() == direct.losses().tolist()
    review = [SST2.sample({"sentence": "good film", "label": 1})]
    assert type(SST2.training_objective("train_as_classification", model, tokenizer, review)) is CandidateScoring
    for wrong, where in (("non_diff", SST2), ("train_as_classification", SQUAD)):
        with pytest.raises(UserError, match=f"has no loss {wrong}"):
            where.training_objective(wrong, model, tokenizer, [])


def test_the_best_checkpoint_is_by_f1_for_squad_and_by_loss_for_sst2():
    assert (SQUAD.metric_for_best_model, SST2.metric_for_best_model) == ("eval_f1", "eval_loss")


README = Path(src.__file__).parent / "README.md"


def test_a_task_of_ones_own_is_fifteen_lines(tmp_path, monkeypatch):
    monkeypatch.setattr("src.tasks.TASKS", dict(TASKS))
    (shown,) = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    exec(shown, {})
    assert len([line for line in shown.splitlines() if line.strip()]) <= 15
    (tmp_path / "spam").mkdir()
    for split in ("train", "validation"):
        lines = [json.dumps({"sms": f"film {i}", "label": i % 2}) for i in range(8)]
        (tmp_path / "spam" / f"{split}.jsonl").write_text("\n".join(lines))
    task = get_task("Spam")
    splits = task.splits(str(tmp_path), num_train=4, num_dev=2, num_eval=3, train_set_seed=0)
    objective = task.objective(make_model("opt"), make_tokenizer(), splits.train)
    assert objective.losses().shape == (4,)
    for sample in splits.train:
        assert re.fullmatch(r"film \d Is this spam\?", sample.prompt)
        assert sample.continuations[sample.label] == (" no", " yes")[int(sample.prompt[5]) % 2]
    assert task.num_dev == 100


def test_json_is_whole_or_not_there(tmp_path):
    path = tmp_path / "metrics.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="Out of range"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}


def test_the_parser_takes_no_abbreviation():
    from src.lora import LoraSettings

    assert Parser(LoraSettings).parse(["--alpha", "4"])[0].alpha == 4
    for wrong, message in (
        (["--alp", "4"], "unknown option or value: --alp 4; --help lists"),
        (["--nothing"], "unknown option or value: --nothing;"),
        (["stray", "--r", "2"], "unknown option or value: stray;"),
        (["--r", "x"], "invalid int value: 'x'"),
    ):
        with pytest.raises(UserError, match=message):
            Parser(LoraSettings).parse(wrong)
    assert Parser(LoraSettings).parse_known(["--nothing", "4", "--r", "2"]).r == 2


def test_real_sst2(data_dir):
    splits = SST2.splits(str(data_dir), num_train=1000, num_dev=500, num_eval=1000, train_set_seed=0)
    assert [len(splits.train), len(splits.dev), len(splits.test)] == [1000, 500, 872]
    assert 0.4 < sum(s.label for s in splits.test) / 872 < 0.6
    assert all(s.prompt.endswith(" It was") for s in splits.train)


def test_real_squad(data_dir):
    splits = SQUAD.splits(str(data_dir), num_train=150, num_dev=50, num_eval=1000, train_set_seed=0)
    assert [len(splits.train), len(splits.dev), len(splits.test)] == [150, 50, 93]
    for sample in splits.train:
        assert sample.prompt.startswith("Title: ")
        assert sample.prompt.endswith("\nAnswer:")
        assert all(answer in sample.prompt for answer in sample.answers)
