"""Unlearn on disguised noisy copies and merge: `python -m pum.run_pum --help`.

Writes the merged model, `privacy.json`, `metrics.json`, `evals/` and the inner runs' folders into `--output_dir`.
Arguments carry the names of the run guide; those that are null by default take "null" as a value.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from transformers import PrinterCallback

from pum.arguments import PUMArguments
from pum.pum_trainer import PUMTrainer
from pum.unlearn.running import RunArguments, finish, load, prepare_folder, unlearn_data, watch
from src.utils import Parser, run_cli


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line; raises `UserError` before anything is written where the input is wrong."""
    words = drop_nulls(sys.argv[1:] if argv is None else argv)
    run, args = Parser((RunArguments, PUMArguments)).parse(words)
    loaded = load(run, args.device)
    data = unlearn_data(loaded, run, args)
    trainer = PUMTrainer(loaded.model, args, data, processing_class=loaded.tokenizer)
    trainer.remove_callback(PrinterCallback)
    watched = watch(trainer, loaded, run)
    prepare_folder(Path(args.output_dir), run)
    begin = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - begin
    privacy = trainer.privacy()
    extra = {"method": args.method, "kind": "PUM", "lora": args.lora, "privacy": privacy}
    finish(trainer.model, loaded, run, args, train_seconds=seconds, extra=extra, watched=watched)
    print(summary(privacy))


def drop_nulls(argv: Sequence[str]) -> list[str]:
    """`argv` without the pairs `--name null` whose argument is null by default anyway."""
    nullable = {
        f"--{item.name}"
        for arguments in (RunArguments, PUMArguments)
        for item in fields(arguments)
        if item.default is None and item.default_factory is MISSING
    }
    kept: list[str] = []
    for word in argv:
        if word == "null" and kept and kept[-1] in nullable:
            kept.pop()
        else:
            kept.append(word)
    return kept


def summary(privacy: dict[str, Any]) -> str:
    """What the run says about the server's weights, in a few lines."""
    lines = [f"secrets             {privacy['secrets']}"]
    for name in ("paper", "joint"):
        bound = privacy[name]
        epsilon = "none" if bound["epsilon"] is None else f"{bound['epsilon']:.4g} at delta {privacy['delta']:g}"
        lines.append(f"epsilon, {name:<11}{epsilon} ({bound['why']})")
    for key, text in (("published_bare", "published bare"), ("bound_void_for", "bound void for")):
        found = privacy[key]
        names = ", ".join(found["parameters"][:3]) + (", ..." if len(found["parameters"]) > 3 else "")
        lines.append(f"{text:<20}{found['share']:.1%} of the weights" + (f": {names}" if names else ""))
    return "\n".join(lines + [f"warning             {warning}" for warning in privacy["warnings"]])


if __name__ == "__main__":
    run_cli(main)
