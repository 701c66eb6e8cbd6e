"""Rows as texts: every template letter by letter, labels by the names of their classes, wrong rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from builders import make_text_tokenizer

from src import sample_data
from src.tasks import TASKS, get_task
from src.utils import UserError

SAMPLE_DATA = Path(sample_data.__file__).parent
YES_NO = ("Yes", "No")
NO_YES = ("No", "Yes")
FIVE = (" terrible", " bad", " okay", " good", " great")
# task, row, prompt, continuations, right, SFC prompt
RENDERED = [
    (
        "SST2",
        {"sentence": " kids , spirit ", "label": 1},
        "kids , spirit It was",
        (" terrible", " great"),
        {1},
        "It was",
    ),
    ("SST5", {"text": "so dull\n", "label": 3}, "so dull It was", FIVE, {3}, "It was"),
    (
        "TREC",
        {"text": "Who left ?", "coarse_label": 3, "fine_label": 29},
        "Who left ? The answer type is",
        (" Abbreviation", " Entity", " Description", " Human", " Location", " Number"),
        {3},
        "The answer type is",
    ),
    (
        "MNLI",
        {"premise": " He ran.", "hypothesis": "He moved.", "label": 0, "idx": 4},
        "He ran. He moved. The answer is",
        (" Yes", " Maybe", " No"),
        {0},
        "The answer is",
    ),
    (
        "SNLI",
        {"premise": "He ran.", "hypothesis": "He sat.", "label": 2},
        "He ran. He sat. The answer is",
        (" Yes", " Maybe", " No"),
        {2},
        "The answer is",
    ),
    (
        "RTE",
        {"premise": "P.", "hypothesis": "H.", "idx": 0, "label": 1},
        'P.\nDoes this mean that "H." is true? Yes or No?\n',
        YES_NO,
        {1},
        "",
    ),
    (
        "CB",
        {"premise": "P.", "hypothesis": "h", "idx": 0, "label": 2},
        'Suppose P. Can we infer that "h"? Yes, No, or Maybe?\n',
        ("Yes", "No", "Maybe"),
        {2},
        "",
    ),
    ("BoolQ", {"passage": "Pas.", "question": "is it so", "answer": False}, "Pas. Is it so?\n", YES_NO, {1}, ""),
    ("BoolQ", {"passage": "Pas.", "question": "is it so?", "answer": True}, "Pas. Is it so?\n", YES_NO, {0}, ""),
    (
        "MultiRC",
        {"paragraph": "Par.", "question": "Why?", "answer": "So.", "label": 1},
        'Par.\nQuestion: Why?\nI found this answer "So.". Is that correct? Yes or No?\n',
        NO_YES,
        {1},
        "",
    ),
    (
        "WIC",
        {"word": "bat", "sentence1": "A bat flew.", "sentence2": "Hit it with a bat.", "label": 0},
        'Does the word "bat" have the same meaning in these two sentences? Yes, No?\nA bat flew.\n'
        "Hit it with a bat.\n",
        NO_YES,
        {0},
        "",
    ),
    (
        "WSC",
        {"text": "T.", "span1_text": "Mark", "span2_text": "He", "label": 1},
        'T.\nIn the previous sentence, does the pronoun "he" refer to Mark? Yes or No?\n',
        NO_YES,
        {1},
        "",
    ),
    (
        "Copa",
        {
            "premise": "It rained. ",
            "question": "cause",
            "choice1": "The road got wet.",
            "choice2": "I left.",
            "label": 1,
        },
        "It rained because",
        (" the road got wet.", " I left."),
        {1},
        "because",
    ),
    (
        "Copa",
        {"premise": "Wait..", "question": "effect", "choice1": "Us two. ", "choice2": "It's I", "label": 0},
        "Wait. so",
        (" us two.", " it's I"),
        {0},
        "so",
    ),
    (
        "ReCoRD",
        {
            "passage": "Txt.\n@highlight\nH1\n@highlight\nH2",
            "query": "Then @placeholder left.",
            "entities": ["Ann", "Bob"],
            "answers": ["Bob"],
        },
        "Txt.\n- H1\n- H2\n-",
        (" Then Ann left.", " Then Bob left."),
        {1},
        "-",
    ),
    (
        "SQuAD",
        {
            "title": "T",
            "context": "C.",
            "question": " Who? ",
            "answers": {"text": ["Ann ", "A"], "answer_start": [0, 1]},
        },
        "Title: T\nContext: C.\nQuestion: Who?\nAnswer:",
        (" Ann\n",),
        {0},
        None,
    ),
    (
        "DROP",
        {
            "passage": " P.",
            "question": "How many?",
            "answers_spans": {"spans": ["4", "four"], "types": ["number"] * 2},
        },
        "Passage:  P.\nQuestion: How many?\nAnswer:",
        (" 4\n",),
        {0},
        None,
    ),
]


@pytest.mark.parametrize(("name", "row", "prompt", "continuations", "right", "sfc"), RENDERED)
def test_a_row_becomes_these_texts(name, row, prompt, continuations, right, sfc):
    sample = get_task(name).sample(row)
    assert sample.prompt == prompt
    assert sample.continuations == continuations
    assert sample.right == right
    assert sample.label in right
    assert sample.sfc_prompt == sfc


def test_every_task_is_in_the_table():
    assert {name for name, *_ in RENDERED} == {task.name for task in TASKS.values()}
    assert len(TASKS) == 15


# The hub's class names in the order of their numbers, and the words that the sources give each class.
NAMED = {
    "SST2": {"negative": " terrible", "positive": " great"},
    "TREC": {
        "ABBR": " Abbreviation",
        "ENTY": " Entity",
        "DESC": " Description",
        "HUM": " Human",
        "LOC": " Location",
        "NUM": " Number",
    },
    "MNLI": {"entailment": " Yes", "neutral": " Maybe", "contradiction": " No"},
    "SNLI": {"entailment": " Yes", "neutral": " Maybe", "contradiction": " No"},
    "RTE": {"entailment": "Yes", "not_entailment": "No"},
    "CB": {"entailment": "Yes", "contradiction": "No", "neutral": "Maybe"},
    "MultiRC": {"False": "No", "True": "Yes"},
    "WIC": {"False": "No", "True": "Yes"},
    "WSC": {"False": "No", "True": "Yes"},
}


@pytest.mark.parametrize("name", NAMED)
def test_classes_have_their_words_by_name(name):
    template = get_task(name).template
    assert dict(zip(template.classes, template.words, strict=True)) == NAMED[name]


def rows_of(folder, name):
    for split in ("train", "validation"):
        for line in (Path(folder) / name.lower() / f"{split}.jsonl").read_text("utf-8").splitlines():
            yield json.loads(line)


def check_texts(folder, task):
    """Of every row: the whole text is prompt and continuation, nothing ends in a space, and each adds a token."""
    tokenizer, count = make_text_tokenizer(), 0
    for row in rows_of(folder, task.name):
        if row.get("label") == -1:
            continue
        sample = task.sample(row)
        for continuation in sample.continuations:
            whole = sample.prompt + continuation
            assert whole == whole.strip(" ")
            assert len(tokenizer(whole)["input_ids"]) > len(tokenizer(sample.prompt)["input_ids"])
        assert sample.prompt == sample.prompt.strip(" ").lstrip()
        count += 1
    assert count >= 30


@pytest.mark.parametrize("name", TASKS)
def test_texts_of_the_sample_data(name):
    check_texts(SAMPLE_DATA, TASKS[name])


@pytest.mark.parametrize("name", [name for name in TASKS if name != "sst2"])
def test_texts_of_real_rows(name, data_dir):
    check_texts(data_dir, TASKS[name])


def right_words(folder, name, chosen):
    task = get_task(name)
    samples = [task.sample(row) for row in rows_of(folder, name) if chosen(row)]
    return [sample.continuations[sample.label].strip() for sample in samples]


@pytest.mark.parametrize(
    ("begin", "word", "at_least"),
    [
        ("Who ", "Human", 29),
        ("Why ", "Description", 6),
        ("How many ", "Number", 10),
        ("What does ", "Abbreviation", 5),
    ],
)
def test_real_trec_questions_have_the_class_that_they_ask_for(begin, word, at_least, data_dir):
    def chosen(row):
        return row["text"].startswith(begin) and (begin != "What does " or "stand for" in row["text"])

    words = right_words(data_dir, "TREC", chosen)
    assert len(words) >= at_least
    assert set(words) == {word}


def test_real_copa_rows_have_the_choice_of_their_label(data_dir):
    task = get_task("Copa")
    for row in rows_of(data_dir, "Copa"):
        sample = task.sample(row)
        choice = row[f"choice{row['label'] + 1}"].strip()
        assert sample.continuations[sample.label].strip().lower() == choice.lower()
        assert sample.prompt.endswith(" because" if row["question"] == "cause" else " so")


def test_real_sst5_labels_are_those_of_their_names(data_dir):
    words = {"very negative": "terrible", "negative": "bad", "neutral": "okay", "positive": "good"}
    for row in rows_of(data_dir, "SST5"):
        sample = get_task("SST5").sample(row)
        assert sample.continuations[sample.label].strip() == words.get(row["label_text"], "great")


def test_real_record_rows_put_the_answer_into_the_query(data_dir):
    several = 0
    for row in rows_of(data_dir, "ReCoRD"):
        sample = get_task("ReCoRD").sample(row)
        expected = {" " + row["query"].replace("@placeholder", answer).rstrip(" ") for answer in row["answers"]}
        assert {sample.continuations[index] for index in sample.right} == expected
        assert len(sample.continuations) == len(row["entities"])
        assert "@highlight" not in sample.prompt
        several += len(sample.right) > 1
    assert several > 10


def test_real_answers_stand_in_their_passage(data_dir):
    for row in rows_of(data_dir, "SQuAD"):
        sample = get_task("SQuAD").sample(row)
        assert sample.continuations == (f" {sample.answers[0]}\n",)
        assert all(answer in sample.prompt for answer in sample.answers)


def test_the_first_of_equal_continuations_is_the_right_one():
    row = {"premise": "It rained.", "question": "cause", "choice1": "The sun.", "choice2": "the sun.", "label": 1}
    sample = get_task("Copa").sample(row)
    assert (sample.right, sample.label) == ({0}, 0)
    row = {"passage": "P", "query": "@placeholder left.", "entities": ["A", "B", "A", "C"], "answers": ["C", "A"]}
    sample = get_task("ReCoRD").sample(row)
    assert (sample.right, sample.label) == ({0, 3}, 3), "training aims at the first answer"


SQUAD = RENDERED[-2][1]
RECORD = RENDERED[-3][1]


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("SST2", {"sentence": "a", "label": 2}, "label 2 is none of 0 to 1"),
        ("SST2", {"sentence": "a", "label": "1"}, "label '1' is none of 0 to 1"),
        ("SST2", {"sentence": None, "label": 1}, "field 'sentence' holds NoneType, not text"),
        ("TREC", {"text": "a", "label": 1}, "KeyError 'coarse_label'"),
        ("MNLI", {"premise": "a", "hypothesis": "b", "label": -1}, "label -1 is none of 0 to 2"),
        ("BoolQ", {"passage": "a", "question": "b", "answer": 1}, "answer 1 is neither true nor false"),
        (
            "Copa",
            {"premise": "a", "question": "why", "choice1": "b", "choice2": "c", "label": 0},
            "question 'why' is",
        ),
        ("ReCoRD", {**RECORD, "query": "Then Bob left."}, "the query has no @placeholder"),
        ("ReCoRD", {**RECORD, "answers": ["Cy"]}, "no answer is among the entities"),
        ("ReCoRD", {**RECORD, "entities": "Bob"}, "field 'entities' is no list of texts"),
        ("SQuAD", {**SQUAD, "answers": {"text": ["  "]}}, "question ' Who? ' has no answer"),
        ("SQuAD", {**SQUAD, "id": "q1", "answers": {"text": []}}, "question 'q1' has no answer"),
        ("SQuAD", {**SQUAD, "answers": ["Ann"]}, "TypeError"),
        (
            "DROP",
            {"passage": "a", "question": "b", "answers_spans": {"spans": [4]}},
            "'answers_spans.spans' is no list",
        ),
    ],
)
def test_wrong_rows_are_one_line(name, row, message):
    with pytest.raises(UserError, match=f"a row of {name} is not as expected") as refused:
        get_task(name).samples([row])
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
