"""TOFU (arXiv 2401.06121): its splits and its refusals.

Rows come from `DATA_DIR/tofu/<name>.jsonl` or, with no DATA_DIR, from the hub's `locuslab/TOFU`; never from one in
the place of the other. Any other JSON-lines file with the keys question and answer, or text, serves as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.tasks import hub_rows
from src.utils import UserError, read_jsonl

HUB = "locuslab/TOFU"
FORGET_SPLITS = ("forget01", "forget05", "forget10")
SAMPLE_DATA = Path(__file__).parents[1] / "sample_data"

Row = dict[str, Any]


@dataclass(frozen=True)
class Split:
    """What a run forgets, what it keeps, and rows that no model was trained on (empty where there are none)."""

    forget: list[Row]
    retain: list[Row]
    holdout: list[Row]


def load_split(forget_split: str, data_dir: str | None, *, holdout_rows: int = 0) -> Split:
    """The forget split, its retain split and the holdout rows.

    Args:
        forget_split: one of `FORGET_SPLITS`.
        holdout_rows: that many rows at the end of the retain split are kept from training and serve as the
            holdout; 0: the holdout is the split holdoutNN, empty where DATA_DIR has no such file.
    """
    retain = retain_rows(forget_split, data_dir)
    if not 0 <= holdout_rows < len(retain):
        raise UserError(f"holdout_rows must be from 0 to {len(retain) - 1}, got {holdout_rows}")
    if holdout_rows:
        holdout = retain[-holdout_rows:]
        retain = retain[:-holdout_rows]
    else:
        holdout = _optional_rows("holdout" + forget_split[-2:], data_dir)
    return Split(split_rows(forget_split, data_dir), retain, holdout)


def retain_rows(forget_split: str, data_dir: str | None) -> list[Row]:
    """The split retainNN that belongs to a forget split.

    A data folder holds retain90 and forget10, which together are the full set; retain95 and retain99 are then
    the full set without forget05 and forget01.
    """
    if forget_split not in FORGET_SPLITS:
        raise UserError(f"unknown forget split '{forget_split}'; known: {', '.join(FORGET_SPLITS)}")
    name = f"retain{100 - int(forget_split[-2:])}"
    if data_dir is None or (Path(data_dir) / "tofu" / f"{name}.jsonl").exists():
        return split_rows(name, data_dir)
    forget = {(row["question"], row["answer"]) for row in split_rows(forget_split, data_dir)}
    return [row for row in full_rows(data_dir) if (row["question"], row["answer"]) not in forget]


def full_rows(data_dir: str | None) -> list[Row]:
    """All of TOFU: the hub's split `full`, which in a data folder is retain90 and forget10."""
    if data_dir is None:
        return split_rows("full", None)
    return split_rows("retain90", data_dir) + split_rows("forget10", data_dir)


def split_rows(name: str, data_dir: str | None) -> list[Row]:
    """Rows of the split called `name`, each with question and answer, and more where the split has it."""
    if data_dir is None:
        rows, source = hub_rows(HUB, name, "train"), f"{HUB}/{name}"
    else:
        path = Path(data_dir) / "tofu" / f"{name}.jsonl"
        rows, source = read_jsonl(path), str(path)
    keys = ["question", "answer"]
    if name.endswith("_perturbed"):
        keys += ["perturbed_answer"]
        keys += ["paraphrased_answer"] if name.startswith(("forget", "retain")) else []
    return _checked(rows, keys, source)


def file_rows(path: Path) -> list[Row]:
    """Rows of any JSON-lines file, all with question and answer or all with text."""
    rows = read_jsonl(path)
    is_text = bool(rows) and "text" in rows[0]
    return _checked(rows, ["text"] if is_text else ["question", "answer"], str(path))


def _optional_rows(name: str, data_dir: str | None) -> list[Row]:
    if data_dir is not None and not (Path(data_dir) / "tofu" / f"{name}.jsonl").exists():
        return []
    return split_rows(name, data_dir)


def _checked(rows: list[Row], keys: list[str], source: str) -> list[Row]:
    if not rows:
        raise UserError(f"{source} has no row")
    for number, row in enumerate(rows, start=1):
        missing = [key for key in keys if not row.get(key)]
        if missing:
            raise UserError(f"{source} row {number} has no {' and no '.join(missing)}")
        for key in keys:
            several = key == "perturbed_answer"
            texts = row[key] if several else [row[key]]
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise UserError(f"{source} row {number}: {key} must be {'a list of texts' if several else 'text'}")
    return rows


def refusals(data_dir: str | None, path: Path | None = None) -> list[str]:
    """Sentences that refuse an answer, for DPO, one a line.

    They are those of `path`, else of DATA_DIR/tofu/idk.txt. The hub's data set has none; runs on it take the
    list that was written for this project.
    """
    if path is None:
        path = (SAMPLE_DATA if data_dir is None else Path(data_dir)) / "tofu" / "idk.txt"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"cannot read the refusals {path}: {error.strerror}") from error
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise UserError(f"{path} has no refusal")
    return found
