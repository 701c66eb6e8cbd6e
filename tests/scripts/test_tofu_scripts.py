"""tofu_unlearn.sh, tofu_pum.sh, tofu_parity.sh and the command behind them: variables, defaults, errors, runs."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from builders import save_model

from pum.arguments import PUMArguments
from pum.run_pum import drop_nulls
from pum.run_pum import main as run_pum
from pum.run_unlearn import main
from pum.unlearn import METHODS
from pum.unlearn.running import RunArguments
from src.tofu.rows import SAMPLE_DATA
from src.utils import Parser, UserError

ROOT = Path(__file__).resolve().parents[2]
PLAIN, PUM = ROOT / "scripts/tofu_unlearn.sh", ROOT / "scripts/tofu_pum.sh"
KEPT = ("PATH", "HOME", "LANG", "TMPDIR")
# The guide's table: code argument -> script variable and the guide's default.
GUIDE = {
    "copies_m": ("PUM_COPIES_M", "4"),
    "rounds_R": ("PUM_ROUNDS_R", "1"),
    "alpha_min": ("PUM_ALPHA_MIN", "1.0"),
    "alpha_max": ("PUM_ALPHA_MAX", "1.0"),
    "eta_srv": ("PUM_ETA_SRV", "1.0"),
    "use_orthogonal_reparam": ("PUM_USE_REPARAM", "false"),
    "jitter_tau": ("PUM_JITTER_TAU", "0.0"),
    "theta_ref_beta": ("PUM_THETA_REF_BETA", "0.8"),
    "center_clip_C_per_layer": ("PUM_CENTER_CLIP_C_PER_LAYER", "null"),
    "center_clip_C_global": ("PUM_CENTER_CLIP_C_GLOBAL", "null"),
    "center_clip_quantile_q": ("PUM_CENTER_CLIP_Q", "0.95"),
    "center_clip_quantile_kappa": ("PUM_CENTER_CLIP_KAPPA", "1.25"),
    "center_clip_round_gamma": ("PUM_CENTER_CLIP_GAMMA", "1.3"),
    "center_clip_ref_model_paths": ("PUM_CENTER_CLIP_REF_MODELS", "null"),
    "server_center_clipping": ("PUM_SERVER_CENTER_CLIP", "null"),
    "sigma": ("PUM_SIGMA", "0.0"),
    "sigma_per_layer": ("PUM_SIGMA_PER_LAYER", "null"),
    "per_layer_noise": ("PUM_PER_LAYER_NOISE", "false"),
    "dp_epsilon": ("DP_EPSILON", "null"),
    "dp_delta": ("DP_DELTA", "null"),
    "dp_rdp_orders": ("DP_RDP_ORDERS", "[1.5,2,3,4,8,16,32,64,128]"),
    "dp_per_layer_allocation": ("DP_PER_LAYER_ALLOC", "auto"),
    "dp_sensitivity_total_l2": ("DP_SENS_TOTAL_L2", "null"),
    "dp_sensitivity_per_layer_l2": ("DP_SENS_PER_LAYER_L2", "null"),
    "dp_use_worstcase_alpha": ("DP_USE_WORSTCASE_ALPHA", "true"),
    "local_max_steps": ("PUM_LOCAL_MAX_STEPS", "null"),
    # The guide writes 1, which its auto-balance overrides as long as no cap is given; here a value given holds.
    "local_epochs": ("PUM_LOCAL_EPOCHS", "null"),
    "clip_update_norm": ("PUM_CLIP_UPDATE_NORM", "null"),
    "clip_update_norm_per_layer": ("PUM_CLIP_UPDATE_PER_LAYER", "null"),
}
# Ours beside them.
OURS = {
    "alphas": ("PUM_ALPHAS", "uniform"),
    "client_reference": ("PUM_REFERENCE", "copy"),
    "dp_accounting": ("DP_ACCOUNTING", "paper"),
}


def run_script(script, cwd=ROOT, timeout=60, **variables):
    environment = {name: os.environ[name] for name in KEPT if name in os.environ}
    return subprocess.run(
        ["bash", str(script)],
        cwd=cwd,
        env={**environment, **variables},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def commands(script, **variables):
    """The commands that a script would run: module -> list of argument lists."""
    result = run_script(script, DRY_RUN="1", **variables)
    assert result.returncode == 0, result.stderr
    found: dict[str, list[list[str]]] = {}
    for line in result.stdout.splitlines():
        words = shlex.split(line)
        assert words[:2] == ["python", "-m"]
        found.setdefault(words[2], []).append(words[3:])
    return found


def option(words, name):
    return words[words.index(f"--{name}") + 1]


def test_every_variable_of_the_guide_has_its_default_and_reaches_its_argument():
    (words,) = commands(PUM)["pum.run_pum"]
    changed = dict.fromkeys([variable for variable, _ in (GUIDE | OURS).values()], "[17]")
    (other,) = commands(PUM, **changed)["pum.run_pum"]
    for argument, (_, default) in (GUIDE | OURS).items():
        assert option(words, argument) == default, argument
        assert option(other, argument) == "[17]", argument
    assert option(words, "inner_handler") == "NPO"


def test_the_arguments_have_the_guides_defaults_too():
    (words,) = commands(PUM)["pum.run_pum"]
    _, passed = Parser((RunArguments, PUMArguments)).parse([*drop_nulls(words), "--use_cpu"])
    bare = PUMArguments(use_cpu=True)
    assert list(bare.orders) == [1.5, 2, 3, 4, 8, 16, 32, 64, 128] == passed.orders
    for argument in GUIDE:
        if argument != "dp_rdp_orders":
            assert getattr(passed, argument) == getattr(bare, argument), argument
    assert (passed.kappa, bare.kappa) == (0.01, None)  # a script's run without noise would publish the model


def test_the_pum_script_passes_what_the_arguments_take():
    (words,) = commands(PUM, DP_EPSILON="2", DP_DELTA="1e-5", DP_SENS_PER_LAYER_L2="[0.1, 0.2]")["pum.run_pum"]
    run, args = Parser((RunArguments, PUMArguments)).parse([*drop_nulls(words), "--use_cpu"])
    assert run.forget_split == "forget10"
    assert args.dp_sensitivity_per_layer_l2 == [0.1, 0.2]
    assert (args.copies_m, args.dp_epsilon, args.sigma_rms, args.kappa) == (4, 2.0, None, None)
    assert args.local_max_steps is None


def test_noise_is_kappa_unless_another_is_given():
    for variables, sigma, share, kappa in (
        ({}, "0.0", "null", "0.01"),
        ({"PUM_KAPPA": "0.1"}, "0.0", "null", "0.1"),
        ({"PUM_SIGMA_RMS": "0.1"}, "0.0", "0.1", "null"),
        ({"PUM_SIGMA": "0.0"}, "0.0", "null", "null"),
        ({"PUM_SIGMA": "2.0"}, "2.0", "null", "null"),
        ({"PUM_SIGMA_PER_LAYER": "[0.1]"}, "0.0", "null", "null"),
        ({"DP_EPSILON": "1"}, "0.0", "null", "null"),
    ):
        (words,) = commands(PUM, **variables)["pum.run_pum"]
        found = tuple(option(words, name) for name in ("sigma", "sigma_rms", "kappa"))
        assert found == (sigma, share, kappa), variables
    (words,) = commands(PUM, BASE_MODEL="meta/base")["pum.run_pum"]
    assert option(words, "kappa_base_model_path") == "meta/base"
    (words,) = commands(PUM, BASE_MODEL="meta/base", PUM_SIGMA="0.1")["pum.run_pum"]
    assert option(words, "kappa_base_model_path") == "null"


def test_the_preset_is_the_papers_code():
    methods = {
        "SimNPO": ("10", "1"),
        "DPO": ("10", "1"),
        "SatImp": ("10", "1"),
        "GradAscent": ("1", "10"),
        "GradDiff": ("1", "10"),
        "UNDIAL": ("1", "10"),
        "NPO": ("2", "5"),
        "WGA": ("2", "5"),
    }
    runs = commands(PUM, PRESET="mpu", METHODS=" ".join(methods), BASE_MODEL="meta/base")["pum.run_pum"]
    for words, rounds_epochs in zip(runs, methods.values(), strict=True):
        assert (option(words, "rounds_R"), option(words, "local_epochs")) == rounds_epochs
        expected = {
            "copies_m": "2",
            "alphas": "fixed",
            "kappa": "0.01",
            "use_orthogonal_reparam": "true",
            "client_reference": "server",
            "lr_scheduler_type": "constant",
            "warmup_epochs": "0",
        }
        assert {name: option(words, name) for name in expected} == expected
    (words,) = commands(PUM, PRESET="mpu", PUM_ROUNDS_R="3", PUM_COPIES_M="5")["pum.run_pum"]
    found = tuple(option(words, name) for name in ("rounds_R", "local_epochs", "copies_m"))
    assert found == ("3", "null", "5")


def test_arguments_of_methods_and_of_the_evaluation():
    runs = commands(
        PLAIN, METHODS="SimNPO RMU", METHOD_ARGS="delta=0.0 rmu_layer=7", BETA="4.5", MINK_K="0.2", EVAL_STEPS="5"
    )["pum.run_unlearn"]
    for words in runs[1:]:
        assert option(words, "method_args").split() == ["beta=4.5", "delta=0.0", "rmu_layer=7"]
        assert "--skip_foreign_args" in words
        assert (option(words, "mink_k"), option(words, "eval_every")) == ("0.2", "5")
    (_, words) = commands(PLAIN, METHOD_ARGS="rmu_layer=7", SYSTEM_PROMPT="", REFERENCE_MODEL="a/b")[
        "pum.run_unlearn"
    ]
    assert "--skip_foreign_args" not in words
    assert (option(words, "system_prompt"), option(words, "reference_model")) == ("", "a/b")
    assert "--system_prompt" not in commands(PLAIN)["pum.run_unlearn"][0]


def test_the_guides_names_of_batch_and_gpus():
    for variables, batch, accumulation in (
        ({}, "8", "4"),
        ({"GPUS": "3"}, "8", "4"),
        ({"GPUS": "0,1,2,3"}, "8", "4"),  # TOFU's 32 rows a step, however many GPUs
        ({"BATCH_SIZE_PER_GPU": "2", "GRAD_ACCUM_STEPS": "16"}, "2", "16"),
        ({"BATCH_SIZE_PER_GPU": "2", "GRAD_ACCUM_STEPS": "4", "GPUS": "0,1,2,3"}, "2", "16"),
    ):
        words = commands(PLAIN, **variables)["pum.run_unlearn"][-1]
        found = option(words, "per_device_train_batch_size"), option(words, "gradient_accumulation_steps")
        assert found == (batch, accumulation), variables


def test_a_sweep_skips_finished_tasks_and_rerun_repeats_them(tmp_path):
    """With an interpreter that only notes what it is asked to run."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    python.chmod(0o755)
    done = tmp_path / "unlearn/tofu_m_forget10_NPO"
    done.mkdir(parents=True)
    (done / "metrics.json").touch()
    variables = {"PYTHON": str(python), "OUTPUT": str(tmp_path), "MODELS": "a/m", "METHODS": "NPO GradDiff"}
    for rerun, expected in (("", ["GradDiff"]), ("0", ["GradDiff"]), ("True", ["NPO", "GradDiff"])):
        (tmp_path / "asked").unlink(missing_ok=True)
        result = run_script(PLAIN, RERUN=rerun, **variables)
        assert result.returncode == 0, result.stderr
        asked = [line.split() for line in (tmp_path / "asked").read_text().splitlines()]
        checked, unlearned = (
            [words for words in asked if "unlearn" in words and ("--check_only" in words) == check]
            for check in (True, False)
        )
        assert [option(words, "method") for words in unlearned] == expected
        assert [{*words} for words in checked] == [{*words, "--check_only"} for words in unlearned]
        assert all(("--overwrite_output_dir" in words) == (rerun == "True") for words in unlearned)
        assert option(asked[-1], "tasks").startswith("tofu_m")  # the table shows it all the same
        assert asked[-1][-2:] == ["tofu_m_forget10_NPO", "tofu_m_forget10_GradDiff"]
        assert ("is finished and skipped; RERUN=1 repeats it" in result.stderr) == (rerun != "True")


