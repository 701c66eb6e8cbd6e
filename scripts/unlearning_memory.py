"""Where the memory of a PUM run goes: `python -m scripts.unlearning_memory` and the options of `pum.run_pum`.

Runs it and prints the most that the process held in each phase, in MiB and in models, activations included. Linux
and a CPU only: on a GPU `metrics.json` has the allocator's peak.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch
from accelerate import Accelerator

from pum import pum_trainer, run_pum
from pum.pum_trainer import PUMTrainer
from pum.unlearn import running
from pum.unlearn.trainer import UnlearnTrainer
from scripts.bench_tools import forget_peak_resident, peak_resident
from src.utils import run_cli

PHASES: tuple[tuple[Any, str, str], ...] = (
    (running, "load_model", "load the model"),
    (PUMTrainer, "_publish", "publish a copy"),
    (UnlearnTrainer, "compute_loss", "forward"),
    (Accelerator, "backward", "backward"),
    (torch.optim.AdamW, "step", "Adam's step"),
    (pum_trainer, "write_tensors", "write what a copy changed"),
    (PUMTrainer, "_merge", "merge"),
    (PUMTrainer, "_write_result", "save"),
)


def watch(owner: Any, name: str, title: str, peaks: dict[str, int]) -> None:
    """Let a function note the most resident bytes of the process while it runs, under its title."""
    function: Callable[..., Any] = getattr(owner, name)

    def watched(*args: Any, **kwargs: Any) -> Any:
        forget_peak_resident()
        result = function(*args, **kwargs)
        peaks[title] = max(peaks.get(title, 0), peak_resident())
        return result

    setattr(owner, name, watched)


def main(argv: Sequence[str] | None = None) -> None:
    """Run and print the table."""
    peaks = {"start": int(psutil.Process().memory_info().rss)}
    sizes: list[int] = []
    for owner, name, title in PHASES:
        watch(owner, name, title, peaks)
    begin = PUMTrainer.train

    def train(trainer: PUMTrainer, *args: Any, **kwargs: Any) -> Any:
        sizes.append(sum(parameter.nbytes for parameter in trainer.model.parameters()))
        return begin(trainer, *args, **kwargs)

    PUMTrainer.train = train  # type: ignore[method-assign, assignment]
    run_pum.main(sys.argv[1:] if argv is None else argv)
    print("| phase | MiB | models |\n|---|---|---|")
    for title, peak in peaks.items():
        print(f"| {title} | {peak / 2**20:,.0f} | {peak / sizes[0]:.1f} |")


if __name__ == "__main__":
    run_cli(main)
