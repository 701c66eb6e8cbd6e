"""A thousand random ways to damage the records of a run: each ends resume, replay and verify with exit code 2."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from deaths import KINDS, damage, exit_code
from lives import live, make_trainer

from src.transcript import main as transcript_main

ROOT = Path(__file__).resolve().parents[2]
CHANGES = {"max_steps": 8, "save_steps": 4, "eval_steps": 4, "pac_m": 8}
FILES = ("transcript.jsonl", "private/ledger.jsonl")


@pytest.fixture(scope="module", params=["finished", "stopped"])
def run(request, tmp_path_factory):
    """A run of eight steps, over or killed while it evaluated its sixth."""
    folder = tmp_path_factory.mktemp("runs") / request.param
    if request.param == "finished":
        live(folder, **CHANGES)
        return folder
    trainer = make_trainer(folder, **CHANGES)
    losses, calls = trainer.train_dataset.losses, iter(range(22))

    def interrupted():
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return losses()

    trainer.train_dataset.losses = interrupted
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    return folder


def resume(folder):
    make_trainer(folder, **CHANGES).train(resume_from_checkpoint=True)


def public_tools(folder):
    common = ["--model", str(folder), "--transcript", str(folder / "transcript.jsonl")]
    checkpoint = sorted(folder.glob("checkpoints/*"))[-1]
    return (
        lambda: transcript_main(["replay", *common, "--out", str(folder / "out")]),
        lambda: transcript_main(["verify", *common, "--checkpoint", str(checkpoint)]),
    )


def test_five_hundred_damages_are_refused(run, tmp_path, capsys):
    """Per run; half of them to the transcript, half to the ledger."""
    rng = random.Random(str(run.name))
    work = shutil.copytree(run, tmp_path / "work")
    for number in range(500):
        name, kind = FILES[number % 2], KINDS[number // 2 % len(KINDS)]
        content = (run / name).read_bytes()
        while (damaged := damage(content, kind, rng)) == content:
            pass
        (work / name).write_bytes(damaged)
        actions = [lambda: resume(work), *(public_tools(work) if name == FILES[0] else ())]
        for action in actions:
            assert exit_code(action) == 2, (number, name, kind)
            error = capsys.readouterr().err
            assert error.startswith("error: "), error
            assert error.count("\n") == 1, error
            assert ".jsonl" in error, "the record is what is refused, not the arguments"
        assert (work / name).read_bytes() == damaged, "refusing must not write"
        (work / name).write_bytes(content)
    assert not (work / "out").exists()
    resume(work)


def test_the_process_exits_with_2(run):
    """As above, of a real process; the transcript lacks its last line."""
    path = run / "transcript.jsonl"
    content = path.read_bytes()
    command = ["replay", "--model", "none", "--transcript", str(path), "--out", str(run / "out")]
    path.write_bytes(b"".join(content.splitlines(keepends=True)[:-1]))
    try:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        result = subprocess.run(
            [sys.executable, "-m", "src.transcript", *command],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
    finally:
        path.write_bytes(content)
    assert result.returncode == 2
    assert "has no closing line" in result.stderr
    assert result.stderr.count("\n") == 1
