"""The audit of `paczo.universe` with the DP baselines beside PACZero: `bash scripts/audit.sh universe`."""

from __future__ import annotations

import math
import sys
from typing import Any

import torch

from baselines.dp_zo import DPArguments, DPZOTrainer
from paczo.universe import STEPS, Row, audit, paczo_rows
from scripts.bench_tools import machine, now
from src.utils import run_cli

SAMPLE_RATE, CLIP, EPSILON = 0.3, 5.0, 2.0


def dp_rows() -> list[Row]:
    """Batches of about 60 of the 200 sentences, and as many steps as make equal passes."""
    rows = []
    for name, k, rate in (("DPZero", 1, 1e-3), ("DP-AggZO", 64, 3e-3)):
        settings: dict[str, Any] = {
            "dp_k": k,
            "dp_clip": CLIP / math.sqrt(k),
            "dp_epsilon": EPSILON,
            "dp_sample_rate": SAMPLE_RATE,
            "max_steps": round(STEPS / SAMPLE_RATE),
            "lr_scheduler_type": "constant",
            "zo_derivative": "exact" if k > 1 else "central",
        }
        rows.append(Row(f"{name}, epsilon {EPSILON:g}, K = {k}", rate, settings, (DPArguments, DPZOTrainer)))
    return rows


if __name__ == "__main__":
    run_cli(lambda: audit(sys.argv[1:], [*paczo_rows(), *dp_rows()], {**machine(torch.device("cpu")), **now()}))
