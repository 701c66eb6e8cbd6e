"""A real language model on real sentences: some hundred tokens, so that two cores take seconds."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from src import transcript
from src.ht_opt import HeadSettings, add_head, candidate_tokens
from src.lora import LoraSettings, add_lora
from src.models import load_model
from src.prefix import add_prefix
from src.tasks import get_task
from src.zo.directions import ParameterSpace, StepRecord
from src.zo.sources import CentralDifferences

ROOT = Path(__file__).resolve().parents[2]


def test_the_embedded_model_speaks():
    model, tokenizer = load_model("smollm2-135m")
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    answer = model.generate(**prompt, max_new_tokens=3, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0])
    assert not hasattr(model.config, "quantization_config")


def test_real_sentences_are_scored_as_by_a_plain_pass(data_dir):
    model, tokenizer = load_model("smollm2-135m")
    task = get_task("SST2")
    samples = task.splits(str(data_dir), num_train=6, num_dev=1, num_eval=1, train_set_seed=0).train
    losses = task.objective(model, tokenizer, samples).losses()
    for sample, loss in zip(samples, losses, strict=True):
        ids = torch.tensor([tokenizer(sample.prompt)["input_ids"]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, -1].double()
        words = [tokenizer(word)["input_ids"] for word in sample.continuations]
        assert all(len(word) == 1 for word in words)
        expected = -logits[[w[0] for w in words]].log_softmax(0)[sample.label]
        assert float(loss) == pytest.approx(float(expected), rel=1e-4)


def test_a_prefix_is_small_and_starts_the_same_whatever_the_threads():
    starts = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            model, _ = load_model("smollm2-135m")
            size = sum(p.numel() for p in model.parameters())
            starts.append(ParameterSpace(add_prefix(model)))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert starts[0].checksum() == starts[1].checksum()
    assert starts[0].num_elements == 57_600 < 1e-3 * size


def test_a_head_step_is_far_cheaper_than_a_pass(data_dir):
    model, tokenizer = load_model("smollm2-135m")
    task = get_task("SST2")
    samples = task.splits(str(data_dir), num_train=32, num_dev=1, num_eval=1, train_set_seed=0).train
    whole = task.objective(model, tokenizer, samples).losses()
    tokens = candidate_tokens(tokenizer, "It was", samples[0].continuations)
    model = add_head(model, HeadSettings(tokens=tokens))
    objective, space = task.objective(model, tokenizer, samples), ParameterSpace(model)
    source, seconds = CentralDifferences(space, objective, 1e-3), []
    begin = time.perf_counter()
    torch.testing.assert_close(objective.losses(), whole)
    one_pass = time.perf_counter() - begin
    for step in range(5):
        begin = time.perf_counter()
        source((step,))
        space.apply(StepRecord(step, (step,), (1.0,), 1e-3))
        seconds.append(time.perf_counter() - begin)
    assert min(seconds) < one_pass / 20


@pytest.mark.parametrize("cell", ["sst2_1p3b_lora_pacmi_mi033_s0", "sst2_1p3b_ft_paczpl_s1"])
def test_a_cell_runs_on_real_data(cell, data_dir, tmp_path):
    run_id = f"test-{os.getpid()}-{cell}"
    environment = {
        **os.environ,
        "DATA_DIR": str(data_dir),
        "MODEL": "smollm2-135m",
        "PYTHON": sys.executable,
        "RUN_ID": run_id,
        "SMOKE": "1",
        "SMOKE_STEPS": "2",
        "SMOKE_NTRAIN": "4",
        "SMOKE_NDEV": "2",
        "SMOKE_NEVAL": "2",
        "LR": "1e-4",
    }
    folder = ROOT / "result" / "runs" / run_id
    try:
        script = ROOT / "scripts" / "headline" / f"{cell}.sh"
        result = subprocess.run(
            ["bash", str(script)], env=environment, capture_output=True, text=True, cwd=tmp_path
        )
        assert result.returncode == 0, result.stderr[-2000:]
        metrics = json.loads((folder / "metrics.json").read_text())
        assert metrics["configuration"]["learning_rate"] == 1e-4
        assert metrics["data"] == str(data_dir)
        _, records = transcript.read(folder / "transcript.jsonl")
        assert len(records) == metrics["steps"] == 2
        model, _ = load_model("smollm2-135m")
        transcript.replay(model, folder / "transcript.jsonl")
    finally:
        subprocess.run(["rm", "-rf", str(folder)], check=True)


def test_the_example_of_the_readme_runs(tmp_path):
    text = (ROOT / "paczo" / "README.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len([line for line in example.splitlines() if line.strip()]) <= 18
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", example]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "'budget_nats': 0.33" in result.stdout
    assert (tmp_path / "result" / "runs" / "mine" / "transcript.jsonl").exists()


def test_adapters_of_the_real_model_are_on_q_and_v():
    model, _ = load_model("smollm2-135m")
    names = {n.split(".lora_")[0].rpartition(".")[2] for n, _ in add_lora(model, LoraSettings()).named_parameters()
             if "lora_" in n}  # fmt: skip
    assert names == {"q_proj", "v_proj"}
