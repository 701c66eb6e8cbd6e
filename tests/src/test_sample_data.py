import json
import random
from itertools import pairwise

import pytest

from src.sample_data import make_sst2, make_tasks
from src.sample_data.make_sst2 import (
    DATA_DIR,
    NEGATIVE_TEXT,
    PATTERNS,
    POSITIVE_TEXT,
    build_splits,
    compose,
    deal_forever,
    main,
    repeats_a_content_word,
)
from src.sample_data.task_tables import HELD_OUT, PEOPLE
from src.tasks import TASKS

ROWS = {"train": 360, "validation": 80}


def read_rows(split: str) -> list[dict]:
    return [json.loads(line) for line in (DATA_DIR / f"{split}.jsonl").read_text().splitlines()]


def all_sentences() -> list[str]:
    return [row["sentence"] for split in ROWS for row in read_rows(split)]


def test_generator_reproduces_the_files(capsys):
    assert main(["--check"]) == 0
    assert capsys.readouterr() == ("", "")
    assert build_splits() == build_splits()


def test_check_fails_with_one_line_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(make_sst2, "DATA_DIR", tmp_path / "sst2")
    assert main(["--check"]) == 1
    assert not (tmp_path / "sst2").exists()
    assert capsys.readouterr().err == "train.jsonl, validation.jsonl: not what make_sst2 writes\n"

    assert main([]) == 0
    assert main(["--check"]) == 0
    for split in ROWS:
        written = (tmp_path / "sst2" / f"{split}.jsonl").read_bytes()
        assert written == (DATA_DIR / f"{split}.jsonl").read_bytes()

    with (tmp_path / "sst2" / "train.jsonl").open("ab") as file:
        file.write(b"\n")
    assert main(["--check"]) == 1
    assert capsys.readouterr().err == "train.jsonl: not what make_sst2 writes\n"


@pytest.mark.parametrize("split", ROWS)
def test_rows(split):
    rows = read_rows(split)
    assert len(rows) == ROWS[split]
    assert [row["idx"] for row in rows] == list(range(len(rows)))
    assert all(list(row) == ["idx", "sentence", "label"] for row in rows)
    assert all(type(row["label"]) is int for row in rows)
    assert {row["label"] for row in rows} == {0, 1}


@pytest.mark.parametrize("split", ROWS)
def test_labels_are_balanced_and_mixed(split):
    labels = [row["label"] for row in read_rows(split)]
    assert abs(sum(labels) / len(labels) - 0.5) <= 0.02
    # The label changes once in a file sorted by class, and about every second row in a shuffled one.
    changes = sum(first != second for first, second in pairwise(labels))
    assert changes > len(labels) / 3


def test_no_sentence_comes_twice():
    sentences = all_sentences()
    words_only = {"".join(c for c in sentence if c.isalpha()) for sentence in sentences}
    assert len(words_only) == len(sentences) == sum(ROWS.values())


def test_sentence_form():
    for sentence in all_sentences():
        assert 3 <= len(sentence.split()) <= 25, sentence
        assert sentence == sentence.lower() == " ".join(sentence.split())
        assert sentence.isascii()
        assert not set(sentence) & set('{}"0123456789')


def test_labels_follow_the_hand_written_text():
    labels = {row["sentence"]: row["label"] for split in ROWS for row in read_rows(split)}
    for text in (NEGATIVE_TEXT, POSITIVE_TEXT):
        assert all(labels[sentence] == text.label for sentence in text.sentences)


def test_amount_of_hand_written_text():
    assert len(set(PATTERNS)) >= 10
    assert len(set(NEGATIVE_TEXT.sentences + POSITIVE_TEXT.sentences)) >= 60
    for text in (NEGATIVE_TEXT, POSITIVE_TEXT):
        fragments = [fragment for slot in text.fragments.values() for fragment in slot]
        assert len(set(fragments)) == len(fragments) >= 40
    assert NEGATIVE_TEXT.fragments.keys() == POSITIVE_TEXT.fragments.keys()


def test_no_class_is_given_away_by_length():
    mean_words = {}
    for label in (0, 1):
        lengths = [len(row["sentence"].split()) for row in read_rows("train") if row["label"] == label]
        mean_words[label] = sum(lengths) / len(lengths)
    assert abs(mean_words[0] - mean_words[1]) < 1.5


def test_deal_forever_deals_every_item_before_any_comes_again():
    deck = deal_forever(("x", "y", "z"), random.Random(1))
    for _ in range(3):
        assert {next(deck) for _ in range(3)} == {"x", "y", "z"}


def test_compose_refuses_more_sentences_than_it_can_make():
    with pytest.raises(RuntimeError, match="no new sentence"):
        compose(POSITIVE_TEXT, 5000, random.Random(1))


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("the villain is thin, but the villain is fun", True),
        ("patient viewers say it rewards patience", True),
        ("the film that knows that it works", False),
        ("the jokes land and the pacing is crisp", False),
    ],
)
def test_repeats_a_content_word(sentence, expected):
    assert repeats_a_content_word(sentence) is expected


def read_task(name: str, split: str) -> list[dict]:
    path = make_tasks.FOLDER / name / f"{split}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_tasks_generator_reproduces_its_files(tmp_path, monkeypatch, capsys):
    assert make_tasks.main(["--check"]) == 0
    monkeypatch.setattr(make_tasks, "FOLDER", tmp_path)
    assert make_tasks.main(["--check"]) == 1
    assert "trec/train.jsonl" in capsys.readouterr().err
    assert make_tasks.main([]) == 0
    assert make_tasks.main(["--check"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {name for name in TASKS if name != "sst2"}


@pytest.mark.parametrize("name", [name for name in TASKS if name != "sst2"])
def test_rows_of_the_tasks(name):
    """Both files have enough rows of every class for a smoke run, and nobody of one is in the other."""
    train, validation = read_task(name, "train"), read_task(name, "validation")
    assert len(train) >= 12
    assert len(validation) >= 8
    assert all(row.keys() == train[0].keys() for row in train + validation)
    task = TASKS[name]
    for rows in (train, validation):
        labels = [sample.label for sample in task.samples(row for row in rows if row.get("label") != -1)]
        assert task.generates or len(set(labels)) >= 2
    text, held_out = json.dumps(train), [person.name for person in PEOPLE[-HELD_OUT:]]
    assert not any(name in text for name in held_out)


def test_places_in_the_text_are_right():
    for split in ("train", "validation"):
        for row in read_task("squad", split):
            answer, start = row["answers"]["text"][0], row["answers"]["answer_start"][0]
            assert row["context"][start : start + len(answer)] == answer
        for row in read_task("wic", split):
            for place in ("1", "2"):
                assert row[f"sentence{place}"][row[f"start{place}"] : row[f"end{place}"]].lower() == row["word"]
        for row in read_task("wsc", split):
            words = row["text"].split()
            assert (words[row["span1_index"]], words[row["span2_index"]]) == (row["span1_text"], row["span2_text"])
            giver, taker = words[0], words[words.index("to") + 1]
            pronouns = {person.first: person.pronoun for person in PEOPLE}
            assert pronouns[giver] != pronouns[taker] == row["span2_text"]
            assert row["label"] == int(row["span1_text"] == taker)
        for row in read_task("record", split):
            for text, start, end in zip(*row["entity_spans"].values(), strict=True):
                assert row["passage"][start:end] == text
            assert set(row["answers"]) <= set(row["entities"])
