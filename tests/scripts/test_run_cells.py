"""Sweeps: what is matched, skipped, resumed, run on which GPU, and what is said about failures."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from scripts import run_cells
from src.record.digest import configuration_digest, digest_path

ROOT = Path(__file__).resolve().parents[2]

CELL = """\
options=(--output_dir "result/runs/{name}" --task_name SST2 --learning_rate "${{LR:-1}}")
if [ -n "${{DRY_RUN:-}}" ]; then printf 'python -m {module}'; printf ' %q' "${{options[@]}}"; echo; exit; fi
echo "{name} gpu=${{CUDA_VISIBLE_DEVICES:-}} resume=${{RESUME:-}}"
{action}
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of three cells: two that work and one that fails."""
    for name in ("DATA_DIR", "RUN_ID", "OVERWRITE", "LR", "CUDA_VISIBLE_DEVICES", "RESUME", "NUM_GPUS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(run_cells, "ROOT", tmp_path)
    monkeypatch.setattr(run_cells, "LOGS", tmp_path / "result/logs")
    for folder, name, action, module in (
        ("headline", "one", "true", "paczo.run_paczo"),
        ("headline", "two", "echo 'error: no luck' >&2; exit 2", "paczo.run_paczo"),
        ("baselines", "three", "true", "scripts.launch 2 baselines.run_dp_zo"),
    ):
        path = tmp_path / "scripts" / folder / f"{name}.sh"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(CELL.format(name=name, action=action, module=module))
    return tmp_path


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["run_cells.sh", *arguments])
    return run_cells.main()


def finish(project, name, rate="1"):
    folder = project / "result/runs" / name
    (folder / "private").mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text("{}")
    words = ["--output_dir", f"result/runs/{name}", "--task_name", "SST2", "--learning_rate", rate]
    digest_path(folder).write_text(configuration_digest(words, None) + "\n")


def test_a_failure_stops_nothing_and_is_listed(project, monkeypatch, capsys):
    assert run(monkeypatch, "*") == 1
    said = capsys.readouterr()
    assert "one: done" in said.out
    assert "two: failed with exit code 2" in said.out
    assert "error: no luck" in said.out
    assert "three: done" in said.out
    assert "2 of 3 cells done" in said.out
    assert said.err == "failed: two (see result/logs/two.log)\n"
    assert "no luck" in (project / "result/logs/two.log").read_text()


def test_only_the_same_configuration_is_skipped(project, monkeypatch, capsys):
    finish(project, "one")
    assert run(monkeypatch, "one") == 0
    assert "one: finished, skipped" in capsys.readouterr().out
    monkeypatch.setenv("LR", "2")
    assert run(monkeypatch, "one") == 0
    assert "one: done" in capsys.readouterr().out


def test_states_are_listed_and_interrupted_runs_are_resumed(project, monkeypatch, capsys):
    finish(project, "two", rate="7")
    for name in ("one", "three"):
        (project / "result/runs" / name).mkdir(parents=True)
        (project / "result/runs" / name / "transcript.jsonl").write_text("")
    assert run(monkeypatch, "*", "--list") == 0
    assert capsys.readouterr().out.split("\n")[:3] == ["one: interrupted", "two: other", "three: interrupted"]
    run(monkeypatch, "one")
    assert "resume=1" in (project / "result/logs/one.log").read_text()
    monkeypatch.setenv("OVERWRITE", "1")
    run(monkeypatch, "one")
    assert "resume=\n" in (project / "result/logs/one.log").read_text()


def test_a_run_that_died_before_its_transcript_is_interrupted(project, monkeypatch, capsys):
    (project / "result/runs/one/private").mkdir(parents=True)
    (project / "result/runs/one/private/ledger.jsonl").write_text("")
    assert run(monkeypatch, "one", "--list") == 0
    assert capsys.readouterr().out == "one: interrupted\n"


def test_a_baseline_is_resumed_too(project, monkeypatch, capsys):
    (project / "result/runs/three").mkdir(parents=True)
    (project / "result/runs/three/transcript.jsonl").write_text("")
    assert run(monkeypatch, "three", "--list") == 0
    assert capsys.readouterr().out == "three: interrupted\n"


def test_no_cell_is_started_after_the_user_stopped_the_sweep(project, monkeypatch):
    """The first cell ends by the signal; the two that wait are not run."""

    def stopped(job, gpu):
        started.append(job.name)
        if len(started) == 1:
            time.sleep(0.2)  # until the main thread waits
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            time.sleep(0.5)
        return False

    started = []
    monkeypatch.setattr(run_cells, "run_one", stopped)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        assert run(monkeypatch, "*") == 130
    finally:
        signal.signal(signal.SIGINT, before)
    time.sleep(0.7)
    assert started == ["one"]


def test_gpus_share_the_cells(project, monkeypatch, capsys):
    assert run(monkeypatch, "*e", "--gpus", "0,3") == 0
    used = {(project / f"result/logs/{name}.log").read_text().split()[1] for name in ("one", "three")}
    assert used <= {"gpu=0", "gpu=3"}
    assert capsys.readouterr().out.count(" on GPU ") == 2


def test_a_slurm_job_is_an_array_of_what_is_left(project, monkeypatch, capsys):
    """The text, and what each of its tasks starts."""
    finish(project, "one")
    monkeypatch.setenv("NUM_GPUS", "2")
    assert run(monkeypatch, "--slurm", "long", "*", "--list") == 0
    text = capsys.readouterr().out
    directives = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH")]
    assert {"partition=long", "array=0-1", "gres=gpu:2", "requeue", "open-mode=append"} <= set(directives)
    assert "headline/one" not in text
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    (project / "scripts/run_cells.py").write_text("import sys; print(*sys.argv[1:])")
    said = []
    for number in "01":
        environment = {**os.environ, "SLURM_ARRAY_TASK_ID": number}
        done = subprocess.run(["bash"], input=text, text=True, capture_output=True, env=environment)
        said.append(done.stdout)
    assert said == ["headline/two\n", "baselines/three\n"]
    assert run(monkeypatch, "--slurm", "long", "*", "--list", "--cpu") == 0
    assert "gres" not in capsys.readouterr().out
    assert run(monkeypatch, "--slurm", "long", "one") == 2
    assert "no job to submit" in capsys.readouterr().err


def test_a_requeued_task_resumes_its_cell_or_skips_it(project, monkeypatch, capsys):
    """A smoke check too, and one that was to overwrite: what it overwrote is gone by then."""
    folder = project / "result/runs/one"
    folder.mkdir(parents=True)
    for name in ("transcript.jsonl", "SMOKE"):
        (folder / name).write_text("")
    log = project / "result/logs/one.log"
    monkeypatch.setenv("OVERWRITE", "1")
    run(monkeypatch, "headline/one")
    assert log.read_text() == "one gpu= resume=\n"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    run(monkeypatch, "headline/one")
    assert log.read_text() == "one gpu= resume=\none gpu= resume=1\n"
    assert "one: resumed, done in" in capsys.readouterr().out
    finish(project, "one")
    run(monkeypatch, "headline/one")
    assert "one: finished, skipped" in capsys.readouterr().out


def test_a_job_is_submitted_and_what_slurm_says_is_shown(project, monkeypatch, capsys, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "sbatch").write_text(
        f"#!/bin/sh\n[ -z \"$REFUSE\" ] || {{ echo 'sbatch: error: no such partition' >&2"
        f"; exit 1; }}\ncat > {tmp_path}/job; echo '12;cluster'\n"
    )
    (tools / "sbatch").chmod(0o755)
    path = os.environ["PATH"]
    monkeypatch.setenv("PATH", f"{tools}:{path}")
    finish(project, "one")
    assert run(monkeypatch, "--slurm", "long", "*") == 0
    assert capsys.readouterr().out.startswith("Slurm job 12: 2 cells, 1 finished ones skipped\n")
    assert "#SBATCH --partition=long\n" in (tmp_path / "job").read_text()
    monkeypatch.setenv("REFUSE", "1")
    assert run(monkeypatch, "--slurm", "long", "*") == 2
    assert capsys.readouterr().err == "error: no such partition\n"
    (tools / "sbatch").unlink()
    (tools / "bash").symlink_to("/bin/bash")
    monkeypatch.setenv("PATH", str(tools))
    assert run(monkeypatch, "--slurm", "long", "*") == 2
    assert "sbatch is not installed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["nothing*"], {}, "no script matches 'nothing*'"),
        (["*"], {"RUN_ID": "x"}, "RUN_ID would put 3 cells into one folder"),
        (["*", "--gpus", "a"], {}, "--gpus takes different numbers"),
        (["*", "--gpus", "0,0"], {}, "--gpus takes different numbers"),
        (["--slurm", "a b", "*"], {}, "--slurm takes a partition's name"),
        (["--slurm", "long", "*", "--gpus", "0"], {}, "--gpus is for a run without --slurm"),
        (["--slurm", "long", "*"], {"NUM_GPUS": "0"}, "NUM_GPUS must be a whole number"),
        (["*", "--cpu"], {}, "--cpu belongs to --slurm"),
    ],
)
def test_wrong_input_is_one_line(arguments, environment, message, project, monkeypatch, capsys):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert run(monkeypatch, *arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_the_real_cells_are_planned(monkeypatch):
    for name in ("DATA_DIR", "RUN_ID", "SMOKE"):
        monkeypatch.delenv(name, raising=False)
    assert len(run_cells.matching("*")) == 143
    assert len(run_cells.matching("headline/*")) == 55
    assert [path.stem for path in run_cells.matching("rankabl_*_r4_*")] == ["rankabl_sst2_6p7b_lora_mi0p33_r4_s0"]
    monkeypatch.setenv("RUN_ID", "no-such-run")
    job = run_cells.plan(run_cells.matching("rankabl_*_r4_*")[0])
    assert (job.state, job.run_dir) == ("new", ROOT / "result/runs/no-such-run")
    monkeypatch.setenv("METHOD", "dp")
    with pytest.raises(ValueError, match="METHOD=dp is unknown"):
        run_cells.plan(job.script)


def test_the_shell_entry(tmp_path):
    command = ["bash", str(ROOT / "scripts/run_cells.sh"), "zplladder_sst2_6p7b_lora_c25_*"]
    environment = {"PATH": os.environ["PATH"], "PYTHON": sys.executable, "HOME": str(tmp_path), "DRY_RUN": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 3
