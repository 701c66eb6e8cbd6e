"""The shell scripts: they parse, they come from the table, and their variables reach the command line."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from paczo.cells import FOLDERS, cells
from scripts import make_cells, mezo_cells

ROOT = Path(__file__).resolve().parents[2]
CELL = ROOT / "scripts/headline/sst2_1p3b_lora_pacmi_mi033_s0.sh"
DP_CELL = ROOT / "scripts/baselines/dpaggzo_sst2_1p3b_ft_eps0p2_K64_T1000.sh"
SQUAD_CELL = ROOT / "scripts/headline/squad_1p3b_lora_pacmi_mi033_s0.sh"
KEPT = ("PATH", "HOME", "LANG")


def dry_run(script, cwd=ROOT, **variables):
    environment = {name: os.environ[name] for name in KEPT if name in os.environ}
    environment.update({"DRY_RUN": "1", **variables})
    return subprocess.run(
        ["bash", str(script)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=60
    )


def options_of(line, module="paczo.run_paczo"):
    words = shlex.split(line)
    assert words[:3] == ["python", "-m", module]
    flags = {}
    for index, word in enumerate(words):
        if word.startswith("--"):
            following = words[index + 1] if index + 1 < len(words) else "--"
            flags[word[2:]] = True if following.startswith("--") else following
    return flags


def test_every_script_parses():
    scripts = [ROOT / "setup.sh", *sorted((ROOT / "scripts").rglob("*.sh"))]
    for script in scripts:
        subprocess.run(["bash", "-n", str(script)], check=True)


def test_the_scripts_and_their_overview_are_those_of_the_table():
    assert make_cells.differing() == ([], [])
    written = [path for folder in FOLDERS for path in (ROOT / "scripts" / folder).glob("*.sh")]
    assert len(written) == len(cells()) == 143
    overview = (ROOT / "SCRIPTS.md").read_text("utf-8")
    for cell in cells():
        assert f"| `{cell['run_id']}` | {cell['paper']} |" in overview


def test_a_difference_is_found(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(make_cells, "ROOT", tmp_path / "scripts")
    for folder in (*FOLDERS, mezo_cells.FOLDER):
        (tmp_path / "scripts" / folder).mkdir(parents=True)
    monkeypatch.setattr(sys, "argv", ["make_cells"])
    with pytest.raises(SystemExit, match="0"):
        make_cells.main()
    assert make_cells.differing() == ([], [])
    changed = tmp_path / "scripts/headline/squad_1p3b_ft_paczpl_s0.sh"
    changed.write_text(changed.read_text() + "# more\n")
    (tmp_path / "scripts/ablation/extra.sh").write_text("echo\n")
    (tmp_path / "SCRIPTS.md").unlink()
    assert make_cells.differing() == (
        [changed, tmp_path / "SCRIPTS.md"],
        [tmp_path / "scripts/ablation/extra.sh"],
    )
    monkeypatch.setattr(sys, "argv", ["make_cells", "--check"])
    with pytest.raises(SystemExit, match="1"):
        make_cells.main()
    assert f"2 of {144 + len(mezo_cells.rows())} files differ" in capsys.readouterr().out


def expected_options(cell):
    """The command line's options that follow from a row of the table, column by column."""
    is_dp = cell["folder"] == "baselines"
    expected = {
        "output_dir": f"result/runs/{cell['run_id']}",
        "task_name": cell["task"],
        "model_name": cell["model"],
        "learning_rate": cell["lr"],
        "max_steps": cell["steps"],
        "seed": "42",
        "train_set_seed": cell["seed"],
        "eval_steps": "200" if is_dp or cell["K"] != "1" else "100",
        "num_train": "1000",
        "num_dev": "500",
        "num_eval": "1000",
        "save_total_limit": "3",
        "zo_eps": "1e-3",
        "zo_derivative": "central",
        "dtype": "auto",
        "opt_bos": "<s>",
        "logging_steps": "10",
        "report_to": "none",
        "lr_scheduler_type": "constant" if is_dp else "polynomial",
        "dp_load_best_dev" if is_dp else "pac_load_best_dev": True,
        "dp_clip" if is_dp else "pac_clip": cell["clip"],
        "dp_k" if is_dp else "pac_k": cell["K"],
        {"SST2": "train_as_classification", "SQuAD": "non_diff"}[cell["task"]]: True,
    }
    if cell["task"] == "SQuAD":
        expected["max_new_tokens"] = "50"
    if cell["track"] == "lora":
        expected |= {"lora": True, "lora_r": cell["lora_r"], "lora_alpha": "16", "lora_layers": "all"}
    if is_dp:
        return expected | {
            "dp_epsilon": cell["epsilon"],
            "dp_delta": "1e-5",
            "dp_sample_rate": cell["sample_rate"],
        }
    method = {
        "pac-mi": {"pac_mi": cell["mi"], "pac_charge": "real"},
        "pac-zpl": {"pac_zpl": True},
        "non-private": {"no_privacy": True, "ablation": cell["ablation"]},
    }
    return expected | {"pac_m": cell["M"]} | method[cell["method"]]


