"""Fine-tune a language model with PAC-MI, PAC-ZPL or a non-private ablation: `python -m paczo.run_paczo --help`.

Writes `metrics.json`, `transcript.jsonl`, `checkpoints/` and `private/` into `--output_dir`.
"""

from __future__ import annotations

from collections.abc import Sequence

from paczo.pac_trainer import PACArguments, PACTrainer
from src.running import RunArguments, run
from src.utils import Parser, run_cli


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line; raises `UserError` before anything is written where the input is wrong."""
    settings, args = Parser((RunArguments, PACArguments)).parse(argv)
    run(settings, args, PACTrainer, argv)


if __name__ == "__main__":
    run_cli(main)