def test_folders_are_relative_to_the_callers(tmp_path):
    (tmp_path / "mine").mkdir()
    result = run_script(PUM, cwd=tmp_path, DRY_RUN="1", MODELS="mine", PUM_CENTER_REFERENCE="mine")
    words = next(shlex.split(line) for line in result.stdout.splitlines() if "pum.run_pum" in line)
    assert option(words, "model_name") == option(words, "center_reference_model_path") == str(tmp_path / "mine")


def test_the_smoke_runs_forget_and_keep_the_rest(tmp_path):
    """Plain NPO by a factor of 5 and more; PUM with noise of 1 % of the weights within 10 % of what it does."""
    variables = {"SMOKE": "1", "OUTPUT": str(tmp_path), "PYTHON": sys.executable, "SECRET_SEED": "1"}
    variables |= {"SMOKE_NEW_TOKENS": "8"}  # what is asked for below is not generated
    for script in (PLAIN, PUM):
        result = run_script(script, timeout=600, **variables)
        assert result.returncode == 0, result.stderr
    shown = dict(re.findall(r"^(\w+ probability) +(.+)$", result.stdout, re.MULTILINE))
    forget, retain = (
        [float(value) for value in shown[f"{name} probability"].split()] for name in ("forget", "retain")
    )
    (before, _, plain, pum), (kept_before, _, kept_plain, kept_pum) = forget, retain
    assert plain < before / 5
    assert kept_plain == pytest.approx(kept_before, rel=0.2)
    assert before - pum == pytest.approx(before - plain, rel=0.1)
    assert kept_pum == pytest.approx(kept_plain, rel=0.1)


