"""The measurements in one go: in time, resumed after a kill, nothing done twice, and an honest page."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts import gpu_day, gpu_parts
from scripts.gpu_day import Day, run_all
from scripts.gpu_parts import Part, parts

ROOT = Path(__file__).resolve().parents[2]
MACHINE = {"gpus": [], "memory": [], "torch": "2", "cuda": None, "transformers": "5", "tiny": True}
# Packages that a machine without network may lack.
ABSENT = ("datasets", "gguf", "nltk", "rouge_score", "dp_accounting")


def sleep(name, seconds, *, code=0, estimate=0.0, **more):
    text = f"import time, sys; time.sleep({seconds}); print('slept'); sys.exit({code})"
    return Part(name, ("-c", text), estimate, figures=False, **more)


@pytest.fixture
def day(tmp_path):
    """One and a half seconds before what is kept for the end."""
    return Day(tmp_path, time.monotonic() + gpu_day.RESERVE + 1.5, MACHINE, dict(os.environ))


def test_a_part_that_does_not_fit_is_not_started_and_one_that_takes_too_long_is_ended(day, capsys):
    chosen = [sleep("long", 60), sleep("late", 0, estimate=500), sleep("absent", 0, missing="no GPU")]
    begin = time.monotonic()
    assert run_all(day, [sleep("short", 0), *chosen]) == 0
    assert time.monotonic() - begin < 6
    said = capsys.readouterr().out
    for line in (
        "short: done in",
        "long: ended with the budget",
        "late: not started: about 500 s, ",
        "absent: not run: no",
    ):
        assert line in said
    assert not (day.folder / "parts/late.json").exists()
    day.deadline = time.monotonic() + gpu_day.RESERVE + 3
    run_all(day, [sleep("short", 0), *chosen])
    said = capsys.readouterr().out
    assert "short: done before" in said
    assert "long: ended" in said
    day.deadline = time.monotonic() + gpu_day.RESERVE + 2
    run_all(day, chosen[:1])
    assert "long: not started: about" in capsys.readouterr().out  # what it was given before was too little
    page = (day.folder / "gpu_day.md").read_text()
    assert "Nothing here is of a GPU" in page
    assert json.loads((day.folder / "gpu_day.json").read_text())["parts"]["short"]["state"] == "done"


def test_a_failure_stops_nothing_and_is_tried_again(day, capsys):
    assert run_all(day, [sleep("bad", 0, code=3), sleep("good", 0)]) == 1
    assert "bad: failed after 0 s: slept" in capsys.readouterr().out
    assert run_all(day, [sleep("bad", 0, code=3), sleep("good", 0)]) == 1
    said = capsys.readouterr().out
    assert "bad: failed" in said
    assert "good: done before" in said
    assert run_all(day, [sleep("good", 0.1)]) == 0
    assert "good: done in" in capsys.readouterr().out  # another command under that name
    day.machine = {**MACHINE, "gpus": ["H100"], "memory": [2**36]}
    run_all(day, [sleep("good", 0.1)])
    assert "good: done in" in capsys.readouterr().out  # another device


def test_what_goes_on_by_itself_is_given_a_share_of_the_time(day, capsys):
    text = "import sys, pathlib; pathlib.Path(sys.argv[2], 'new.json').write_text('{}'); print(*sys.argv[1:])"
    own = Part("own", ("-c", text), 0.0, again=True, share=0.5)
    for _ in range(2):
        run_all(day, [own])
        assert "own: done in" in capsys.readouterr().out
    words = (day.folder / "logs/own.log").read_text().split()
    assert words[:3] == ["--output_dir", str(day.folder / "figures/own"), "--hours"]
    assert 0 < float(words[3]) <= 0.75 / 3600 + 1e-4
    assert list(json.loads((day.folder / "gpu_day.json").read_text())["figures"]) == ["own/new"]


def test_the_parts_of_a_machine(monkeypatch):
    for name in ("DATA_DIR", "MODEL_DIR"):
        monkeypatch.delenv(name, raising=False)
    names = [part.name for part in parts(1, tiny=False)]
    assert len(names) == len(set(names))
    for shape in ("opt-1.3b", "opt-6.7b"):
        for track in ("lora", "ft"):
            for dtype in ("float16", "bfloat16"):
                assert {f"step-{shape}-{track}-{dtype}", f"directions-{shape}-{track}-{dtype}"} <= set(names)
    found = {part.name: part for part in parts(4, tiny=False)}
    assert found["processes"].words[2:4] == ("--processes", "4")
    assert not found["processes"].missing
    words = found["step-opt-1.3b-lora-float16"].words
    assert words[words.index("--reference_repeats") + 1] == "1"
    words = found["directions-opt-6.7b-ft-bfloat16"].words
    assert words[words.index("--k") + 1 : words.index("--k") + 3] == ("1", "64")
    assert "tests/src/test_cuda.py" in found["tests"].words
    assert {part.name: part for part in parts(1, tiny=False)}["processes"].missing == "there is one GPU"


def test_a_model_may_lie_in_a_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("MODEL_DIR", str(tmp_path))
    assert gpu_parts.smollm2_model() == (str(tmp_path), "MODEL_DIR holds no model")
    (tmp_path / "config.json").write_text("{}")
    assert gpu_parts.smollm2_model() == (str(tmp_path), "")


def test_a_killed_start_is_gone_on_with(tmp_path, environment):
    """Two real parts without the packages that may be absent: the start is killed in the second, which runs on."""
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({ABSENT}))")
    environment |= {"PYTHONPATH": f"{tmp_path}:{ROOT}", "PYTHON": sys.executable}
    environment.pop("DATA_DIR", None)
    out = tmp_path / "day"
    command = ["bash", str(ROOT / "scripts/gpu_day.sh"), "--minutes", "10", "--output_dir", str(out), "--only"]
    command.append("directions-tiny-lora-*")
    first = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    done, running = out / "parts/directions-tiny-lora-float16.json", out / "running.json"
    end = time.monotonic() + 300
    while not (done.exists() and running.exists()):
        assert time.monotonic() < end
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    written, left = done.read_bytes(), json.loads(running.read_text())["pid"]
    os.kill(left, signal.SIGSTOP)  # it is there, and would end on a fast machine before it is looked for
    second = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert second.returncode == 0, second.stdout + second.stderr
    assert second.stdout.splitlines()[:2] == [
        "ended what an earlier start left running",
        "directions-tiny-lora-float16: done before",
    ]
    assert "directions-tiny-lora-bfloat16: done in" in second.stdout
    assert done.read_bytes() == written
    assert gpu_day._started(left) is None
    page = (out / "gpu_day.md").read_text()
    assert "| tiny, LoRA, float16 | 1 |" in page
    assert "| tiny, LoRA, bfloat16 | 4 |" in page


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--minutes", "0"], "--minutes takes a number above 0"), (["--only", "x"], "no part matches 'x'")],
)
def test_wrong_words_are_one_line(words, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu_day.sh", *words])
    monkeypatch.setattr(gpu_day, "PROBE", f"print({json.dumps(MACHINE)!r})")
    assert gpu_day.main() == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_an_interpreter_without_the_libraries_is_named(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu_day.sh"])
    monkeypatch.setattr(gpu_day, "PROBE", "raise ImportError('no torch')")
    assert gpu_day.main() == 2
    assert "cannot import torch and transformers (ImportError: no torch)" in capsys.readouterr().err