@pytest.mark.parametrize("cell", cells(), ids=lambda cell: cell["run_id"])
def test_a_cells_command_line_matches_its_row(cell):
    result = dry_run(ROOT / "scripts" / cell["folder"] / f"{cell['run_id']}.sh")
    assert result.returncode == 0, result.stderr
    module = "paczo.run_paczo" if cell["K"] == "1" else "paczo.run_paczo_kvar"
    if cell["folder"] == "baselines":
        module = "baselines.run_dp_zo"
    assert options_of(result.stdout, module) == expected_options(cell)


@pytest.mark.parametrize("row", mezo_cells.rows(), ids=lambda row: row["run_id"])
def test_a_mezo_recipes_command_line_matches_its_row(row):
    result = dry_run(ROOT / "scripts" / "mezo" / f"{row['run_id']}.sh")
    assert result.returncode == 0, result.stderr
    flags = options_of(result.stdout, "baselines.run_mezo")
    named = {
        "task_name": "task",
        "model_name": "model",
        "learning_rate": "lr",
        "zo_eps": "zo_eps",
        "zo_batch_size": "batch",
        "max_steps": "steps",
        "eval_steps": "eval_steps",
        "save_steps": "eval_steps",
        "num_dev": "num_dev",
    }
    assert {name: flags[name] for name in named} == {name: row[column] for name, column in named.items()}
    assert flags["load_best_model_at_end"] is flags[row["loss"]] is True
    tracks = {"lora": ["lora"], "prefix": ["prefix_tuning"], "ft": []}
    assert [name for name in ("lora", "prefix_tuning") if name in flags] == tracks[row["track"]]
    assert row["lr"] in row["grid"].split(", ")


def test_in_context_evaluation_by_its_script():
    script = ROOT / "scripts" / "icl.sh"
    flags = options_of(dry_run(script, TASK="RTE").stdout)
    assert (flags["trainer"], flags["task_name"], flags["num_train"]) == ("none", "RTE", "0")
    assert not {"sfc", "icl_sfc", "train_set_seed"} & set(flags)
    flags = options_of(dry_run(script, NUM_TRAIN="8", SFC="icl_sfc", SEED="3").stdout)
    assert (flags["num_train"], flags["train_set_seed"], flags["icl_sfc"]) == ("8", "3", True)
    assert options_of(dry_run(script, NUM_TRAIN="8", TRAIN_SETS="4").stdout)["num_train_sets"] == "4"
    wrong = dry_run(script, SFC="yes")
    assert (wrong.returncode, wrong.stderr) == (2, "error: SFC=yes is unknown: use sfc or icl_sfc\n")


def test_the_columns_of_the_table_are_all_used():
    """A column that a cell fills and its command ignores would be a silent loss."""
    for cell in cells():
        values = set(map(str, expected_options(cell).values()))
        kept = {"folder", "run_id", "method", "track", "paper"}
        assert all(value in values for name, value in cell.items() if value and name not in kept)


def test_variables_override_from_any_folder(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "model").mkdir()
    result = dry_run(CELL, cwd=tmp_path, LR="1e-4", MODEL="model", DATA_DIR="data", SMOKE="1", SMOKE_STEPS="5")
    flags = options_of(result.stdout)
    assert flags["learning_rate"] == "1e-4"
    assert flags["model_name"] == str(tmp_path / "model")
    assert flags["max_steps"] == flags["eval_steps"] == "5"
    assert flags["smoke"] is True
    assert int(flags["num_train"]) < 100
    assert options_of(dry_run(CELL, cwd=tmp_path, SECRET_SEED="3").stdout)["pac_secret_seed"] == "3"
    assert options_of(dry_run(CELL, RUN_ID="a b").stdout)["output_dir"] == "result/runs/a b"
    assert options_of(dry_run(CELL, RESUME="1").stdout)["resume_from_checkpoint"] == "True"
    assert "only_train_option" in options_of(dry_run(SQUAD_CELL, LOSS="only_train_option").stdout)


def test_smoke_shrinks_generation_and_directions():
    flags = options_of(dry_run(SQUAD_CELL, SMOKE="1").stdout)
    assert (flags["num_train"], flags["num_dev"], flags["num_eval"]) == ("4", "2", "2")
    assert int(flags["max_new_tokens"]) < 50
    dp = options_of(dry_run(DP_CELL, SMOKE="1", SECRET_SEED="4").stdout, "baselines.run_dp_zo")
    assert (dp["dp_k"], dp["dp_secret_seed"]) == ("4", "4")
    assert options_of(dry_run(DP_CELL, SMOKE="1", SMOKE_K="9").stdout, "baselines.run_dp_zo")["dp_k"] == "9"