def test_loops_over_models_splits_and_methods():
    found = commands(PLAIN, MODELS="a/one two", SPLITS="forget01 forget05", METHODS=" ".join(METHODS))
    runs = found["pum.run_unlearn"]
    unlearned = [words for words in runs if words[0] == "unlearn"]
    assert len(unlearned) == 2 * 2 * 11
    assert [option(words, "method") for words in unlearned[:11]] == list(METHODS)
    folders = {option(words, "output_dir") for words in unlearned}
    assert len(folders) == 44
    assert "saves/unlearn/tofu_one_forget01_NPO" in folders
    assert sum(words[0] == "evaluate" for words in runs) == 4
    assert len(found["src.tofu.table"]) == 4
    (words,) = commands(PUM, METHODS="GradDiff")["pum.run_pum"]
    assert option(words, "output_dir").endswith("_forget10_GradDiff_PUM")


def test_the_recipe_is_tofus_and_smoke_shrinks_it(tmp_path):
    plain = commands(PLAIN)["pum.run_unlearn"][-1]
    assert option(plain, "learning_rate") == "1e-5"
    batch = int(option(plain, "per_device_train_batch_size"))
    assert batch * int(option(plain, "gradient_accumulation_steps")) == 32
    assert "--smoke" not in plain
    assert "--num_train_epochs" not in plain  # the method's own
    assert option(plain, "gradient_checkpointing") == "True"  # as the guide's script
    held = commands(PLAIN, GRADIENT_CHECKPOINTING="false")["pum.run_unlearn"][-1]
    assert "--gradient_checkpointing" not in held
    made, smoke = commands(PLAIN, SMOKE="1", SMOKE_NEVAL="7", LR="0.5")["pum.run_unlearn"]
    assert made[0] == "tiny"
    assert "--smoke" in smoke
    assert "--gradient_checkpointing" not in smoke
    assert (option(smoke, "learning_rate"), option(smoke, "eval_limit")) == ("0.5", "7")
    assert "--holdout_rows" not in smoke  # the sample data have held-out rows
    (tmp_path / "tofu").mkdir()
    bare = commands(PLAIN, SMOKE="1", DATA_DIR=str(tmp_path))["pum.run_unlearn"][-1]
    assert option(bare, "holdout_rows") == "40"


