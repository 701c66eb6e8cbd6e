"""Fine-tune a language model with PAC-MI, PAC-ZPL or a non-private ablation: `python -m paczo.run_paczo --help`.

Writes `metrics.json`, `transcript.jsonl`, `checkpoints/` and `private/` into `--output_dir`. With `--trainer none`
it evaluates the model as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

from paczo.pac_trainer import PACArguments, PACTrainer
from src.command import command
from src.utils import run_cli


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line; raises `UserError` before anything is written where the input is wrong."""
    command(PACArguments, PACTrainer, argv)


if __name__ == "__main__":
    run_cli(main)
