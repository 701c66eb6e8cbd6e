"""The runs that MeZO's recipes name: the rows of `scripts/mezo.tsv`, and the variables each one's script shows.

Grids, sizes and losses are those of the large models' scripts (arXiv 2305.17333, appendix; OPT-13B): of a grid the
script has the first value, or the one that the note names.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

TABLE = Path(__file__).resolve().parent / "mezo.tsv"
FOLDER = "mezo"
Row = dict[str, str]


def rows() -> list[Row]:
    """The rows of the table, one a script."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def variables(row: Row) -> Iterator[tuple[str, str]]:
    """Name and default of each variable the script shows, in order."""
    yield "RUN_ID", row["run_id"]
    yield "TASK", row["task"]
    yield "LOSS", row["loss"]
    if row["task"] in ("SQuAD", "DROP"):
        yield "MAX_NEW_TOKENS", "50"
    yield "MODEL", row["model"]
    yield "DTYPE", "auto"
    yield "OPT_BOS", "<s>"
    yield "TRACK", row["track"]
    if row["track"] == "lora":
        yield from (("LORA_R", "8"), ("LORA_ALPHA", "16"), ("LORA_LAYERS", "all"))
    if row["track"] == "prefix":
        yield "NUM_PREFIX", "5"
    yield "METHOD", "mezo"
    yield "BATCH", row["batch"]
    yield "LR", row["lr"]
    yield "LR_SCHEDULE", "constant"
    yield "STEPS", row["steps"]
    yield "EVAL_STEPS", row["eval_steps"]
    yield "ZO_EPS", row["zo_eps"]
    yield "DERIVATIVE", "central"
    yield "NUM_TRAIN", "1000"
    yield "NUM_DEV", row["num_dev"]
    yield "NUM_EVAL", "1000"
    yield "SEED", "0"
    yield "RUN_SEED", "42"
    yield "LOGGING_STEPS", "10"
    yield "REPORT_TO", "none"
