"""Clock, peak memory and result files of the benchmarks."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch
from torch import nn

from src.utils import versions, write_json


def timed(run: Callable[[], Any], device: torch.device) -> float:
    """Seconds of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


class PeakMemory:
    """Peak memory in bytes: the allocator's on CUDA, the process's resident set on Linux otherwise."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start = self._now()

    def during(self, run: Callable[[], Any], *, since_start: bool = False) -> int:
        """The peak while `run` runs, above what was in use before it, or when this object was made."""
        before = self._start if since_start else self._now()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            run()
            return torch.cuda.max_memory_allocated(self._device) - before
        _give_back_free_memory()
        forget_peak_resident()
        run()
        return peak_resident() - before

    def _now(self) -> int:
        if self._device.type == "cuda":
            return torch.cuda.memory_allocated(self._device)
        _give_back_free_memory()
        return int(psutil.Process().memory_info().rss)


def forget_peak_resident() -> None:
    """Let the kernel count this process's peak from now on; Linux only."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_resident(process: int | str = "self") -> int:
    """Most resident bytes of a process so far, by its number; 0 of one that has ended. Linux only."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


def _give_back_free_memory() -> None:
    """What the C library keeps for later would hide a peak, or count as one."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def matrix_product_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of the best of ten large square matrix products."""
    size = 8192 if device.type == "cuda" else 256
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    left @ right
    return 2 * size**3 / min(timed(lambda: left @ right, device) for _ in range(10))


def utilisation(
    model: nn.Module, tokens: int, trunk_passes: float, seconds: float, device: torch.device, dtype: torch.dtype
) -> dict[str, float]:
    """The share of a matrix product's rate, measured now, that so many passes in so many seconds come to.

    Args:
        trunk_passes: passes over `tokens` tokens, each two operations a weight and token, embeddings left out; a
            way back to the inputs alone is one more. Attention, head and noise are not counted.
    """
    embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
    trunk = sum(p.numel() for p in model.parameters()) - embeddings.weight.numel()
    rate, peak = 2 * trunk * tokens * trunk_passes / seconds, matrix_product_rate(device, dtype)
    return {"model_flops_per_second": rate, "matrix_product_flops_per_second": peak, "share": rate / peak}


def shown(arguments: Any) -> dict[str, Any]:
    """A benchmark's arguments as its file shows them: without this machine's folders."""
    values = asdict(arguments)
    del values["output_dir"]
    return {**values, "data_dir": values["data_dir"] is not None}


def this_device() -> torch.device:
    """The GPU where there is one, the CPU otherwise."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures were measured on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {"device": name, "threads": torch.get_num_threads(), "cpus": os.cpu_count()}


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def save(folder: str, name: str, figures: dict[str, Any]) -> Path:
    """Write the figures with date and versions, and a line of `history.jsonl` beside them; the file's path."""
    path = Path(folder) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    figures = {**figures, **now()}
    write_json(path, figures)
    shown = {key: figures[key] for key in ("date", "device", "threads", "median") if key in figures}
    with (path.parent / "history.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"name": name, "commit": _commit(), **shown}, sort_keys=True) + "\n")
    return path


def _commit() -> str | None:
    """The commit that was measured, "+" behind it where files differ from it; None outside of a checkout."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--exclude", "*"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or None


def now() -> dict[str, Any]:
    """When, and with which versions, figures are being measured."""
    return {"date": datetime.now(UTC).date().isoformat(), "versions": versions()}
