"""Unlearn on disguised noisy copies and merge: `python -m pum.run_pum --help`.

Writes the merged model, `privacy.json`, `metrics.json`, `evals/` and the inner runs' folders into `--output_dir`.
Arguments carry the names of the run guide; those that are null by default take "null" as a value. A command that
was killed goes on when it is given again. Several processes (`accelerate launch`) share the copies.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from transformers import PrinterCallback

from pum.arguments import PUMArguments
from pum.privacy import summary
from pum.private import remove
from pum.publish import without_nulls
from pum.pum_trainer import PRIVATE, PUMTrainer
from pum.unlearn.on_the_way import EvaluationOnTheWay
from pum.unlearn.running import Loaded, RunArguments, finish, load, prepare_folder, unlearn_data, watch
from pum.workers import Workers, join
from src.utils import Parser, run_cli


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line; raises `UserError` before anything is written where the input is wrong."""
    words = drop_nulls(sys.argv[1:] if argv is None else argv)
    if Parser(RunArguments).parse_known(words).check_only:
        Parser((RunArguments, PUMArguments)).parse(words)
        return
    workers = join()
    # What is wrong with the input, the first process finds and says.
    if not workers.is_first and workers.wait("ready 0"):
        return
    prepared: list[tuple[RunArguments, Loaded, PUMTrainer, EvaluationOnTheWay | None]] = []

    def prepare() -> bool:
        prepared.append(_prepare(words, workers))
        return workers.is_first and _has_ended(prepared[0][2])

    ended = workers.tell(f"ready {workers.rank}", prepare)
    ((run, loaded, trainer, watched),) = prepared
    if ended:
        remove(trainer.run_dir / PRIVATE)
        print(f"wrote {trainer.run_dir}")
        return
    begin = time.perf_counter()
    trainer.train(keeps_private=True)
    if not workers.is_first:
        return
    seconds = time.perf_counter() - begin
    privacy = trainer.privacy()
    extra = {"method": trainer.args.method, "kind": "PUM", "lora": trainer.args.lora, "privacy": privacy}
    finish(trainer.model, loaded, run, trainer.args, train_seconds=seconds, extra=extra, watched=watched)
    trainer.discard_private()
    print(summary(privacy))


def _prepare(
    words: Sequence[str], workers: Workers
) -> tuple[RunArguments, Loaded, PUMTrainer, EvaluationOnTheWay | None]:
    """All that can be wrong is found here; the first process then makes the run's folder."""
    run, args = Parser((RunArguments, PUMArguments)).parse(words)
    loaded = load(run, args.device)
    data = unlearn_data(loaded, run, args)
    folder = Path(args.output_dir)
    replaces = run.overwrite_output_dir or (folder / "SMOKE").exists()
    trainer = PUMTrainer(loaded.model, args, data, processing_class=loaded.tokenizer, workers=workers)
    trainer.remove_callback(PrinterCallback)
    watched = watch(trainer, loaded, run, here=workers.is_first)
    if workers.is_first and (run.overwrite_output_dir or not trainer.is_interrupted):
        prepare_folder(folder, run)
        if replaces:
            shutil.rmtree(folder / PRIVATE, ignore_errors=True)
    return run, loaded, trainer, watched


def _has_ended(trainer: PUMTrainer) -> bool:
    """Whether the run was killed when all was there and its private folder was being removed."""
    return trainer.is_interrupted and (trainer.run_dir / "metrics.json").exists()


def drop_nulls(argv: Sequence[str]) -> list[str]:
    """`argv` without the pairs `--name null` whose argument is null by default anyway."""
    return without_nulls(argv, RunArguments, PUMArguments)


if __name__ == "__main__":
    run_cli(main)
