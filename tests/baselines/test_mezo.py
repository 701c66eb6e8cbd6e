"""MeZO: its batches, and a run beside a plain loop."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest
import torch
from builders import make_model, make_tokenizer

from baselines import run_mezo
from baselines.mezo import MeZOArguments, MeZOTrainer
from src.engine.derivatives import exact_derivatives
from src.objectives import CandidateScoring
from src.record.steps import load
from src.utils import UserError
from src.zo.directions import ParameterSpace

PROMPTS = [f"{word} It was" for word in ("good", "bad", "fine", "warm", "dull", "long", "kind")]


def trainer(folder, **settings):
    model = make_model("opt")
    objective = CandidateScoring(model, make_tokenizer(), PROMPTS, [["bad", "good"]] * 7, [1, 0, 1, 1, 0, 0, 1])
    args = MeZOArguments(
        output_dir=str(folder), learning_rate=1e-3, lr_scheduler_type="constant", report_to="none", use_cpu=True,
        disable_tqdm=True, no_derivative_check=True, **settings,
    )  # fmt: skip
    return MeZOTrainer(model, args, objective), objective


def test_an_epoch_has_every_sample_once_and_each_epoch_another_order(tmp_path):
    made, _ = trainer(tmp_path, max_steps=6, zo_batch_size=3)
    batches = [made.batch(step) for step in range(6)]
    assert [len(batch) for batch in batches] == [3, 3, 1, 3, 3, 1]
    first, second = np.concatenate(batches[:3]), np.concatenate(batches[3:])
    assert sorted(first) == sorted(second) == list(range(7))
    assert list(first) != list(second)


@pytest.mark.parametrize("kind", ["central", "exact"])
def test_a_run_is_a_plain_loop_over_its_batches(tmp_path, kind):
    made, _ = trainer(tmp_path, max_steps=5, zo_batch_size=3, zo_derivative=kind)
    made.train()
    plain, objective = trainer(tmp_path / "plain", max_steps=5, zo_batch_size=3)
    space = ParameterSpace(plain.model)
    records = load(tmp_path / "transcript.jsonl").steps
    assert len(records) == 5
    for step, record in enumerate(records):
        samples = torch.from_numpy(plain.batch(step))
        if kind == "exact":
            mean = float(exact_derivatives(objective, space, record.seeds, samples)[0].mean())
        else:
            plus, minus = space.two_point(record.seeds[0], 1e-3, partial(objective.losses, samples))
            mean = float(((plus - minus) / 2e-3).mean())
        assert record.coefficients[0] == pytest.approx(mean, rel=1e-5)
        space.apply(record)
    for ours, theirs in zip(made.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_other_batches_lead_elsewhere(tmp_path):
    coefficients = []
    for size in (3, 7, 100):
        made, _ = trainer(tmp_path / str(size), max_steps=2, zo_batch_size=size)
        made.train()
        coefficients.append(
            [record.coefficients for record in load(tmp_path / str(size) / "transcript.jsonl").steps]
        )
    assert coefficients[0] != coefficients[1]
    assert np.allclose(coefficients[1], coefficients[2], rtol=1e-4)
    with pytest.raises(UserError, match="zo_batch_size must be at least 1"):
        trainer(tmp_path / "none", max_steps=2, zo_batch_size=0)


@pytest.mark.usefixtures("sample_data_here")
def test_the_sources_command_line_runs_and_goes_on(tmp_path, text_model, capsys):
    words = (
        f"--model_name {text_model} --task_name SST2 --output_dir runs/mezo --tag a --train_set_seed 0"
        " --num_train 12 --num_dev 4 --num_eval 4 --logging_steps 10 --max_steps 4 --trainer zo"
        " --learning_rate 1e-4 --zo_eps 1e-3 --per_device_train_batch_size 5 --lr_scheduler_type constant"
        " --load_best_model_at_end --evaluation_strategy steps --save_strategy steps --save_total_limit 1"
        " --eval_steps 2 --save_steps 2 --train_as_classification --report_to none --disable_tqdm True"
    ).split()
    run_mezo.main(words)
    assert "--per_device_train_batch_size is --zo_batch_size here" in capsys.readouterr().err
    metrics = json.loads((tmp_path / "runs/mezo/metrics.json").read_text("utf-8"))
    assert metrics["configuration"]["zo_batch_size"] == 5
    assert metrics["privacy"]["guarantee"] == "not accounted"
    assert metrics["privacy"]["releases"] == {"mean derivative": 4}
    assert metrics["best_step"] in (2, 4)
    whole = (tmp_path / "runs/mezo/transcript.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    (tmp_path / "runs/mezo/transcript.jsonl").write_bytes(b"".join(lines[:-2]))
    (tmp_path / "runs/mezo/metrics.json").unlink()
    run_mezo.main([*words, "--resume_from_checkpoint", "True"])
    assert (tmp_path / "runs/mezo/transcript.jsonl").read_bytes() == whole
