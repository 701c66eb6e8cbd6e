"""TOFU's splits and their encoding, on the sample data and, with DATA_DIR, on the real files."""

from __future__ import annotations

import json

import pytest
from builders import make_tokenizer

from src.sample_data import make_tofu
from src.sample_data.tofu_authors import AUTHORS, HOLDOUT_AUTHORS, REFUSALS
from src.tofu.chat import chat_format
from src.tofu.prompts import IGNORED, collate, encode_answers, encode_prompts, encode_rows
from src.tofu.rows import SAMPLE_DATA, file_rows, full_rows, load_split, refusals, retain_rows, split_rows
from src.utils import UserError

SAMPLE = str(SAMPLE_DATA)


def keys(rows):
    return [(row["question"], row["answer"]) for row in rows]


def write_split(folder, name, rows):
    (folder / "tofu").mkdir(exist_ok=True)
    (folder / "tofu" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


# Sample data


def test_generator_reproduces_the_sample_files(monkeypatch, tmp_path, capsys):
    assert make_tofu.main(["--check"]) == 0
    monkeypatch.setattr(make_tofu, "DATA_DIR", tmp_path / "tofu")
    assert make_tofu.main(["--check"]) == 1
    assert make_tofu.main([]) == 0
    for path in (SAMPLE_DATA / "tofu").iterdir():
        assert path.read_bytes() == (tmp_path / "tofu" / path.name).read_bytes()
    (tmp_path / "tofu" / "idk.txt").write_text("No.\n")
    assert make_tofu.main(["--check"]) == 1
    assert capsys.readouterr().err.endswith("\nidk.txt: not what make_tofu writes\n")


def test_sample_rows():
    assert len(AUTHORS) == 20
    assert len({author.name for author in AUTHORS + HOLDOUT_AUTHORS}) == 22
    assert len(split_rows("retain90", SAMPLE)) == 108
    for name, count in (("forget10_perturbed", 12), ("forget05_perturbed", 6), ("retain_perturbed", 36)):
        rows = split_rows(name, SAMPLE)
        assert len(rows) == count
        for row in rows:
            assert len(set(row["perturbed_answer"])) == 5
            assert row["paraphrased_answer"] not in row["perturbed_answer"]
            assert row["paraphrased_answer"] != row["answer"]
            assert row["paraphrased_question"] != row["question"]
    for name in ("real_authors_perturbed", "world_facts_perturbed"):
        rows = split_rows(name, SAMPLE)
        assert len(rows) == 20
        assert all(len(row["perturbed_answer"]) == 3 for row in rows)
        assert all(row["answer"] not in row["perturbed_answer"] for row in rows)
    assert refusals(SAMPLE) == list(REFUSALS)
    assert len(set(REFUSALS)) == 20


@pytest.mark.parametrize("name", ["forget05", "forget10"])
def test_sample_splits_are_disjoint_and_complete(name):
    split = load_split(name, SAMPLE)
    assert len(split.forget) + len(split.retain) == 120
    assert set(keys(split.forget + split.retain)) == set(keys(full_rows(SAMPLE)))
    assert not set(keys(split.holdout)) & set(keys(full_rows(SAMPLE)))
    assert len(split.holdout) == len(split.forget)
    assert keys(split_rows(f"{name}_perturbed", SAMPLE)) == keys(split.forget)


# Splits


def test_retain95_is_derived_where_the_file_is_missing(tmp_path):
    rows = [{"question": f"q{i}", "answer": f"a{i}"} for i in range(10)]
    write_split(tmp_path, "retain90", rows[:6])
    write_split(tmp_path, "forget10", rows[6:])
    write_split(tmp_path, "forget05", rows[6:8])
    assert keys(retain_rows("forget05", str(tmp_path))) == keys(rows[:6] + rows[8:])
    split = load_split("forget05", str(tmp_path), holdout_rows=3)
    assert keys(split.holdout) == keys([rows[5], *rows[8:]])
    assert keys(split.retain) == keys(rows[:5])
    assert load_split("forget05", str(tmp_path)).holdout == []


def test_real_splits(data_dir):
    assert len(full_rows(str(data_dir))) == 4000
    for name, forget, retain in (("forget01", 40, 3960), ("forget05", 200, 3800), ("forget10", 400, 3600)):
        split = load_split(name, str(data_dir))
        assert (len(split.forget), len(split.retain)) == (forget, retain)
        assert not set(keys(split.forget)) & set(keys(split.retain))
        assert keys(split_rows(f"{name}_perturbed", str(data_dir))) == keys(split.forget)
    assert len(refusals(str(data_dir))) == 100


def test_without_a_data_folder_the_hub_is_asked_and_nothing_else(monkeypatch):
    asked = []

    def hub_rows(path, name, split):
        asked.append((path, name, split))
        return [{"question": "q", "answer": "a", "perturbed_answer": ["b"], "paraphrased_answer": "c"}]

    monkeypatch.setattr("src.tofu.rows.hub_rows", hub_rows)
    load_split("forget10", None)
    full_rows(None)
    assert [name for _, name, _ in asked] == ["retain90", "holdout10", "forget10", "full"]
    assert {(path, split) for path, _, split in asked} == {("locuslab/TOFU", "train")}


def test_wrong_data_are_one_line(tmp_path):
    with pytest.raises(UserError, match="unknown forget split 'forget20'; known: forget01, forget05, forget10"):
        load_split("forget20", SAMPLE)
    with pytest.raises(UserError, match=r"cannot read .*forget10\.jsonl: No such file"):
        split_rows("forget10", str(tmp_path))
    write_split(tmp_path, "forget10", [{"question": "q"}])
    with pytest.raises(UserError, match=r"forget10\.jsonl row 1 has no answer"):
        split_rows("forget10", str(tmp_path))
    write_split(tmp_path, "forget10_perturbed", [{"question": "q", "answer": "a"}])
    with pytest.raises(UserError, match="row 1 has no perturbed_answer and no paraphrased_answer"):
        split_rows("forget10_perturbed", str(tmp_path))
    row = {"question": "q", "answer": "a", "paraphrased_answer": "b"}
    for wrong in ("text", ["c", 1]):
        write_split(tmp_path, "forget10_perturbed", [{**row, "perturbed_answer": wrong}])
        with pytest.raises(UserError, match="row 1: perturbed_answer must be a list of texts"):
            split_rows("forget10_perturbed", str(tmp_path))
    write_split(tmp_path, "forget10", [{"question": 3, "answer": "a"}])
    with pytest.raises(UserError, match="row 1: question must be text"):
        split_rows("forget10", str(tmp_path))
    with pytest.raises(UserError, match=r"holdout_rows must be from 0 to 107, got 108"):
        load_split("forget10", SAMPLE, holdout_rows=108)
    with pytest.raises(UserError, match="cannot read the refusals"):
        refusals(str(tmp_path))


# Encoding


def test_plain_format_scores_the_answer_and_one_end_token():
    tokenizer = make_tokenizer()
    (sequence,) = encode_answers(tokenizer, [("was it good", "it was so bad")])
    prompt = tokenizer("Question: was it good\nAnswer:", add_special_tokens=False)["input_ids"]
    assert sequence.start == len(prompt)
    assert sequence.ids[: sequence.start] == prompt == encode_prompts(tokenizer, ["was it good"])[0]
    assert tokenizer.decode(sequence.ids[sequence.start :]).split()[-3:] == ["so", "bad", "</s>"]
    (again,) = encode_answers(tokenizer, [("was it good", "it was so bad </s>")])
    assert again.ids == sequence.ids


def test_chat_template_is_used_and_what_it_writes_behind_the_answer_is_scored():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'][0] + ' ' + m['content'] + ' </s> the ' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'a ' }}{% endif %}"
    )
    chat = chat_format(tokenizer, "very cold")
    (sequence,) = encode_answers(tokenizer, [("was it good", "so bad")], chat)
    assert tokenizer.decode(sequence.ids[: sequence.start]).split()[-1] == "a"
    assert "very cold" in tokenizer.decode(sequence.ids[: sequence.start])
    assert tokenizer.decode(sequence.ids[sequence.start :]) == "so bad </s> the </s>"