def test_a_retain_log_is_made_from_the_base_model_or_taken():
    runs = commands(PLAIN, BASE_MODEL="meta/base")["pum.run_unlearn"]
    assert [words[0] for words in runs] == ["retain-log", "evaluate", "unlearn"]
    log = option(runs[0], "output_dir") + "/evals/TOFU_EVAL.json"
    assert option(runs[1], "retain_log") == option(runs[2], "retain_log") == log
    runs = commands(PLAIN, RETAIN_LOG="mine.json")["pum.run_unlearn"]
    assert [option(words, "retain_log") for words in runs] == ["mine.json"] * 2


def test_attacks_come_before_the_table_that_shows_them():
    found = commands(PUM, SMOKE="1", ATTACKS="relearn quantize", ATTACK_ARGS="--steps 3", METHODS="NPO RMU")
    assert list(found) == ["pum.run_unlearn", "pum.run_pum", "src.tofu.attacks", "src.tofu.table"]
    runs = [f"saves/unlearn/tofu_tiny_forget10_{name}" for name in ("NPO", "NPO_PUM", "RMU", "RMU_PUM")]
    for words, attack in zip(found["src.tofu.attacks"], ("relearn", "quantize"), strict=True):
        assert words[:6] == [attack, *runs, "saves/tiny/DIGEST/retain"]
        assert option(words, "steps") == "3"
        assert option(words, "retain_model") == "saves/tiny/DIGEST/retain"
        assert option(words, "before") == "saves/tiny/DIGEST/full"
    (shown,) = found["src.tofu.table"]
    assert option(shown, "retain") == "saves/tiny/DIGEST/retain"
    assert "src.tofu.attacks" not in commands(PUM, SMOKE="1")
    result = run_script(PLAIN, ATTACKS="melt")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize("script", [PLAIN, PUM])
