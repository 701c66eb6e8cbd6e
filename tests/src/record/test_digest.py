"""The configuration's digest: what changes it and what does not."""

from __future__ import annotations

import pytest

from src.record.digest import configuration_digest, options

WORDS = ["--output_dir", "a", "--task_name", "SST2", "--lora", "--learning_rate", "1e-3", "--model_name", "m"]


@pytest.fixture
def data(tmp_path):
    (tmp_path / "data/sst2").mkdir(parents=True)
    (tmp_path / "data/sst2/train.jsonl").write_text("{}\n")
    return tmp_path / "data"


def test_options_are_read_as_the_parser_reads_them():
    assert options(["--a", "1", "--b", "--c=2", "--a", "3", "--d", "x", "y"]) == [
        ("--a", "3"),
        ("--b", ""),
        ("--c", "2"),
        ("--d", "x y"),
    ]


def test_place_order_and_resumption_do_not_count(data):
    same = ["--learning_rate", "1e-3", "--lora", "--task_name", "SST2", "--model_name", "m"]
    extra = ["--output_dir", "b", "--overwrite_output_dir", "--resume_from_checkpoint", "True"]
    assert configuration_digest(WORDS, str(data)) == configuration_digest([*same, *extra], str(data))


def test_settings_data_and_model_count(data, tmp_path):
    found = {configuration_digest(WORDS, str(data)), configuration_digest(WORDS, None)}
    found.add(configuration_digest([*WORDS, "--smoke"], str(data)))
    found.add(configuration_digest([*WORDS[:-4], "--learning_rate", "1e-4", "--model_name", "m"], str(data)))
    model = tmp_path / "model"
    model.mkdir()
    local = [*WORDS[:-1], str(model)]
    found.add(configuration_digest(local, str(data)))
    (model / "config.json").write_text("{}")
    found.add(configuration_digest(local, str(data)))
    (data / "sst2/train.jsonl").write_text("{}\n{}\n")
    found.add(configuration_digest(WORDS, str(data)))
    assert len(found) == 7