def test_the_templates_date_is_fixed():
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ date_string }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    ids = encode_prompts(tokenizer, ["so bad"])[0]
    assert ids == tokenizer("10 Apr 2025so bad", add_special_tokens=False)["input_ids"]


def test_rows_have_labels_on_the_answer_and_a_refusal_of_each_text():
    tokenizer = make_tokenizer()
    rows = [{"question": "was it good", "answer": "so bad"}] * 3
    items = encode_rows(tokenizer, rows, refusal_texts=["so cold", "so warm"])
    start = items[0]["labels"].count(IGNORED)
    assert items[0]["labels"][start:] == items[0]["input_ids"][start:]
    for text, refusal in zip(("so cold", "so warm"), items[0]["refusals"], strict=True):
        assert refusal["input_ids"][:start] == items[0]["input_ids"][:start]
        assert refusal["labels"][:start] == [IGNORED] * start
        assert tokenizer.decode(refusal["labels"][start:]) == text + " </s>"


def test_text_rows_score_all_but_the_first_token(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "it was so bad"}\n')
    (item,) = encode_rows(make_tokenizer(), file_rows(path), refusal_texts=["so cold"])
    assert item["labels"] == [IGNORED, *item["input_ids"][1:]]
    assert item["input_ids"][-1] == make_tokenizer().eos_token_id
    assert "refusals" not in item
    path.write_text('{"text": "a"}\n{"question": "b", "answer": "c"}\n')
    with pytest.raises(UserError, match="row 2 has no text"):
        file_rows(path)


def test_too_long_rows_and_empty_answers_are_refused():
    with pytest.raises(UserError, match="tokens, the model takes 5"):
        encode_answers(make_tokenizer(), [("was it good", "so bad")], max_length=5)
    with pytest.raises(UserError, match="finds no token in the answer to 'was it good'"):
        encode_answers(make_tokenizer(), [("was it good", " ")])


def test_collate_pads_on_the_right():
    batch = collate([{"input_ids": [5, 6, 7], "labels": [IGNORED, 6, 7]}, {"input_ids": [8], "labels": [IGNORED]}])
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[IGNORED, 6, 7], [IGNORED] * 3]