def test_runs_go_where_they_are_sent(tmp_path):
    assert options_of(dry_run(CELL).stdout)["output_dir"].startswith("result/runs/")
    for base in (str(tmp_path / "runs"), "runs"):
        flags = options_of(dry_run(CELL, cwd=tmp_path, OUT_BASE=base, RUN_ID="a").stdout)
        assert flags["output_dir"] == str(tmp_path / "runs" / "a")
    report = dry_run(ROOT / "scripts/report.sh", cwd=tmp_path, OUT_BASE="runs")
    assert f"--runs {tmp_path}/runs" in report.stdout


def test_the_seed_of_the_draw_is_not_that_of_the_run():
    flags = options_of(dry_run(CELL, SEED="3").stdout)
    assert (flags["train_set_seed"], flags["seed"]) == ("3", "42")
    assert options_of(dry_run(CELL, RUN_SEED="7").stdout)["seed"] == "7"


def test_charge_derivative_and_layers_can_be_chosen():
    flags = options_of(dry_run(CELL, PAC_CHARGE="bit", DERIVATIVE="exact", LORA_LAYERS="last:2").stdout)
    assert (flags["pac_charge"], flags["zo_derivative"], flags["lora_layers"]) == ("bit", "exact", "last:2")
    # Not dropped where it means nothing, so that the command refuses it.
    assert options_of(dry_run(CELL, METHOD="pac-zpl", PAC_CHARGE="bit").stdout)["pac_charge"] == "bit"


def test_a_check_may_bound_its_passes_and_any_task_shrinks():
    flags = options_of(dry_run(CELL, SMOKE="1", SMOKE_BATCH="512", TASK="CB").stdout)
    assert (flags["token_budget"], flags["num_train"], flags["num_dev"]) == ("512", "8", "4")
    assert "token_budget" not in options_of(dry_run(CELL, SMOKE_BATCH="512").stdout)
    assert options_of(dry_run(CELL, SMOKE="1", TASK="drop").stdout)["num_train"] == "4"
    assert options_of(dry_run(CELL, LOSS="full_text").stdout)["only_train_option"] == "False"


@pytest.mark.parametrize(
    ("script", "module", "best"), [(CELL, "paczo.run_paczo", "pac"), (DP_CELL, "baselines.run_dp_zo", "dp")]
)
def test_without_a_dev_set_no_checkpoint_is_the_best(script, module, best):
    assert f"{best}_load_best_dev" in options_of(dry_run(script).stdout, module)
    flags = options_of(dry_run(script, NUM_DEV="0").stdout, module)
    assert f"{best}_load_best_dev" not in flags
    flags = options_of(dry_run(script, TRAIN_ON="dev").stdout, module)
    assert flags["train_on"] == "dev"
    assert f"{best}_load_best_dev" not in flags


@pytest.mark.parametrize(
    ("script", "variables", "message"),
    [
        (CELL, {"DATA_DIR": "/no/such/folder"}, "DATA_DIR=/no/such/folder is no folder"),
        (CELL, {"METHOD": "dp"}, "METHOD=dp is unknown"),
        (CELL, {"METHOD": "dpzero"}, "METHOD=dpzero needs DP_K"),
        (CELL, {"TRACK": "qlora"}, "TRACK=qlora is unknown"),
        (DP_CELL, {"TRACK": "lora"}, "TRACK=lora needs LORA_R"),
        (CELL, {"LOSS": "mse"}, "LOSS=mse is unknown"),
        (CELL, {"NUM_GPUS": "two", "DRY_RUN": "", "PYTHON": sys.executable}, "NUM_GPUS must be a whole number"),
    ],
)
def test_wrong_variables_are_one_line(script, variables, message):
    result = dry_run(script, **variables)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_switch_that_is_zero_is_off():
    off = dry_run(CELL, OVERWRITE="0", RESUME="0", SMOKE="0").stdout
    assert off == dry_run(CELL).stdout
    on = dry_run(CELL, OVERWRITE="1", RESUME="1", SMOKE="1").stdout
    for option in ("--overwrite_output_dir", "--resume_from_checkpoint", "--smoke"):
        assert option in on
        assert option not in off


def test_accounting_imports_without_torch():
    """The modules that compute privacy run where torch is not installed."""
    modules = "paczo.pac_utils, paczo.mechanisms, paczo.bounds, paczo.randomness, scripts.run_cells"
    code = f"import sys; sys.modules['torch'] = sys.modules['transformers'] = None; import {modules}"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    # SciPy's statistics look for torch in the loaded modules, so here it is only not to be loaded.
    code = "import sys, baselines.accounting; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