def test_wrong_variables_are_one_line(script):
    for variables, message in (
        ({"NUM_GPUS": "two"}, "NUM_GPUS=two is no number from 1 on"),
        ({"RERUN": "maybe"}, "RERUN=maybe is unknown: use 1 or 0"),
        ({"GRADIENT_CHECKPOINTING": "some"}, "GRADIENT_CHECKPOINTING=some is unknown: use 1 or 0"),
        ({"LORA": "8"}, "LORA=8 is unknown: use 1 or 0"),
        ({"METHODS": "NPO Npo"}, f"METHODS: Npo is unknown: use some of {' '.join(METHODS)}\n"),
        ({"GPUS": "two"}, "GPUS=two is no list of GPU numbers"),
        ({"GRAD_ACCUM_STEPS": "0"}, "GRAD_ACCUM_STEPS=0 is no number from 1 on"),
        ({"DATA_DIR": "/no/such/folder"}, "DATA_DIR=/no/such/folder is no folder"),
    ):
        result = run_script(script, **variables)
        assert (result.returncode, result.stderr.count("\n")) == (2, 1)
        assert message in result.stderr


@pytest.mark.parametrize("script", [PLAIN, PUM])
def test_a_wrong_hyperparameter_is_refused_before_anything_is_loaded(script, tmp_path):
    variables = {"MODELS": "/no/model", "BASE_MODEL": "/no/base", "OUTPUT": str(tmp_path)}
    result = run_script(script, LR="-1", PYTHON=sys.executable, **variables)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: learning_rate must be finite and at least 0, got -1.0\n"


def test_a_check_reads_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--model_name", "no/model", "--output_dir", "run", "--use_cpu", "--check_only"]
    main(["unlearn", *words])
    run_pum(words)
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="copies_m must be at least 1"):
        run_pum([*words, "--copies_m", "0"])


def test_an_unknown_preset_is_one_line():
    result = run_script(PUM, PRESET="pum")
    assert (result.returncode, result.stderr) == (2, "error: PRESET=pum is unknown: use mpu, or leave it out\n")


def test_the_parity_script_passes_its_variables_on():
    script = ROOT / "scripts/tofu_parity.sh"
    found = commands(script, FAMILY="Llama-2-7b-chat-hf", SPLITS="forget05 forget10")["pum.parity"]
    assert [option(words, "forget_split") for words in found] == ["forget05", "forget10"]
    assert {option(words, "model_family") for words in found} == {"Llama-2-7b-chat-hf"}
    assert {option(words, "dtype") for words in found} == {"bfloat16"}
    found = commands(script, FAMILY="Llama-2-7b-chat-hf", UNLEARN="1")
    unlearned = [words for words in found["pum.run_unlearn"] if words[0] == "unlearn"]
    assert [option(words, "method") for words in unlearned] == ["NPO", "GradDiff", "RMU"]
    assert option(unlearned[0], "model_name") == "open-unlearning/tofu_Llama-2-7b-chat-hf_full"
    assert option(found["pum.parity"][1], "unlearned") == "saves/unlearn"
    smoke = commands(script, SMOKE="1")["pum.parity"][0]
    assert option(smoke, "models") == "saves/tiny/DIGEST"
    assert option(smoke, "dtype") == "float32"


