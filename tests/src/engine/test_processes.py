"""Runs in several processes: what they exchange, that they give what one process gives, and how they end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from builders import save_model

from src.engine.processes import check_equal, is_first, on_first, place, spread
from src.record.chain import read_records

ROOT = Path(__file__).resolve().parents[3]
LAUNCH = [sys.executable, "-m", "scripts.launch", "2"]
EXCHANGES = """
import sys
import numpy as np, torch
from torch import distributed
from src.engine.processes import check_equal, is_first, on_first, place, spread
from src.utils import UserError

distributed.init_process_group("gloo")
rank, size = place()
assert (size, is_first()) == (3, rank == 0)
seen = []

def double(rows):
    seen.append(rows.tolist())
    return torch.from_numpy(np.stack([rows * 2.0, rows + 0.5], axis=1))

for count in (2, 3, 10, 11):
    rows = np.arange(count)[::-1].copy()
    found = spread(double, rows, torch.device("cpu"))
    assert found.dtype == torch.float32 if count > 2 else True
    assert found.tolist() == [[2.0 * row, row + 0.5] for row in rows.tolist()], found
assert [len(rows) for rows in seen] == [2, 1, [4, 3, 3][rank], [4, 4, 3][rank]]

assert on_first(lambda: ("said by", rank)) == ("said by", 0)

def fail():
    raise OSError("no space left")

try:
    on_first(fail)
except (OSError, UserError) as error:
    assert "no space left" in str(error)
    assert isinstance(error, OSError) == (rank == 0)
else:
    sys.exit("the first process's failure was not seen")

check_equal("numbers", "7")
try:
    check_equal("numbers", str(rank == 1))
except UserError as error:
    assert "different numbers" in str(error)
else:
    sys.exit("a difference was not seen")
distributed.destroy_process_group()
"""


def environment(**variables):
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {
        **kept,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        "DATA_DIR": str(ROOT / "src" / "sample_data"),
        **variables,
    }


def test_one_process_just_calls():
    assert place() == (0, 1)
    assert is_first()
    assert on_first(lambda: 5) == 5
    assert spread(lambda rows: torch.from_numpy(rows), torch.arange(3).numpy(), torch.device("cpu")).tolist() == [
        0,
        1,
        2,
    ]
    check_equal("numbers", "7")


def test_three_processes_exchange_what_they_should(tmp_path):
    script = tmp_path / "exchanges.py"
    script.write_text(EXCHANGES)
    words = ["torch.distributed.run", "--nproc_per_node", "3", "--master_port", "0", "--standalone", str(script)]
    result = subprocess.run([sys.executable, "-m", *words], env=environment(), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), "llama")


def words(model, folder, *options, module="paczo.run_paczo", steps=6):
    return [
        *(module, "--output_dir", str(folder), "--model_name", model, "--num_train", "30", "--num_dev", "10"),
        *("--num_eval", "10", "--max_steps", str(steps), "--learning_rate", "0.01", "--eval_steps", "3"),
        *("--report_to", "none", *options),
    ]


PRIVATE = ("--pac_m", "8", "--pac_mi", "0.5", "--pac_k", "2", "--lora", "--pac_load_best_dev")
ZPL = ("--pac_m", "8", "--pac_zpl")
DP = ("--dp_k", "3", "--dp_sample_rate", "0.2", "--dp_secret_seed", "3")


@pytest.mark.parametrize(
    ("module", "options"),
    [("paczo.run_paczo", (*PRIVATE, "--pac_secret_seed", "3")), ("baselines.run_dp_zo", DP)],
    ids=["pac-mi", "dp-aggzo"],
)
def test_two_processes_write_what_one_writes(module, options, model, tmp_path, run_here, sample_data_here, capsys):
    """The losses of a share differ from those of the whole by rounding at most, which no sign here is close to."""
    one, two = tmp_path / "one", tmp_path / "two"
    run_here(words(model, one, *options, module=module))
    assert capsys.readouterr().out.count("wrote ") == 1
    command = [*LAUNCH, *words(model, two, *options, module=module)]
    result = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("wrote ") == 1
    first, second = (read_records(folder / "transcript.jsonl") for folder in (one, two))
    assert len(first) == 8
    assert [line["seeds"] for line in first[1:-1]] == [line["seeds"] for line in second[1:-1]]
    for left, right in zip(first[1:-1], second[1:-1], strict=True):
        assert left["coefficients"] == pytest.approx(right["coefficients"], rel=1e-3)
    if module == "paczo.run_paczo":
        assert first == second, "the released signs, or the checksum of the trained parameters"
        ledgers = [read_records(folder / "private" / "ledger.jsonl") for folder in (one, two)]
        assert [line["releases"] for line in ledgers[0][1:-1]] == [line["releases"] for line in ledgers[1][1:-1]]


@pytest.mark.parametrize(
    ("module", "options"),
    [
        ("paczo.run_paczo", (*ZPL, "--pac_secret_seed", "3", "--pac_load_best_dev")),
        ("baselines.run_dp_zo", DP),
    ],
    ids=["pac-zpl", "dp-aggzo"],
)
def test_two_killed_processes_go_on(module, options, model, tmp_path, run_here, sample_data_here):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    steps = 40
    command = words(model, whole, *options, module=module, steps=steps)
    if module == "paczo.run_paczo":
        run_here(command)
    else:  # in one process its sums round otherwise
        subprocess.run([*LAUNCH, *command], cwd=ROOT, env=environment(), capture_output=True, check=True)
    command = [*LAUNCH, *words(model, killed, *options, module=module, steps=steps)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), **quiet)
    transcript = killed / "transcript.jsonl"
    while process.poll() is None and not (transcript.exists() and transcript.read_bytes().count(b"\n") > 10):
        time.sleep(0.002)
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        member.kill()
    psutil.wait_procs(family)
    assert transcript.read_bytes().count(b"\n") < steps, "the run ended before it could be killed"
    command += ["--resume_from_checkpoint", "True"]
    result = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert read_records(transcript) == read_records(whole / "transcript.jsonl")


def test_a_wrong_argument_is_one_line_and_code_2(model, tmp_path):
    command = [*LAUNCH, *words(model, tmp_path / "run", "--pac_m", "7", "--pac_zpl")]
    result = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == "error: pac_m must be even and at least 2, got 7"
    assert result.stderr.count("error:") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("count", ["1", "x", "-2", ""])
def test_a_number_that_is_none(count):
    result = subprocess.run(
        [sys.executable, "-m", "scripts.launch", count, "paczo.run_paczo"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 2
    assert "NUM_GPUS must be" in result.stderr
