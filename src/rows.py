"""A task's rows: from a local folder or the hub, and which of them a run draws.

The draws are the sources' own (MeZO, PACZero): NumPy's legacy generator over the rows in the hub's order, so that
the published runs' samples can be drawn again.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.utils import UserError, one_line, read_jsonl

Rows = Sequence[Mapping[str, Any]]
# A train set that a short split leaves must have so many rows.
FEWEST_TRAIN = 32


@dataclass(frozen=True)
class Source:
    """Where a data set lies on the hub.

    Attributes:
        path, config: of the data set.
        held_out: the split that a task is tested on.
        revision: a branch, None for the main one.
        labelled: the field whose rows with -1 have no label and are left out; "" for none.
    """

    path: str
    config: str | None = None
    held_out: str = "validation"
    revision: str | None = None
    labelled: str = ""


def draw(num_rows: int, count: int, seed: int) -> NDArray[np.int64]:
    """Row numbers of a draw without replacement: int64, `count` of them, or `num_rows` where there are no more."""
    return np.random.RandomState(seed).permutation(num_rows)[:count].astype(np.int64)


def draw_train(
    name: str, num_rows: int, num_train: int, num_dev: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row numbers of the train and of the dev set, from one draw.

    Of fewer than `num_train` + `num_dev` rows the dev set still takes its `num_dev`, the train set the rest.

    Raises:
        UserError: that would leave fewer than `FEWEST_TRAIN` rows for training.
    """
    drawn = draw(num_rows, num_train + num_dev, seed)
    left = len(drawn) - num_dev
    if left < num_train:
        asked = f"fewer than num_train + num_dev = {num_train} + {num_dev}"
        if left < FEWEST_TRAIN:
            raise UserError(f"{name} has {num_rows} training rows, {asked}; lower NUM_TRAIN or NUM_DEV")
        warnings.warn(f"{name} has {num_rows} training rows, {asked}: {left} are trained on", stacklevel=2)
    return drawn[:left], drawn[left:]


def local_rows(folder: Path, split: str) -> Rows:
    return read_jsonl(folder / f"{split}.jsonl")


def hub_rows(path: str, name: str | None, split: str) -> list[dict[str, Any]]:
    """All rows of a split."""
    return _hub_split(Source(path, name), split).to_list()


def source_rows(source: Source, split: str, label: str = "", classes: Sequence[str] = ()) -> Rows:
    """Rows of a split, "train" or "validation", read one by one.

    Args:
        label, classes: the field that holds the label, and what the task takes its numbers to mean.

    Raises:
        UserError: the hub cannot be reached, or its labels mean something else.
    """
    found = _hub_split(source, "train" if split == "train" else source.held_out)
    names = getattr(found.features.get(label), "names", None)
    if names is not None and classes and list(names) != list(classes):
        raise UserError(f"{source.path}: {label} has the classes {list(names)}, not {list(classes)}")
    return found


def with_labels(rows: Rows, field: str) -> Rows:
    """Rows whose `field` is not -1, in their order; all where no field is named."""
    if not field:
        return rows
    if hasattr(rows, "select"):  # a data set of the hub: the column alone is read
        return rows.select(np.flatnonzero(np.asarray(rows[field]) != -1))  # type: ignore[call-overload]
    return [row for row in rows if row.get(field) != -1]


def _hub_split(source: Source, split: str) -> Any:
    try:
        import datasets

        return datasets.load_dataset(source.path, source.config, split=split, revision=source.revision)
    except ImportError as error:
        raise UserError("package 'datasets' is missing; install it or set DATA_DIR") from error
    except Exception as error:  # the hub client raises a dozen unrelated types when it is offline
        label = f"{source.path}/{source.config}" if source.config else source.path
        reason = one_line(error)[:160]
        raise UserError(f"cannot load {label} from the hub ({reason}); set DATA_DIR to a local copy") from error
