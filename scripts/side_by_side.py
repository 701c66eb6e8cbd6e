"""Evaluated models side by side, and which of them have the same weights: NAME=FOLDER ...

python -m scripts.side_by_side "two parties=saves/unlearn/a" "one process=saves/unlearn/b"
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from safetensors import safe_open

from src.tofu.runs import ROWS
from src.utils import UserError, run_cli


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table of `evals/TOFU_SUMMARY.json` in each folder; raises `UserError` where one is missing."""
    words = sys.argv[1:] if argv is None else argv
    folders = {name: Path(folder) for name, _, folder in (word.partition("=") for word in words)}
    columns = {name: _summary(folder) for name, folder in folders.items()}
    print(" " * 22 + "".join(f"{name:>16}" for name in columns))
    for title, key in ROWS:
        values = [column.get(key) for column in columns.values()]
        if any(value is not None for value in values):
            print(f"{title:<22}" + "".join(f"{'-' if v is None else format(v, '.6g'):>16}" for v in values))
    for (left, first), (right, second) in pairwise(folders.items()):
        print(f"{left} and {right}: weights {'equal bit for bit' if _equal(first, second) else 'differ'}")


def _summary(folder: Path) -> dict[str, float | None]:
    path = folder / "evals" / "TOFU_SUMMARY.json"
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}; evaluate the model first") from error


def _equal(left: Path, right: Path) -> bool:
    """Whether two model folders hold the same tensors, compared one at a time."""
    with safe_open(left / "model.safetensors", "pt") as a, safe_open(right / "model.safetensors", "pt") as b:
        if set(a.keys()) != set(b.keys()):
            return False
        return all(
            x.dtype == y.dtype and x.equal(y)
            for x, y in ((a.get_tensor(name), b.get_tensor(name)) for name in a.keys())  # noqa: SIM118
        )


if __name__ == "__main__":
    run_cli(main)
