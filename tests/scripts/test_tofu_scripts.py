"""tofu_unlearn.sh, tofu_pum.sh and the command behind them: variables, defaults, errors, runs, the table."""

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
from pum.run_unlearn import main
from pum.unlearn import METHODS
from pum.unlearn.running import RunArguments
from src.tofu.rows import SAMPLE_DATA
from src.tofu.table import main as print_table
from src.utils import Parser, UserError

ROOT = Path(__file__).resolve().parents[2]
PLAIN, PUM = ROOT / "scripts/tofu_unlearn.sh", ROOT / "scripts/tofu_pum.sh"
KEPT = ("PATH", "HOME", "LANG", "TMPDIR")
# The guide's table: code argument -> script variable.
GUIDE = {
    "copies_m": "PUM_COPIES_M",
    "rounds_R": "PUM_ROUNDS_R",
    "alpha_min": "PUM_ALPHA_MIN",
    "alpha_max": "PUM_ALPHA_MAX",
    "eta_srv": "PUM_ETA_SRV",
    "use_orthogonal_reparam": "PUM_USE_REPARAM",
    "jitter_tau": "PUM_JITTER_TAU",
    "theta_ref_beta": "PUM_THETA_REF_BETA",
    "center_clip_C_per_layer": "PUM_CENTER_CLIP_C_PER_LAYER",
    "center_clip_C_global": "PUM_CENTER_CLIP_C_GLOBAL",
    "center_clip_quantile_q": "PUM_CENTER_CLIP_Q",
    "center_clip_quantile_kappa": "PUM_CENTER_CLIP_KAPPA",
    "center_clip_round_gamma": "PUM_CENTER_CLIP_GAMMA",
    "center_clip_ref_model_paths": "PUM_CENTER_CLIP_REF_MODELS",
    "server_center_clipping": "PUM_SERVER_CENTER_CLIP",
    "sigma": "PUM_SIGMA",
    "sigma_per_layer": "PUM_SIGMA_PER_LAYER",
    "per_layer_noise": "PUM_PER_LAYER_NOISE",
    "dp_epsilon": "DP_EPSILON",
    "dp_delta": "DP_DELTA",
    "dp_rdp_orders": "DP_RDP_ORDERS",
    "dp_per_layer_allocation": "DP_PER_LAYER_ALLOC",
    "dp_sensitivity_total_l2": "DP_SENS_TOTAL_L2",
    "dp_sensitivity_per_layer_l2": "DP_SENS_PER_LAYER_L2",
    "dp_use_worstcase_alpha": "DP_USE_WORSTCASE_ALPHA",
    "local_max_steps": "PUM_LOCAL_MAX_STEPS",
    "local_epochs": "PUM_LOCAL_EPOCHS",
    "clip_update_norm": "PUM_CLIP_UPDATE_NORM",
    "clip_update_norm_per_layer": "PUM_CLIP_UPDATE_PER_LAYER",
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


def test_every_variable_of_the_guide_reaches_its_argument():
    text = PUM.read_text()
    (words,) = commands(PUM)["pum.run_pum"]
    for argument, variable in GUIDE.items():
        default = re.search(rf"^{variable}=\$\{{{variable}:-(.*)\}}", text, re.MULTILINE)
        assert default, variable
        assert option(words, argument) == default[1]
        (changed,) = commands(PUM, **{variable: "[17]"})["pum.run_pum"]
        assert option(changed, argument) == "[17]"
    assert option(words, "inner_handler") == "NPO"


def test_the_pum_script_passes_what_the_arguments_take():
    (words,) = commands(PUM, DP_EPSILON="2", DP_DELTA="1e-5", DP_SENS_PER_LAYER_L2="[0.1, 0.2]")["pum.run_pum"]
    run, args = Parser((RunArguments, PUMArguments)).parse([*drop_nulls(words), "--use_cpu"])
    assert run.forget_split == "forget10"
    assert args.dp_sensitivity_per_layer_l2 == [0.1, 0.2]
    assert (args.copies_m, args.dp_epsilon, args.sigma_rms) == (4, 2.0, None)
    assert args.local_max_steps is None


def test_noise_is_a_share_of_the_weights_unless_another_is_given():
    for variables, sigma, share in (
        ({}, "0.0", "0.01"),
        ({"PUM_SIGMA_RMS": "0.1"}, "0.0", "0.1"),
        ({"PUM_SIGMA": "0.0"}, "0.0", "null"),
        ({"PUM_SIGMA": "2.0"}, "2.0", "null"),
        ({"DP_EPSILON": "1"}, "0.0", "null"),
    ):
        (words,) = commands(PUM, **variables)["pum.run_pum"]
        assert (option(words, "sigma"), option(words, "sigma_rms")) == (sigma, share), variables


def test_folders_are_relative_to_the_callers(tmp_path):
    (tmp_path / "mine").mkdir()
    result = run_script(PUM, cwd=tmp_path, DRY_RUN="1", MODELS="mine", PUM_CENTER_REFERENCE="mine")
    words = next(shlex.split(line) for line in result.stdout.splitlines() if "pum.run_pum" in line)
    assert option(words, "model_name") == option(words, "center_reference_model_path") == str(tmp_path / "mine")


def test_the_smoke_runs_forget_and_keep_the_rest(tmp_path):
    """Plain NPO by a factor of 5 and more; PUM with noise of 1 % of the weights within 10 % of what it does."""
    variables = {"SMOKE": "1", "OUTPUT": str(tmp_path), "PYTHON": sys.executable, "SECRET_SEED": "1"}
    for script in (PLAIN, PUM):
        result = run_script(script, timeout=600, **variables)
        assert result.returncode == 0, result.stderr
    shown = dict(re.findall(r"^(\w+ probability) +(.+)$", result.stdout, re.MULTILINE))
    forget, retain = (
        [float(value) for value in shown[f"{name} probability"].split()] for name in ("forget", "retain")
    )
    (before, plain, pum), (kept_before, kept_plain, kept_pum) = forget, retain
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
    made, smoke = commands(PLAIN, SMOKE="1", SMOKE_NEVAL="7", LR="0.5")["pum.run_unlearn"]
    assert made[0] == "tiny"
    assert "--smoke" in smoke
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


@pytest.mark.parametrize("script", [PLAIN, PUM])
def test_wrong_variables_are_one_line(script):
    for variables, message in (
        ({"NUM_GPUS": "2"}, "NUM_GPUS=2: unlearning runs on one process"),
        ({"DATA_DIR": "/no/such/folder"}, "DATA_DIR=/no/such/folder is no folder"),
    ):
        result = run_script(script, **variables)
        assert (result.returncode, result.stderr.count("\n")) == (2, 1)
        assert message in result.stderr


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
        (["retain-log", "--no_evaluate"], "a retain log is TOFU's evaluation"),
    ],
)
def test_wrong_arguments_are_one_line_and_write_nothing(tiny, tmp_path, words, message):
    command = words if words[0] in ("unlern", "retain-log") else ["unlearn", *words]
    with pytest.raises(UserError, match=re.escape(message)) as error:
        main([*command, "--model_name", tiny, "--output_dir", "run", "--use_cpu"])
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_the_table_shows_both_runs_side_by_side(tmp_path, capsys):
    for name, probability in (("task", 0.25), ("task_PUM", 0.2625)):
        (tmp_path / name).mkdir()
        scores = {"forget_Q_A_Prob": probability, "forget_quality": None}
        run = {"scores": scores, "seconds": {"train": 3.0}, "peak_memory": {"mib": 512.0}}
        (tmp_path / name / "metrics.json").write_text(json.dumps(run))
    (tmp_path / "TOFU_SUMMARY.json").write_text('{"forget_Q_A_Prob": 0.9}')
    print_table([str(tmp_path), "--before", str(tmp_path), "--json", str(tmp_path / "table.json")])
    lines = {line[:20].strip(): line.split()[2:] for line in capsys.readouterr().out.splitlines()}
    assert lines["forget probability"] == ["0.9", "0.25", "0.2625"]
    assert lines["forget quality"] == ["-", "open", "open"]
    assert json.loads((tmp_path / "table.json").read_text())["tasks"]["task"]["PUM"]["seconds"] == 3.0
    print_table([str(tmp_path), "--tasks", "other"])
    assert "(before, plain, PUM: not run" in capsys.readouterr().out
