"""Runs a list of measurements on this machine until a budget of minutes is used up; see `scripts/gpu_day.sh`.

Each part is a process of its own, whose output, figures and outcome are written before the next one starts. A
part is started only where its estimate fits into what is left, and is ended at the end of the budget. The next
start skips what is done on such a device, ends what a killed one left running, and goes on. Plain Python.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from scripts.gpu_page import write_page
from scripts.gpu_parts import ROOT, Part, parts

PROBE = """
import importlib.metadata, json, torch
gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
memory = [torch.cuda.get_device_properties(i).total_memory for i in gpus]
print(json.dumps({"gpus": [torch.cuda.get_device_name(i) for i in gpus], "memory": memory,
    "torch": torch.__version__, "cuda": torch.version.cuda,
    "transformers": importlib.metadata.version("transformers")}))
"""
RESERVE = 12.0  # seconds at the end, to end a part and write the page


@dataclass
class Day:
    """Where results go, until when, and on what."""

    folder: Path
    deadline: float
    machine: dict[str, Any]
    environment: dict[str, str] = field(repr=False)

    def left(self) -> float:
        """Seconds that a part may still take."""
        return self.deadline - time.monotonic() - RESERVE

    def record(self, part: Part) -> Path:
        return self.folder / "parts" / f"{part.name}.json"

    def known(self, part: Part) -> dict[str, Any]:
        """What an earlier start wrote of the part as it is now, on such a device; empty where there is nothing."""
        try:
            found = json.loads(self.record(part).read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        same = found.get("words") == list(part.words) and found.get("gpus") == self.machine["gpus"]
        return found if same else {}


def main() -> int:
    """0: nothing failed; 1: a part did; 2: wrong input."""
    parser = argparse.ArgumentParser(prog="gpu_day.sh", description="Measure what wants a GPU.")
    parser.add_argument("--minutes", type=float, default=60.0, help="of the whole; default 60")
    parser.add_argument("--output_dir", default="result/gpu_day", help="for JSON, logs and the page")
    parser.add_argument("--only", nargs="+", default=["*"], metavar="PATTERN", help="of the parts' names; quoted")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes; without CUDA always")
    parser.add_argument("--list", action="store_true", help="say what would be run and run nothing")
    given = parser.parse_args()
    begin = time.monotonic()
    if not 0 < given.minutes < 1e6:
        return _fail(f"--minutes takes a number above 0, got {given.minutes:g}")
    probe = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, cwd=ROOT)
    if probe.returncode:
        reason = (probe.stderr.strip().splitlines() or ["no output"])[-1]
        return _fail(f"{sys.executable} cannot import torch and transformers ({reason}); set PYTHON")
    machine = json.loads(probe.stdout.splitlines()[-1])
    tiny = given.tiny or not machine["gpus"]
    data = os.environ.get("DATA_DIR") or str(ROOT / "src" / "sample_data")
    environment = {**os.environ, "DATA_DIR": data, "PYTHON": sys.executable, "HF_HUB_OFFLINE": "1"}
    if "MODEL_DIR" in environment:
        environment["MODEL"] = environment["MODEL_DIR"]
    found = parts(len(machine["gpus"]), tiny=tiny)
    chosen = [part for part in found if any(fnmatch(part.name, pattern) for pattern in given.only)]
    if not chosen:
        return _fail(f"no part matches '{' '.join(given.only)}'; --list names them")
    folder = Path(given.output_dir).absolute()
    day = Day(folder, begin + 60 * given.minutes, {**machine, "tiny": tiny}, environment)
    if given.list:
        for part in chosen:
            print(
                f"{part.name:<36}{part.missing or day.known(part).get('state') or f'about {part.seconds:.0f} s'}"
            )
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return _fail(f"another start is at work in {folder}")
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        try:
            return run_all(day, chosen)
        except KeyboardInterrupt:
            return 130


def run_all(day: Day, chosen: list[Part]) -> int:
    """Run what is not done and fits, one after another; the page is written after each."""
    end_leftover(day.folder)
    outcome: dict[str, str] = {}
    for part in chosen:
        known = day.known(part)
        if part.missing:
            outcome[part.name] = f"not run: {part.missing}"
        elif known.get("state") == "done" and not part.again:
            outcome[part.name] = "done before"
        elif (estimate := _estimate(part, known)) > day.left():
            outcome[part.name] = f"not started: about {estimate:.0f} s, {max(0.0, day.left()):.0f} s left"
        else:
            outcome[part.name] = run_one(day, part)
        print(f"{part.name}: {outcome[part.name]}", flush=True)
        write_page(day.folder, day.machine, outcome)
    print(f"wrote {day.folder / 'gpu_day.md'} and gpu_day.json")
    return 1 if any(text.startswith("failed") for text in outcome.values()) else 0


def _estimate(part: Part, known: dict[str, Any]) -> float:
    """Seconds that a part is given a start for: its estimate, or more where that was too little before."""
    return part.seconds if part.again else max(part.seconds, 1.5 * known.get("ended_after", 0.0))


def run_one(day: Day, part: Part) -> str:
    """Run a part to its end or to the budget's, and write its record; what became of it in words."""
    figures, log = day.folder / "figures" / part.name, day.folder / "logs" / f"{part.name}.log"
    for folder in (figures, log.parent, day.record(part).parent):
        folder.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, *part.words] if part.words[0] != "bash" else list(part.words)
    words += ["--output_dir", str(figures)] if part.figures else []
    words += ["--hours", f"{part.share * day.left() / 3600:.4f}"] if part.again else []
    begin = time.monotonic()
    with log.open("w", encoding="utf-8") as file:
        child = subprocess.Popen(
            words, cwd=ROOT, env=day.environment, stdout=file, stderr=file, start_new_session=True
        )
    try:
        _write(day.folder / "running.json", {"pid": child.pid, "started": _started(child.pid)})
        code = child.wait(timeout=max(1.0, day.left()))
        state = "done" if code == 0 else "failed"
    except subprocess.TimeoutExpired:
        state = "ended"
    finally:
        _end(child)
        (day.folder / "running.json").unlink(missing_ok=True)
    seconds = time.monotonic() - begin
    lines = log.read_text("utf-8", errors="replace").strip().splitlines()
    last = lines[-1][-300:] if lines else ""
    record = {"name": part.name, "words": list(part.words), "gpus": day.machine["gpus"], "state": state}
    if state == "ended":
        record["ended_after"] = seconds
    _write(day.record(part), {**record, "seconds": seconds, "last_line": last})
    if state == "done":
        return f"done in {seconds:.0f} s"
    return (
        f"failed after {seconds:.0f} s: {last}" if state == "failed" else f"ended with the budget, {seconds:.0f} s"
    )


def end_leftover(folder: Path) -> None:
    """End the part that a killed start left running: the same process, by its number and when it began."""
    try:
        left = json.loads((folder / "running.json").read_text("utf-8"))
    except (OSError, ValueError):
        return
    if left["started"] is not None and _started(left["pid"]) == left["started"]:
        with suppress(ProcessLookupError):
            os.killpg(left["pid"], signal.SIGKILL)
        print("ended what an earlier start left running", flush=True)
    (folder / "running.json").unlink(missing_ok=True)


def _end(child: subprocess.Popen[bytes]) -> None:
    """End a part and all that it started; first by asking."""
    for number, patience in ((signal.SIGTERM, 6.0), (signal.SIGKILL, 4.0)):
        with suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        with suppress(subprocess.TimeoutExpired):
            child.wait(timeout=patience)


def _started(pid: int) -> str | None:
    """When a process began, in the kernel's ticks; None where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


def _write(path: Path, content: dict[str, Any]) -> None:
    """Whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def _fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