# The command behind the scripts


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_DIR", str(SAMPLE_DATA))
    monkeypatch.chdir(tmp_path)
    # The words of the builders' tokenizer do not cover the sample's texts, so rows get long.
    return save_model(tmp_path / "model", "llama")


COMMON = ["--use_cpu", "--disable_tqdm", "True", "--smoke"]


def test_a_run_on_rows_of_ones_own(tiny, tmp_path, capsys):
    rows = "".join(json.dumps({"text": f"it was {word}"}) + "\n" for word in ("dull", "warm", "cold"))
    (tmp_path / "rows.jsonl").write_text(rows)
    words = ["--model_name", tiny, "--forget_path", "rows.jsonl", "--retain_path", "rows.jsonl", *COMMON]
    main([*words, "--output_dir", "run", "--num_train_epochs", "1", "--method", "GradDiff"])
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["rows"] == {"forget": 3, "retain": 3}
    assert set(metrics["scores"]) == {"forget_Q_A_Prob", "retain_Q_A_Prob"}
    assert metrics["seconds"]["train"] > 0
    assert metrics["peak_memory"]["mib"] > 0
    assert (tmp_path / "run/model.safetensors").exists()
    assert json.loads((tmp_path / "run/fingerprint.json").read_text())["method"] == "GradDiff"
    with pytest.raises(UserError, match="DPO needs a refusal"):
        main([*words, "--output_dir", "dpo", "--method", "DPO"])
    assert "wrote run" in capsys.readouterr().out


def test_a_finished_run_is_kept(tiny, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"question": "was it good", "answer": "so bad"}\n')
    words = ["--model_name", tiny, "--forget_path", "rows.jsonl", "--use_cpu", "--disable_tqdm", "True"]
    words += ["--output_dir", "run", "--num_train_epochs", "1", "--method", "GradAscent", "--lora"]
    main(words)
    before = (tmp_path / "run/metrics.json").read_text()
    with pytest.raises(UserError, match="run already holds a run"):
        main(words)
    assert (tmp_path / "run/metrics.json").read_text() == before
    main([*words, "--overwrite_output_dir"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["unlern"], "unknown command 'unlern'; known: unlearn, retain-log, finetune, evaluate, tiny"),
        (["--method", "MUON"], "unknown unlearning method 'MUON'; known: GradAscent"),
        (["--forget_split", "forget20"], "unknown forget split 'forget20'"),
        (["--retain_path", "x.jsonl"], "--retain_path belongs to --forget_path"),
        (["--forget_path", "x.jsonl"], "cannot read x.jsonl"),
        (["--retain_log", "none.json"], "cannot read the evaluation none.json"),
        (["--max_new_tokens", "0"], "max_new_tokens must be at least 1"),
        (["--no_such_option", "1"], "no_such_option"),
        (["--learning_rate", "-1"], "learning_rate must be finite and at least 0, got -1.0"),
        (["--num_train_epochs", "0"], "num_train_epochs must be finite and above 0, got 0.0"),
        (["--holdout_rows", "-1"], "holdout_rows must be at least 0, got -1"),
        (["--lora_r", "0"], "lora_r must be at least 1, got 0"),
        (["--dtype", "int8"], "unknown dtype 'int8'"),
        (["retain-log", "--no_evaluate"], "a retain log is TOFU's evaluation"),
    ],
)
def test_wrong_arguments_are_one_line_and_write_nothing(tiny, tmp_path, words, message):
    command = words if words[0] in ("unlern", "retain-log") else ["unlearn", *words]
    with pytest.raises(UserError, match=re.escape(message)) as error:
        main([*command, "--model_name", tiny, "--output_dir", "run", "--use_cpu"])
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_warnings_are_one_line_without_the_source():
    code = "import warnings; from src.utils import run_cli; run_cli(lambda: warnings.warn('so\\n bad'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "warning: so bad\n")
