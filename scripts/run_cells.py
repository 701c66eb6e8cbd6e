"""Run the cells of the paper that match a pattern: one after another, over several GPUs, or as a Slurm job.

    bash scripts/run_cells.sh 'sst2_1p3b_lora_*' --gpus 0,1
    bash scripts/run_cells.sh --slurm PARTITION 'sst2_1p3b_lora_*'

A cell is skipped where its folder in result/runs holds a finished run of the same configuration and data: the
digest of its command line, of the task's local data files and of a local model's files is the same. A folder
with an interrupted PACZero run is resumed. A folder with another run is an error unless OVERWRITE=1.
Variables that a cell script takes (MODEL, DATA_DIR, SMOKE, LR, ...) apply to all. With --slurm the cells that
are not finished become one array job, a task each; a task that Slurm requeues goes on with its cell (a smoke check
too), or skips it where it is finished by then. Plain Python.
"""

from __future__ import annotations

import argparse
import os
import queue
import re
import shlex
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from paczo.cells import FOLDERS
from src.record.digest import configuration_digest, finished_digest

ROOT = Path(__file__).resolve().parents[1]
LOGS = ROOT / "result" / "logs"


@dataclass(frozen=True)
class Job:
    """A cell's script and what became of it so far: "finished", "interrupted", "other" or "new"."""

    script: Path
    run_dir: Path
    state: str

    @property
    def name(self) -> str:
        return self.script.stem


def main() -> int:
    """0: all finished; 1: a cell failed; 2: wrong input."""
    parser = argparse.ArgumentParser(prog="run_cells.sh", description="Run the cells that match a pattern.")
    parser.add_argument("pattern", help="of script names, e.g. 'plateau_*', 'headline/*' or '*'; quote it")
    parser.add_argument("--gpus", help="run as many at a time, one on each: 0,1,2")
    parser.add_argument("--slurm", metavar="PARTITION", help="submit the rest as one array job to this partition")
    parser.add_argument("--cpu", action="store_true", help="with --slurm: ask for no GPU")
    parser.add_argument("--list", action="store_true", help="run nothing: say what would be run, or print the job")
    given = parser.parse_args()
    if wrong := _contradiction(given):
        return _fail(wrong)
    scripts = matching(given.pattern)
    if not scripts:
        return _fail(f"no script matches '{given.pattern}' in scripts/{{{','.join(FOLDERS)}}}")
    if os.environ.get("RUN_ID") and len(scripts) > 1:
        return _fail(f"RUN_ID would put {len(scripts)} cells into one folder; unset it")
    numbers = given.gpus.split(",") if given.gpus else []
    gpus: list[str | None] = [*numbers] or [None]
    if not all(number.isdigit() for number in numbers) or len(set(numbers)) < len(numbers):
        return _fail(f"--gpus takes different numbers, as in 0,1; got '{given.gpus}'")
    jobs = []
    for script in scripts:
        try:
            jobs.append(plan(script))
        except ValueError as error:
            return _fail(str(error))
    todo = [job for job in jobs if job.state != "finished"]
    if given.slurm is not None:
        return submit(jobs, todo, given)
    for job in jobs:
        if given.list or job.state == "finished":
            print(f"{job.name}: {'finished, skipped' if job.state == 'finished' else job.state}", flush=True)
    return 0 if given.list else run_all(todo, gpus)


def matching(pattern: str) -> list[Path]:
    """Scripts whose name, or folder/name, matches; in the order of the folders, then by name."""
    found = [path for folder in FOLDERS for path in sorted((ROOT / "scripts" / folder).glob("*.sh"))]
    wanted = pattern.removesuffix(".sh").removeprefix("scripts/")
    return [
        path for path in found if fnmatch(path.stem, wanted) or fnmatch(f"{path.parent.name}/{path.stem}", wanted)
    ]


def plan(script: Path) -> Job:
    """What a cell would run, and how far it is. ValueError with one line where its script refuses."""
    environment = {**os.environ, "DRY_RUN": "1"}
    result = subprocess.run(["bash", str(script)], env=environment, capture_output=True, text=True)
    if result.returncode:
        raise ValueError(result.stderr.strip().removeprefix("error: "))
    words = shlex.split(result.stdout)
    first = next(index for index, word in enumerate(words) if word.startswith("--"))
    options = words[first:]
    run_dir = ROOT / options[options.index("--output_dir") + 1]
    digest = configuration_digest(options, os.environ.get("DATA_DIR") or None)
    if finished_digest(run_dir) == digest:
        return Job(script, run_dir, "finished")
    if (run_dir / "metrics.json").exists():
        return Job(script, run_dir, "other")
    begun = any((run_dir / name).exists() for name in ("transcript.jsonl", "private/ledger.jsonl"))
    interrupted = begun and (restarted() or not (run_dir / "SMOKE").exists())
    return Job(script, run_dir, "interrupted" if interrupted else "new")


