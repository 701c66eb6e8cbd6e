"""Ways for a run to die or its records to be damaged, and what to compare after it.

Used for every trainer with a private record.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import lives
import pytest
import torch
from lives import live
from transformers import TrainerState

from src.utils import run_cli
from src.zo.directions import ParameterSpace

KINDS = ("byte", "lost byte", "new byte", "drop", "repeat", "swap")


class Died(BaseException):
    """Stands for the process's death: no handler may catch it."""


@contextmanager
def dying_after(instants, monkeypatch):
    """Dies at the given instant, of those before, within and after every write to disk or to the parameters."""
    left = iter(range(instants - 1, -1, -1))

    def tick():
        if next(left, -1) == 0:
            raise Died

    def around(owner, name, half=None):
        original = getattr(owner, name)

        def wrapped(*args, **kwargs):
            tick()
            if half is not None and next(left, -1) == 0:
                half(original, *args)
                raise Died
            result = original(*args, **kwargs)
            tick()
            return result

        patch.setattr(owner, name, wrapped)

    with monkeypatch.context() as patch:
        around(os, "write", half=lambda write, descriptor, data: write(descriptor, data[: len(data) // 2]))
        around(os, "fsync")
        around(Path, "replace")
        around(ParameterSpace, "apply")
        around(torch, "save", half=lambda save, value, path: Path(path).write_bytes(b"torn"))
        around(TrainerState, "save_to_json", half=lambda save, state, path: Path(path).write_text('{"global'))
        around(shutil, "rmtree")
        yield


def outcome(folder):
    return {name: (folder / name).read_bytes() for name in ("transcript.jsonl", "private/ledger.jsonl")}


def checkpoints(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def history(trainer):
    """The log without the library's clocks and the last summary, which is of one life only."""
    return [
        {name: value for name, value in entry.items() if "runtime" not in name and "per_second" not in name}
        for entry in trainer.state.log_history
        if "train_runtime" not in entry
    ]


def die_and_resume(folder, rng, monkeypatch, deaths, longest=450, **changes):
    """Lives of random length until `deaths` of them ended early, then one that may end; its trainer.

    `changes` go to `lives.live`.
    """
    for _ in range(deaths):
        if not read_lines(folder):
            shutil.rmtree(folder, ignore_errors=True)
        with dying_after(rng.randrange(1, longest), monkeypatch), pytest.raises(Died):
            live(folder, **changes)
    return live(folder, **changes)


def read_lines(folder):
    path = folder / "private" / "ledger.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def damage(content, kind, rng):
    lines = content.splitlines(keepends=True)
    position, index = rng.randrange(len(content)), rng.randrange(len(lines))
    other = rng.choice([number for number in range(len(lines)) if number != index])
    if kind == "byte":
        byte = rng.choice([value for value in range(256) if value != content[position]])
        return content[:position] + bytes([byte]) + content[position + 1 :]
    if kind == "lost byte":
        return content[:position] + content[position + 1 :]
    if kind == "new byte":
        return content[:position] + bytes([rng.randrange(256)]) + content[position:]
    if kind == "drop":
        del lines[index]
    elif kind == "repeat":
        lines.insert(other, lines[index])
    else:
        lines[index], lines[other] = lines[other], lines[index]
    return b"".join(lines)


def exit_code(action):
    with pytest.raises(SystemExit) as stopped:
        run_cli(action)
    return stopped.value.code


def kill_and_resume(run, kind, rng):
    """The run of `lives.py` in a process of its own, killed six times and started again but for the last."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, lives.__file__, kind]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as server:
        for target in (4, 35, 66, 97, 128, 159):
            print(run, file=server.stdin, flush=True)
            process = int(server.stdout.readline())
            wait_for_lines(run / "transcript.jsonl", target)
            time.sleep(rng.random() * 0.02)
            os.kill(process, signal.SIGKILL)
            assert int(server.stdout.readline()) == signal.SIGKILL, "the run was over before it was killed"
        server.stdin.close()
    assert target <= (run / "transcript.jsonl").read_bytes().count(b"\n") < lives.STEPS


def wait_for_lines(path, count):
    end = time.monotonic() + 300
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert time.monotonic() < end
        time.sleep(0.001)
