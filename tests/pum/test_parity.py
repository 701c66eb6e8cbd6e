"""Ours beside published numbers, and evaluations on the way, on random models of the sample data's words."""

from __future__ import annotations

import json

import pytest
import torch

from pum import parity
from pum.run_pum import main as unlearn_by_pum
from pum.run_unlearn import main
from pum.unlearn.tiny import random_model, train_tokenizer
from src.tofu.rows import SAMPLE_DATA, full_rows
from src.utils import UserError


@pytest.fixture
def family(tmp_path, monkeypatch):
    """Random models `full` and `retain` with a tokenizer of the sample data's text."""
    monkeypatch.setenv("DATA_DIR", str(SAMPLE_DATA))
    monkeypatch.chdir(tmp_path)
    tokenizer = train_tokenizer(full_rows(str(SAMPLE_DATA)))
    for seed, kind in enumerate(("full", "retain")):
        model = random_model(tokenizer)
        with torch.no_grad():
            model.lm_head.weight.mul_(1 + seed)
        model.save_pretrained(tmp_path / "family" / kind)
        tokenizer.save_pretrained(tmp_path / "family" / kind)
    return tmp_path / "family"


FEW = [
    "--use_cpu",
    "--disable_tqdm",
    "True",
    "--eval_limit",
    "3",
    "--max_new_tokens",
    "2",
    "--eval_gradnorm",
    "False",
]


def test_parity_puts_ours_beside_the_published_numbers(family, tmp_path, capsys, monkeypatch):
    words = ["--models", str(family), "--output_dir", "parity", *FEW]
    parity.main(words)
    shown = capsys.readouterr()
    report = json.loads((tmp_path / "parity/parity.json").read_text())
    assert report["ours"]["retain"]["forget_quality"] == 1.0
    assert 0 < report["ours"]["full"]["forget_quality"] <= 1.0
    assert report["prompts"]["family"] == "no template"
    assert report["published"] == {}
    (line,) = [line for line in shown.out.splitlines() if line.startswith("full") and "utility" in line]
    assert line.split()[:2] == ["full", "model_utility"]
    assert line.split()[3:] == ["-", "-"]
    assert "plain prompts (no template)" in shown.err
    table = parity.comparison({"full": {"model_utility": 0.61}}, {"full": {"model_utility": 0.6}})
    assert table.splitlines()[2].split() == ["full", "model_utility", "0.61", "0.6", "0.01"]
    run = tmp_path / "runs/tofu_tofu_Llama-2-7b-chat-hf_full_forget10_NPO"
    run.mkdir(parents=True)
    (run / "metrics.json").write_text('{"scores": {"model_utility": 0.5}}')
    settings = parity.ParityArguments("Llama-2-7b-chat-hf", unlearned=str(tmp_path / "runs"))
    assert parity.unlearned_scores(settings, "forget10") == {"NPO": {"model_utility": 0.5}}
    assert settings.path("retain", "forget05") == "open-unlearning/tofu_Llama-2-7b-chat-hf_retain95"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for more, message in (
        ([], "want a CUDA machine"),
        (["--model_family", "Llama-9"], "nothing is published of model_family 'Llama-9'; known: Llama-3.2-1B"),
        (["--models", str(family), "--retain_log", "x.json"], "drop --retain_log"),
    ):
        with pytest.raises(UserError, match=message):
            parity.main([*more, "--output_dir", "other", *FEW])
    assert not (tmp_path / "other").exists()


def test_published_numbers_are_open_unlearnings():
    """Of docs/repro.md, those that the project is measured by."""
    one = parity.PUBLISHED["Llama-3.2-1B-Instruct"]["forget10"]
    assert one == {"full": (1.66e-21, 0.60, 0.48), "retain": (1.0, 0.59, 0.63)}
    other = parity.PUBLISHED["Llama-2-7b-chat-hf"]["forget10"]
    assert {name: other[name][:2] for name in ("NPO", "GradDiff", "RMU")} == {
        "NPO": (0.42, 0.54),
        "GradDiff": (1.80e-229, 0.58),
        "RMU": (6.92e-21, 0.03),
    }


@pytest.mark.parametrize("lora", [False, True])
def test_a_run_evaluates_on_the_way(family, tmp_path, capsys, lora):
    words = ["--model_name", str(family / "full"), "--output_dir", "run", "--method", "GradAscent", *FEW]
    words += ["--max_steps", "4", "--eval_every", "2", "--learning_rate", "0.01", "--max_retain", "4"]
    main([*words, *(["--lora"] if lora else [])])
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    (halfway,) = metrics["on_the_way"]  # the last step is the run's own evaluation
    assert halfway["step"] == 2
    assert set(halfway["scores"]) == set(metrics["scores"])
    assert halfway["scores"]["forget_Q_A_Prob"] != metrics["scores"]["forget_Q_A_Prob"]
    assert (tmp_path / "run/evals/step2/TOFU_SUMMARY.json").exists()
    assert "\nstep 2: model_utility" in "\n" + capsys.readouterr().out


def test_pum_evaluates_after_a_round(family, tmp_path):
    words = ["--model_name", str(family / "full"), "--output_dir", "run", "--inner_handler", "GradAscent", *FEW]
    words += ["--local_max_steps", "2", "--rounds_R", "3", "--copies_m", "2", "--sigma", "0.001"]
    unlearn_by_pum([*words, "--eval_every", "3", "--max_retain", "4"])
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert [entry["step"] for entry in metrics["on_the_way"]] == [4, 6]
    assert metrics["on_the_way"][1]["scores"]["forget_Q_A_Prob"] == metrics["scores"]["forget_Q_A_Prob"]
