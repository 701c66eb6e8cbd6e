"""SmolLM2-135M as it is, zero-shot and behind demonstrations, calibrated or not, through `scripts/icl.sh`.

`DATA_DIR=... python -m scripts.icl_table`. What was measured is not measured again.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from scripts.bench_tools import machine, now
from src.utils import Parser, UserError, run_cli, write_json

ROOT = Path(__file__).resolve().parents[1]
MODEL, DTYPE, NUM_EVAL, DRAWS, SHOTS = "smollm2-135m", "bfloat16", 872, 3, 8
# Task, demonstrations, calibration.
ROWS = (
    ("SST2", 0, ""),
    ("SST2", 0, "sfc"),
    ("SST2", SHOTS, ""),
    ("SST2", SHOTS, "icl_sfc"),
    ("SQuAD", 0, ""),
    ("SQuAD", SHOTS, ""),
)


@dataclass
class IclArguments:
    """Where to."""

    output_dir: str = field(default="result/published", metadata={"help": "Where the JSON goes."})
    work_dir: str = field(default="result/icl", metadata={"help": "Of the runs."})


def main(argv: Sequence[str] | None = None) -> None:
    """Measure what is missing, and write the figures as JSON."""
    (args,) = Parser(IclArguments).parse(argv)
    if not os.environ.get("DATA_DIR"):
        raise UserError("set DATA_DIR to a folder with sst2 and squad")
    rows = []
    for task, shots, calibration in ROWS:
        draws = range(DRAWS if shots else 1)
        found = [evaluated(Path(args.work_dir), task, shots, calibration, draw) for draw in draws]
        rows.append({"task": task, "shots": shots, "calibration": calibration, "scores": found})
        print(f"{task}, {shots} shots{calibration and ', ' + calibration}: {found}", flush=True)
    settings = {"model": MODEL, "dtype": DTYPE, "num_eval": NUM_EVAL}
    path = Path(args.output_dir) / f"in_context-{MODEL}-{DTYPE}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"in_context": rows, **settings, **machine(torch.device("cpu")), **now()})
    print(f"wrote {path}")


def evaluated(work: Path, task: str, shots: int, calibration: str, draw: int) -> dict[str, float]:
    """A run's scores on the test set, from its `metrics.json` where it is finished."""
    run = "-".join([task, str(shots), calibration or "plain", str(draw)])
    metrics = ROOT / work / run / "metrics.json"
    if not metrics.exists():
        settings = {"MODEL": MODEL, "DTYPE": DTYPE, "TASK": task, "NUM_TRAIN": str(shots), "SFC": calibration}
        settings |= {"SEED": str(draw), "NUM_EVAL": str(NUM_EVAL), "OUT_BASE": str(work), "RUN_ID": run}
        done = subprocess.run(
            ["bash", str(ROOT / "scripts" / "icl.sh")],
            env={**os.environ, **settings, "OVERWRITE": "1"},
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise UserError(f"{run}: {(done.stderr.strip() or 'failed').splitlines()[-1]}")
    scores: dict[str, float] = json.loads(metrics.read_text("utf-8"))["after"]["test"]
    return scores


if __name__ == "__main__":
    run_cli(main)
