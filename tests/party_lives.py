"""Commands of the two parties, each in a process of its own that can be killed; the libraries are loaded once.

python tests/party_lives.py     for each line of standard input, a JSON object, a process runs a command
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

STEPS = ("rename", "replace", "fsync", "unlink", "mkdir", "rmdir", "truncate")


class Lives:
    """Runs commands one after another, each in a process that dies where it is told to."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
        words = [sys.executable, __file__]
        self._server = subprocess.Popen(
            words,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[1],
        )

    def run(self, command: str, words: list[str], *, crash: int | None = None, after: float | None = None) -> str:
        """How the command ended: "0", "2", ... or "killed".

        Args:
            crash: kill it before its n-th step on the disk, from 0.
            after: kill it after so many seconds.
        """
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(
            json.dumps({"command": command, "words": words, "crash": crash}), file=self._server.stdin, flush=True
        )
        child = int(self._server.stdout.readline())
        if after is not None:
            time.sleep(after)
            os.kill(
                child, signal.SIGKILL
            )  # not reaped before the server is told to, so the number is still its own
        print("wait", file=self._server.stdin, flush=True)
        status = int(self._server.stdout.readline())
        return "killed" if os.WIFSIGNALED(status) else str(os.WEXITSTATUS(status))

    def close(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait()


def _crash_before(number: int) -> None:
    """Make this process kill itself before its n-th step on the disk."""
    steps = iter(range(number))

    def watched(function: Any) -> Any:
        def step(*args: Any, **kwargs: Any) -> Any:
            if next(steps, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return step

    for name in STEPS:
        setattr(os, name, watched(getattr(os, name)))


def serve() -> None:
    from pum.client import main as client
    from pum.merge import main as merge
    from pum.publish import main as publish
    from pum.run_pum import main as run_pum
    from src.utils import run_cli

    commands = {"publish": publish, "client": client, "merge": merge, "run_pum": run_pum}
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if not child:
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
            if asked["crash"] is not None:
                _crash_before(asked["crash"])
            run_cli(lambda asked=asked: commands[asked["command"]](asked["words"]))
        print(child, flush=True)
        sys.stdin.readline()
        print(os.waitpid(child, 0)[1], flush=True)


if __name__ == "__main__":
    serve()
