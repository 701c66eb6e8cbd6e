"""The command line of PUM: a whole run on rows of one's own, what it writes, and one-line errors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from builders import save_model
from transformers import AutoModelForCausalLM

from pum.run_pum import drop_nulls, main
from src.utils import UserError


@pytest.fixture
def base(tmp_path: Path) -> list[str]:
    """Arguments of a small run: a tiny model and rows of words that its tokenizer knows."""
    rows = {
        "forget": [("a film", "so warm and bright"), ("the plot", "very dull and slow"), ("the actor", "cold")],
        "retain": [("the film", "It was great"), ("a plot", "It was terrible"), ("a actor", "good")],
    }
    for name, pairs in rows.items():
        lines = [json.dumps({"question": question, "answer": answer}) for question, answer in pairs]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    model = save_model(tmp_path / "model", "llama")
    words = f"--model_name {model} --forget_path {tmp_path}/forget.jsonl --retain_path {tmp_path}/retain.jsonl"
    return f"{words} --output_dir {tmp_path}/out --use_cpu True --copies_m 2 --learning_rate 1e-3".split()


def test_whole_run(base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = "--inner_handler GradDiff --local_max_steps 2 --sigma 0.01 --dp_epsilon null --sigma_per_layer null"
    main([*base, *more.split(), "--dp_sensitivity_per_layer_l2", "[1.0, 0.5]"])
    out = tmp_path / "out"
    shown = capsys.readouterr().out
    assert "epsilon, paper" in shown
    assert "the centre itself" in shown
    assert "operating-system entropy" in shown
    metrics = json.loads((out / "metrics.json").read_text())
    report = json.loads((out / "privacy.json").read_text())
    assert metrics["privacy"] == report
    assert metrics["method"] == "GradDiff"
    assert report["joint"]["epsilon"] is None
    assert report["paper"]["epsilon"] > 0
    assert (out / "pum_round1_copy2").is_dir()
    before = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32).state_dict()
    after = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).state_dict()
    assert any(not torch.equal(tensor, before[name]) for name, tensor in after.items())
    with pytest.raises(UserError, match="already holds a run"):
        main([*base, *more.split()])
    joint = "--dp_epsilon 8 --dp_delta 1e-5 --dp_accounting joint --dp_sensitivity_total_l2 0.1 --secret_seed 3"
    main([*base, *joint.split(), "--local_max_steps", "1", "--overwrite_output_dir", "True"])
    report = json.loads((out / "privacy.json").read_text())
    assert report["joint"]["epsilon"] == pytest.approx(8.0)
    assert report["secrets"] == "reproducible secrets, not private"
    assert report["private"] is False
    assert "reproducible secrets, not private" in capsys.readouterr().out


def test_a_refused_run_leaves_the_earlier_one(base: list[str], tmp_path: Path) -> None:
    main([*base, "--inner_handler", "GradDiff", "--local_max_steps", "1"])
    before = (tmp_path / "out" / "metrics.json").read_text()
    lacking = base.copy()
    del lacking[lacking.index("--retain_path") : lacking.index("--retain_path") + 2]
    for words in (lacking, [*base, "--inner_handler", "RMU", "--rmu_layer", "9"]):
        with pytest.raises(UserError, match=r"needs a retain set|outside the model"):
            main([*words, "--overwrite_output_dir", "True"])
    assert (tmp_path / "out" / "metrics.json").read_text() == before
    same = [str(tmp_path / "model") if word == f"{tmp_path}/out" else word for word in base]
    weights = (tmp_path / "model" / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="holds the model that the run starts from"):
        main([*same, "--overwrite_output_dir", "True"])
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--inner_handler Forget", "unknown inner method 'Forget'"),
        ("--alpha_min 0.5", "alpha_min"),
        ("--copies_m 1 --sigma 0.1", "no zero-sum noise"),
        ("--dp_sensitivity_per_layer_l2 [1,2,3]", "3 entries, but the model has 2 layers"),
        ("--sigma_per_layer 0.1,0.2", "must be a list"),
        ("--sigma null", "argument --sigma: invalid float"),
        ("--sigmas 0.1", "sigmas"),
        ("--dp_epsilon 2", "belong together"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(
    base: list[str], tmp_path: Path, words: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        main([*base, *words.split()])
    assert not (tmp_path / "out").exists()


def test_an_architecture_without_disguise(base: list[str], tmp_path: Path) -> None:
    base[1] = save_model(tmp_path / "gpt2", "gpt2")
    with pytest.raises(UserError, match="no disguise is known for architecture 'gpt2'"):
        main([*base, "--use_orthogonal_reparam", "True"])
    assert not (tmp_path / "out").exists()


def test_exit_code_of_the_command(base: list[str]) -> None:
    command = [sys.executable, "-m", "pum.run_pum", *base, "--alpha_min", "0.5"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: 1 <= alpha_min")
    assert "Traceback" not in done.stderr


def test_null_is_dropped_only_where_it_is_the_default() -> None:
    assert drop_nulls(["--dp_epsilon", "null", "--sigma", "null", "--x", "null"]) == [
        "--sigma",
        "null",
        "--x",
        "null",
    ]
    assert drop_nulls(["--sigma_per_layer", "null", "--local_max_steps", "3"]) == ["--local_max_steps", "3"]
