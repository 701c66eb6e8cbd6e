"""Fine-tune a language model with DPZero or DP-AggZO: `python -m baselines.run_dp_zo --help`.

Writes `metrics.json`, `transcript.jsonl` and `checkpoints/` into `--output_dir`.
"""

from __future__ import annotations

from collections.abc import Sequence

from baselines.dp_zo import DPArguments, DPZOTrainer
from src.command import command
from src.utils import run_cli


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line; raises `UserError` before anything is written where the input is wrong."""
    command(DPArguments, DPZOTrainer, argv)


if __name__ == "__main__":
    run_cli(main)
