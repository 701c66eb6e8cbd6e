"""The command line: a run's files, and one line with exit code 2 for whatever is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from builders import save_model

from paczo import run_paczo
from src import transcript
from src.models import load_model
from src.utils import UserError

ROOT = Path(__file__).resolve().parents[2]
SAMPLE_DATA = ROOT / "src" / "sample_data"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def sample_data(monkeypatch):
    monkeypatch.setenv("DATA_DIR", str(SAMPLE_DATA))


def options(folder, model_folder, *extra, drop=()):
    values = {
        "--output_dir": str(folder),
        "--model_name": model_folder,
        "--num_train": "24",
        "--num_dev": "8",
        "--num_eval": "8",
        "--max_steps": "4",
        "--eval_steps": "2",
        "--learning_rate": "1e-3",
        "--pac_m": "8",
        "--report_to": "none",
        "--use_cpu": "True",
    }
    flat = [word for name, value in values.items() if name not in drop for word in (name, value)]
    return [*flat, *extra]


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_run_writes_what_a_reader_needs(tmp_path, model_folder, capsys):
    run_paczo.main(options(tmp_path, model_folder, "--pac_mi", "0.33", "--lora", "--pac_load_best_dev"))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    for moment in ("before", "after"):
        for split in ("dev", "test"):
            assert set(metrics[moment][split]) == {"loss", "accuracy"}
    privacy = metrics["privacy"]
    assert privacy["budget_nats"] == 0.33
    assert 0 <= privacy["spent_nats"] <= 0.33
    assert privacy["posterior_success_bound"] == pytest.approx(0.8819, abs=1e-4)
    assert privacy["epsilon"] == pytest.approx(2.0, abs=0.02)
    assert sum(privacy["releases"].values()) == metrics["steps"] == 4
    assert privacy["private"] is True
    assert metrics["seconds"]["per_step_median"] > 0
    assert metrics["versions"]["torch"]
    assert metrics["configuration"]["learning_rate"] == 1e-3
    assert metrics["configuration"]["model_name"] == model_folder
    assert metrics["configuration"]["dtype"] == "torch.float32"
    assert metrics["best_step"] in (2, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoints",
        "metrics.json",
        "private",
        "transcript.jsonl",
    ]
    table = capsys.readouterr().out
    assert "pac-mi (operating-system entropy)" in table
    assert "attack success  at most 0.8819 (prior 0.5000, as epsilon 2.01)" in table
    assert "true positives  at most 0.6834 at FPR 0, 0.6885 at FPR 0.001" in table
    assert "naming S*       at most" in table
    assert privacy["tpr_bounds"] == {
        "0": pytest.approx(0.6834, abs=1e-4),
        "0.001": pytest.approx(0.6885, abs=1e-4),
    }
    model, _ = load_model(model_folder)
    transcript.replay(model, tmp_path / "transcript.jsonl")


def test_the_other_loss_and_reproducible_secrets(tmp_path, model_folder, capsys):
    more = ["--only_train_option", "--pac_secret_seed", "1"]
    run_paczo.main(options(tmp_path, model_folder, "--pac_zpl", *more))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["privacy"]["spent_nats"] == 0.0
    assert metrics["privacy"]["posterior_success_bound"] == 0.5
    assert metrics["privacy"]["private"] is False
    assert "reproducible secrets, not private" in capsys.readouterr().out
    head, _ = transcript.read(tmp_path / "transcript.jsonl")
    assert head["public"]["secrets"] == "reproducible secrets, not private"


def test_no_privacy_is_said_to_be_not_accounted(tmp_path, model_folder, capsys):
    run_paczo.main(options(tmp_path, model_folder, "--no_privacy", "--ablation", "quant_full"))
    privacy = json.loads((tmp_path / "metrics.json").read_text())["privacy"]
    assert privacy["guarantee"] == "not accounted"
    assert not {"budget_nats", "spent_nats", "posterior_success_bound"} & privacy.keys()
    assert "guarantee       not accounted" in capsys.readouterr().out


def test_a_finished_run_is_continued_from_the_command_line(tmp_path, model_folder, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    run_paczo.main(options(first, model_folder, "--pac_mi", "0.1", "--pac_charge", "bit"))
    more = ["--pac_mi", "0.2", "--pac_charge", "bit", "--pac_continue_from", str(first / "private")]
    run_paczo.main(options(second, model_folder, *more))
    privacy = json.loads((second / "metrics.json").read_text())["privacy"]
    assert privacy["budget_nats"] == pytest.approx(0.3)
    assert (second / "private" / "attack.json").exists()
    assert "of 0.3" in capsys.readouterr().out
    other = tmp_path / "other"
    run_paczo.main(options(other, model_folder, "--pac_zpl", "--pac_zpl_abstain"))
    before = content(other)
    with pytest.raises(UserError, match="already; continue that one"):
        run_paczo.main(options(other, model_folder, *more, "--overwrite_output_dir"))
    assert content(other) == before, "a run that cannot start removes nothing"


def test_a_run_is_not_overwritten_unless_asked(tmp_path, model_folder):
    run_paczo.main(options(tmp_path, model_folder, "--pac_zpl"))
    before = content(tmp_path)
    with pytest.raises(UserError, match="already holds a run"):
        run_paczo.main(options(tmp_path, model_folder, "--pac_zpl"))
    wrong = options(tmp_path, "/no/such/model", "--pac_zpl", "--overwrite_output_dir")
    with pytest.raises(UserError, match="cannot load model"):
        run_paczo.main(wrong)
    assert content(tmp_path) == before, "a run that cannot start removes nothing"
    (tmp_path / "notes.txt").write_text("mine")
    run_paczo.main(options(tmp_path, model_folder, "--pac_mi", "0.1", "--overwrite_output_dir"))
    assert json.loads((tmp_path / "metrics.json").read_text())["privacy"]["mechanism"] == "pac-mi"
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_smoke_check_may_be_replaced_by_any_run(tmp_path, model_folder):
    run_paczo.main(options(tmp_path, model_folder, "--pac_zpl", "--smoke"))
    run_paczo.main(options(tmp_path, model_folder, "--pac_zpl", "--smoke"))
    run_paczo.main(options(tmp_path, model_folder, "--pac_zpl"))
    with pytest.raises(UserError, match="already holds a run"):
        run_paczo.main(options(tmp_path, model_folder, "--pac_zpl", "--smoke"))


@pytest.mark.parametrize(
    ("extra", "drop", "message"),
    [
        (["--pac_zpl", "--task_name", "QNLI"], [], "unknown task 'QNLI'"),
        (["--pac_zpl", "--unknown", "1"], [], "--unknown"),
        (["--pac_zpl", "--pac", "4"], [], "--pac"),
        (["--pac_zpl", "--max_steps", "many"], [], "max_steps"),
        (["--pac_zpl", "--pac_m", "7"], ["--pac_m"], "pac_m must be even"),
        (["--pac_zpl", "--no_privacy"], [], "choose one of"),
        ([], [], "choose one of"),
        (["--pac_zpl", "--pac_sampling_rate", "2", "--pac_disjoint_pairs"], [], "exclude each other"),
        (["--pac_zpl", "--model_name", "/no/such/model"], ["--model_name"], "cannot load model"),
        (["--pac_zpl", "--num_train", "0"], ["--num_train"], "num_train must be at least 1"),
        (
            ["--pac_zpl", "--num_train", "100", "--num_dev", "350"],
            ["--num_train", "--num_dev"],
            "fewer than num_train",
        ),
        (["--pac_zpl", "--train_as_classification", "--non_diff"], [], "and --non_diff exclude each other"),
        (["--pac_zpl", "--non_diff"], [], "SST2 has no loss non_diff: use --train_as_classification or"),
        (["--pac_zpl", "--task_name", "SQuAD", "--train_as_classification"], [], "SQuAD has no loss train_as"),
        (["--pac_zpl", "--max_new_tokens", "0"], [], "max_new_tokens must be at least 1"),
        (["--pac_zpl", "--resume_from_checkpoint", "True"], [], "holds no run to resume"),
        (["--pac_zpl", "--dtype", "int8"], [], "unknown dtype 'int8'"),
        (["--pac_zpl", "--lora", "--lora_dtype", "int8"], [], "unknown dtype 'int8'"),
        (["--pac_zpl", "--lr_scheduler_type", "zigzag"], [], "lr_scheduler_type"),
    ],
)
def test_wrong_arguments_are_one_line_and_write_nothing(extra, drop, message, tmp_path, model_folder, capsys):
    folder = tmp_path / "run"
    with pytest.raises(SystemExit) as stopped:
        run_paczo.run_cli(lambda: run_paczo.main(options(folder, model_folder, *extra, drop=drop)))
    assert stopped.value.code == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert message in line
    assert not content(tmp_path)


def test_the_process_itself_exits_with_2_and_one_line(tmp_path):
    environment = {**os.environ, "DATA_DIR": str(tmp_path / "nowhere")}
    command = [sys.executable, "-m", "paczo.run_paczo", *options(tmp_path / "run", "tiny", "--pac_zpl")]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert result.stderr.startswith("error: cannot read")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def write_squad(folder):
    words = ["good", "bad", "warm", "cold", "slow"]
    rows = [
        {
            "id": str(number),
            "title": "film",
            "context": f"the film was {words[number % 5]}",
            "question": "the film was",
            "answers": {"text": [words[number % 5]]},
        }
        for number in range(20)
    ]
    (folder / "squad").mkdir(parents=True)
    for split in ("train", "validation"):
        (folder / "squad" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


@pytest.mark.parametrize("loss", ["--non_diff", "--only_train_option"])
def test_squad_trains_on_f1_or_likelihood_and_is_scored_by_f1(loss, tmp_path, model_folder, monkeypatch):
    monkeypatch.setenv("DATA_DIR", write_squad(tmp_path / "data"))
    folder = tmp_path / "run"
    sizes = ["--num_train", "6", "--num_dev", "3", "--num_eval", "3", "--max_new_tokens", "4"]
    arguments = options(folder, model_folder, "--pac_zpl", "--task_name", "SQuAD", loss, *sizes)
    run_paczo.main([*arguments, "--pac_load_best_dev"])
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics["after"]["test"]) == {"loss", "f1"}
    assert metrics["after"]["test"]["loss"] == -metrics["after"]["test"]["f1"]
    assert metrics["configuration"]["metric_for_best_model"] == "eval_f1"
    assert metrics["configuration"]["greater_is_better"] is True
    assert metrics["configuration"]["loss"] == loss.removeprefix("--")


def test_the_entry_for_k_directions_is_the_plain_one(tmp_path, model_folder):
    """K=1 through both names gives the same bits."""
    from paczo import pac_trainer, pac_trainer_kvar, run_paczo_kvar

    assert pac_trainer_kvar.PACTrainer is pac_trainer.PACTrainer
    lines = []
    for name, main in (("plain", run_paczo.main), ("kvar", run_paczo_kvar.main)):
        main(options(tmp_path / name, model_folder, "--pac_mi", "0.3", "--pac_secret_seed", "4", "--pac_k", "1"))
        lines.append((tmp_path / name / "transcript.jsonl").read_text())
    assert lines[0] == lines[1]


def test_a_finished_run_is_known_by_its_digest(tmp_path, model_folder):
    from src.record.digest import configuration_digest, finished_digest

    words = options(tmp_path, model_folder, "--pac_zpl")
    assert finished_digest(tmp_path) is None
    run_paczo.main(words)
    digest = finished_digest(tmp_path)
    assert digest == configuration_digest(words, str(SAMPLE_DATA))
    assert digest not in (tmp_path / "metrics.json").read_text(), "it depends on every training sample"
    (tmp_path / "metrics.json").unlink()
    assert finished_digest(tmp_path) is None, "without metrics.json the run is not finished"


def test_an_interrupted_run_goes_on_and_a_finished_one_does_not(tmp_path, model_folder):
    words = [*options(tmp_path, model_folder, "--pac_zpl", "--pac_load_best_dev"), "--pac_secret_seed", "2"]
    run_paczo.main(words)
    whole = json.loads((tmp_path / "metrics.json").read_text())
    more = [*words, "--resume_from_checkpoint", "True"]
    with pytest.raises(UserError, match="is finished"):
        run_paczo.main(more)
    (tmp_path / "metrics.json").unlink()
    with pytest.raises(UserError, match="either resumed or overwritten"):
        run_paczo.main([*more, "--overwrite_output_dir"])
    run_paczo.main(more)
    again = json.loads((tmp_path / "metrics.json").read_text())
    assert again["after"] == whole["after"]
    assert again["steps"] == whole["steps"] == 4


def test_a_diverging_run_ends_with_one_line(tmp_path, model_folder, capsys):
    more = ["--pac_zpl", "--learning_rate", "1e30"]
    arguments = options(tmp_path, model_folder, *more, drop=["--learning_rate"])
    with pytest.raises(SystemExit) as stopped:
        run_paczo.run_cli(lambda: run_paczo.main(arguments))
    assert stopped.value.code == 2
    assert "losses are NaN or infinite" in capsys.readouterr().err
    assert not (tmp_path / "metrics.json").exists()