def run_all(jobs: list[Job], gpus: list[str | None]) -> int:
    """Run every job, going on after a failure; say at the end which failed. 130 where the user stops it."""
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)
    failed: list[str] = []
    stopped = threading.Event()

    def work(gpu: str | None) -> None:
        while not stopped.is_set():
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                return
            if not run_one(job, gpu):
                failed.append(job.name)

    workers = [threading.Thread(target=work, args=(gpu,)) for gpu in gpus]
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    except KeyboardInterrupt:
        stopped.set()  # the running cells got the signal too; none may follow them
        return 130
    print(f"{len(jobs) - len(failed)} of {len(jobs)} cells done")
    for name in sorted(failed):
        print(f"failed: {name} (see result/logs/{name}.log)", file=sys.stderr)
    return 1 if failed else 0


def run_one(job: Job, gpu: str | None) -> bool:
    """Whether the cell's script ended well; its output goes to result/logs/NAME.log, behind what is resumed."""
    environment = dict(os.environ)
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = gpu
    environment["RESUME"] = _resume(job)
    if environment["RESUME"]:
        environment["OVERWRITE"] = ""
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"{job.name}.log"
    begin = time.monotonic()
    with log.open("a" if environment["RESUME"] else "w", encoding="utf-8") as file:
        code = subprocess.run(["bash", str(job.script)], env=environment, stdout=file, stderr=file).returncode
    where = "" if gpu is None else f" on GPU {gpu}"
    took = f"{time.monotonic() - begin:.0f} s{where}"
    if code:
        lines = log.read_text("utf-8", errors="replace").strip().splitlines()
        print(f"{job.name}: failed with exit code {code} after {took}: {lines[-1] if lines else ''}", flush=True)
    else:
        print(f"{job.name}: {'resumed, ' if environment['RESUME'] else ''}done in {took}", flush=True)
    return code == 0


def restarted() -> bool:
    """Whether this is a task of a Slurm job that ran before and was requeued."""
    return os.environ.get("SLURM_RESTART_COUNT", "0") not in ("", "0")


def _resume(job: Job) -> str:
    """The value of RESUME that a cell's script needs. OVERWRITE=1 means the run before the job's first start."""
    overwrite = os.environ.get("OVERWRITE", "0") not in ("", "0")
    return "1" if job.state == "interrupted" and (restarted() or not overwrite) else ""


def submit(jobs: list[Job], todo: list[Job], given: argparse.Namespace) -> int:
    """Submit the array job, or print it with --list; 2 where there is nothing to submit or Slurm refuses."""
    if not todo:
        return _fail("every cell that matches is finished: there is no job to submit")
    text = slurm_script(todo, given.slurm, 0 if given.cpu else int(os.environ.get("NUM_GPUS") or "1"))
    if given.list:
        print(text, end="")
        return 0
    LOGS.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run(["sbatch", "--parsable"], input=text, cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return _fail("sbatch is not installed here; DRY_RUN=1 prints the job, to be submitted elsewhere")
    if done.returncode:
        return _fail(" ".join(done.stderr.split()).removeprefix("sbatch: error: "))
    number = done.stdout.strip().partition(";")[0]
    print(f"Slurm job {number}: {len(todo)} cells, {len(jobs) - len(todo)} finished ones skipped")
    print(f"logs: result/logs/NAME.log for each cell, result/logs/slurm-{number}_*.log for each task")
    return 0


def slurm_script(jobs: list[Job], partition: str, gpus: int) -> str:
    """An array job with one task a cell. Time limit, account and such are the environment's: SBATCH_TIMELIMIT."""
    lines = [
        "#!/usr/bin/env bash",
        "#SBATCH --job-name=cells",
        f"#SBATCH --partition={partition}",
        f"#SBATCH --array=0-{len(jobs) - 1}",
        *([f"#SBATCH --gres=gpu:{gpus}"] if gpus else []),
        "#SBATCH --requeue",
        "#SBATCH --open-mode=append",
        "#SBATCH --output=result/logs/slurm-%A_%a.log",
        "#SBATCH --export=ALL",
        "set -euo pipefail",
        f"cd {shlex.quote(str(ROOT))}",
        f"export PYTHON={shlex.quote(sys.executable)}",
        "cells=(",
        *(f"    {shlex.quote(f'{job.script.parent.name}/{job.name}')}" for job in jobs),
        ")",
        "# plans its cell anew: skips a finished one, and resumes one that was interrupted or requeued",
        'exec "$PYTHON" -m scripts.run_cells "${cells[$SLURM_ARRAY_TASK_ID]}"',
    ]
    return "\n".join(lines) + "\n"


def _contradiction(given: argparse.Namespace) -> str:
    """What is wrong with the options, in one line; empty where nothing is."""
    if given.slurm is None:
        return "--cpu belongs to --slurm" if given.cpu else ""
    if not re.fullmatch(r"[A-Za-z0-9_][\w.,-]*", given.slurm):
        return f"--slurm takes a partition's name, then the pattern; got '{given.slurm}'"
    if given.gpus:
        return "--gpus is for a run without --slurm, which gives every cell NUM_GPUS of its own"
    if not re.fullmatch(r"[1-9]\d*", os.environ.get("NUM_GPUS") or "1"):
        return f"NUM_GPUS must be a whole number from 1 on, got '{os.environ['NUM_GPUS']}'"
    return ""


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
