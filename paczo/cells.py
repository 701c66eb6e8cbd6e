"""The paper's cells: the rows of `scripts/cells.tsv`, and the variables that each one's script shows."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

TABLE = Path(__file__).resolve().parents[1] / "scripts" / "cells.tsv"
FOLDERS = ("headline", "ablation", "baselines")
DP_METHODS = ("dpzero", "dp-aggzo")
LOSSES = {"SST2": "train_as_classification", "SQuAD": "non_diff"}
Cell = dict[str, str]


def cells() -> list[Cell]:
    """The rows of the table, one a script."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def variables(cell: Cell) -> Iterator[tuple[str, str]]:
    """Name and default of each variable the cell's script shows, in order."""
    is_dp = cell["method"] in DP_METHODS
    yield "RUN_ID", cell["run_id"]
    yield "TASK", cell["task"]
    yield "LOSS", LOSSES[cell["task"]]
    if cell["task"] == "SQuAD":
        yield "MAX_NEW_TOKENS", "50"
    yield "MODEL", cell["model"]
    yield "DTYPE", "auto"
    yield "OPT_BOS", "<s>"
    yield "TRACK", cell["track"]
    if cell["track"] == "lora":
        yield "LORA_R", cell["lora_r"]
        yield "LORA_ALPHA", "16"
        yield "LORA_LAYERS", "all"
    yield "METHOD", cell["method"]
    yield from _mechanism(cell)
    yield "CLIP", cell["clip"]
    yield "LR", cell["lr"]
    yield "LR_SCHEDULE", "constant" if is_dp else "polynomial"
    yield "STEPS", cell["steps"]
    yield "EVAL_STEPS", "200" if is_dp or cell["K"] != "1" else "100"
    yield "ZO_EPS", "1e-3"
    yield "DERIVATIVE", "central"
    yield "NUM_TRAIN", "1000"
    yield "NUM_DEV", "500"
    yield "NUM_EVAL", "1000"
    yield "SEED", cell["seed"]  # of the data draw
    yield "RUN_SEED", "42"  # of directions, adapters and membership
    yield "LOGGING_STEPS", "10"
    yield "REPORT_TO", "none"


def _mechanism(cell: Cell) -> Iterator[tuple[str, str]]:
    if cell["method"] in DP_METHODS:
        yield "DP_K", cell["K"]
        yield "EPSILON", cell["epsilon"]
        yield "DELTA", "1e-5"
        yield "SAMPLE_RATE", cell["sample_rate"]
        return
    if cell["method"] == "pac-mi":
        yield "MI", cell["mi"]
        yield "PAC_CHARGE", "real"
    if cell["method"] == "non-private":
        yield "ABLATION", cell["ablation"]
    yield "PAC_M", cell["M"]
    yield "PAC_K", cell["K"]
