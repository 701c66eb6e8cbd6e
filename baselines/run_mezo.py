"""Fine-tune a language model with MeZO, without privacy: `python -m baselines.run_mezo --help`.

Writes `metrics.json`, `transcript.jsonl` and `checkpoints/` into `--output_dir`.
"""

from __future__ import annotations

from collections.abc import Sequence

from baselines.mezo import MeZOArguments, MeZOTrainer
from src.command import command
from src.utils import run_cli

# The source's word for it; on several devices its batch was that of one.
RENAMED = {f"per_{what}_train_batch_size": "zo_batch_size" for what in ("device", "gpu")}


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line; raises `UserError` before anything is written where the input is wrong."""
    command(MeZOArguments, MeZOTrainer, argv, renamed=RENAMED)


if __name__ == "__main__":
    run_cli(main)
