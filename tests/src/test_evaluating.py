"""Evaluation without training: who stands in front of whom, how often, and what a run says of itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from paczo import run_paczo
from src import sample_data
from src.models import load_model
from src.samples import Limits, Scoring, demonstrations
from src.tasks import draw, get_task
from src.utils import UserError

SAMPLE_DATA = Path(sample_data.__file__).parent


pytestmark = pytest.mark.usefixtures("sample_data_here")


def evaluate(text_model, name, *words, output="run"):
    fixed = ["--trainer", "none", "--model_name", text_model, "--task_name", name, "--output_dir", output]
    run_paczo.main([*fixed, "--report_to", "none", "--use_cpu", "True", *words])


def evaluated(text_model, name, *words, output="run"):
    evaluate(text_model, name, *words, output=output)
    return json.loads(Path(output, "metrics.json").read_text())


def rows_of(name, split):
    return [json.loads(line) for line in (SAMPLE_DATA / name.lower() / f"{split}.jsonl").read_text().splitlines()]


def test_zero_shot_is_the_tasks_own_objective(text_model, capsys):
    metrics = evaluated(text_model, "SST2", "--num_eval", "10")
    task, rows = get_task("SST2"), rows_of("SST2", "validation")
    samples = task.samples(rows[int(i)] for i in draw(len(rows), 10, 0))
    model, tokenizer = load_model(text_model)
    assert metrics["after"] == {"dev": {}, "test": task.objective(model, tokenizer, samples).metrics()}
    assert metrics["before"] == {}
    assert metrics["privacy"]["mechanism"] == "zero-shot"
    assert metrics["privacy"]["private"] is True
    assert metrics["steps"] == 0
    said = capsys.readouterr().out
    assert said.count("=== sample ") == 3, "the first three are printed"
    assert f"=== sample 1\n{samples[0].prompt}\n=== answer " in said
    assert "guarantee       no training sample is used" in said


@pytest.mark.parametrize("name", ["CB", "SQuAD"])
def test_one_train_set_stands_in_front_of_all(name, text_model, capsys):
    words = ["--num_train", "2", "--train_set_seed", "5", "--num_eval", "4", "--max_new_tokens", "5", "--verbose"]
    metrics = evaluated(text_model, name, *words)
    task, train, test = get_task(name), rows_of(name, "train"), rows_of(name, "validation")
    shown = demonstrations(task.samples(train[int(i)] for i in draw(len(train), 2, 5)))
    samples = task.samples(test[int(i)] for i in draw(len(test), 4, 5))
    model, tokenizer = load_model(text_model)
    direct = task.objective(model, tokenizer, samples, Limits(max_new_tokens=5), Scoring([shown] * 4))
    assert metrics["after"]["test"] == direct.metrics()
    assert metrics["privacy"]["mechanism"] == "2 demonstrations"
    assert metrics["privacy"]["private"] is False
    said = capsys.readouterr().out
    assert said.count("=== sample ") == 4
    assert said.count(shown) == 4


def test_every_test_sample_has_demonstrations_of_its_own_without_a_seed(text_model, capsys):
    words = ["--num_train", "2", "--num_eval", "3", "--verbose", "--tag", "icl"]
    metrics = evaluated(text_model, "SST2", *words)
    task, train, test = get_task("SST2"), rows_of("SST2", "train"), rows_of("SST2", "validation")
    seeds = [2732, 9845, 3264]  # RandomState(0).randint(0, 10000)
    assert np.random.RandomState(0).randint(0, 10000, size=3).tolist() == seeds
    samples = task.samples(test[int(i)] for i in draw(len(test), 3, 0))
    before = [demonstrations(task.samples(train[int(i)] for i in draw(len(train), 2, s))) for s in seeds]
    said = capsys.readouterr().out
    for number, (text, sample) in enumerate(zip(before, samples, strict=True), start=1):
        assert f"=== sample {number}\n{text}{sample.prompt}\n" in said
    model, tokenizer = load_model(text_model)
    direct = task.objective(model, tokenizer, samples, scoring=Scoring(before)).metrics()
    assert metrics["after"]["test"] == direct
    name = Path(text_model).name
    path = Path(f"result/SST2-{name}-sampleeval3-ntrain2-icl-onetrainpereval.json")
    assert json.loads(path.read_text()) == {"accuracy": direct["accuracy"]}


def test_several_train_sets_are_several_runs(text_model):
    words = ["--num_train", "1", "--num_train_sets", "2", "--num_eval", "5", "--tag", "t"]
    evaluate(text_model, "SST2", *words)
    assert not Path("run").exists()
    found = [json.loads(Path(f"run-trainset{i}/metrics.json").read_text()) for i in (0, 1)]
    assert [one["configuration"]["train_set_seed"] for one in found] == [0, 1]
    for number, one in enumerate(found):
        path = Path(f"result/SST2-{Path(text_model).name}-sampleeval5-ntrain1-t-trainset{number}.json")
        assert json.loads(path.read_text()) == {"accuracy": one["after"]["test"]["accuracy"]}
        alone = evaluated(text_model, "SST2", *words, "--train_set_seed", str(number), output=f"alone{number}")
        assert alone["after"] == one["after"]


def test_calibration_is_that_of_the_objective(text_model):
    words = ["--num_eval", "0", "--num_train", "2", "--train_set_seed", "1"]
    task, test = get_task("TREC"), rows_of("TREC", "validation")
    model, tokenizer = load_model(text_model)
    train = rows_of("TREC", "train")
    shown = [demonstrations(task.samples(train[int(i)] for i in draw(len(train), 2, 1)))] * len(test)
    samples = task.samples(test)
    for calibration in ("sfc", "icl_sfc"):
        metrics = evaluated(text_model, "TREC", *words, f"--{calibration}", output=calibration)
        direct = task.objective(model, tokenizer, samples, scoring=Scoring(shown, calibration)).metrics()
        assert metrics["after"]["test"]["accuracy"] == direct["accuracy"]
        assert metrics["after"]["test"]["loss"] == pytest.approx(direct["loss"], rel=1e-6)


def test_sampled_answers_follow_the_seed(text_model):
    words = ["--num_eval", "3", "--sampling", "--temperature", "3.0", "--max_new_tokens", "8"]
    first = evaluated(text_model, "SQuAD", *words, output="one")
    assert evaluated(text_model, "SQuAD", *words, output="two")["after"] == first["after"]


def test_an_evaluation_is_not_overwritten_and_counts_as_a_run(text_model):
    evaluated(text_model, "RTE")
    with pytest.raises(UserError, match="already holds a run"):
        evaluated(text_model, "RTE")
    evaluated(text_model, "RTE", "--overwrite_output_dir")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task_name", "SQuAD", "--sfc"], "SQuAD has no SFC calibration"),
        (["--pac_m", "8"], "--pac_m"),
        (["--max_length", "30", "--task_name", "MultiRC", "--no_truncation"], "the model takes 30"),
        (["--max_length", "9", "--task_name", "Copa"], "is only continuation"),
        (["--result_file", "run/metrics.json"], "is the run's own file"),
        (["--dtype", "int8"], "unknown dtype"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(words, message, text_model, tmp_path):
    with pytest.raises(UserError) as refused:
        evaluated(text_model, "SST2", *words)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []
