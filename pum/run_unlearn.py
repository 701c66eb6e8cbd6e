"""Unlearn with an ordinary method, or make and evaluate the models around it.

    python -m pum.run_unlearn [unlearn] ...   unlearn the forget split with --method, save and evaluate
    python -m pum.run_unlearn retain-log ...  fine-tune on the retain split and evaluate: the log of forget_quality
    python -m pum.run_unlearn finetune ...    fine-tune on the full set: the model to unlearn from
    python -m pum.run_unlearn evaluate ...    evaluate a model
    python -m pum.run_unlearn tiny ...        make tiny models of the data, for checks; prints their folder

Each takes --help. Results lie in --output_dir: model, `metrics.json`, and `evals/` in open-unlearning's layout.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PrinterCallback, Trainer, TrainingArguments

from pum.unlearn.arguments import UnlearnArguments
from pum.unlearn.finetune import FinetuneArguments, FinetuneTrainer
from pum.unlearn.running import (
    RunArguments,
    evaluation_of,
    finish,
    load,
    prepare_folder,
    read_rows,
    unlearn_data,
    watch,
)
from pum.unlearn.tiny import tiny_models
from pum.unlearn.trainer import UnlearnTrainer
from src.engine.processes import is_first, on_first
from src.lora import LoraSettings, add_lora
from src.tofu.evaluation import evaluate
from src.tofu.logs import EVAL, scores_of
from src.tofu.rows import full_rows
from src.utils import Parser, UserError, run_cli

SHOWN = (
    "forget_quality",
    "model_utility",
    "forget_truth_ratio",
    "forget_Q_A_Prob",
    "retain_Q_A_Prob",
    "forget_Q_A_ROUGE",
    "extraction_strength",
    "privleak",
)


@dataclass
class LoraArguments:
    """Whether adapters are trained instead of all parameters; they are merged before the model is saved."""

    lora: bool = field(default=False, metadata={"help": "Train LoRA adapters instead of all parameters."})
    lora_r: int = field(default=8, metadata={"help": "Rank of the adapters."})
    lora_alpha: float = field(default=16.0, metadata={"help": "Scale of the adapters, alpha."})

    def __post_init__(self) -> None:
        LoraSettings(self.lora_r, self.lora_alpha)  # refuses what it cannot take

    def wrap(self, model: nn.Module, seed: int) -> nn.Module:
        if not self.lora:
            return model
        return add_lora(model, LoraSettings(self.lora_r, self.lora_alpha, seed=seed))  # type: ignore[arg-type]


def unlearn(argv: Sequence[str]) -> None:
    run, lora, args = Parser((RunArguments, LoraArguments, UnlearnArguments)).parse(argv)
    if run.check_only:
        return
    loaded = load(run, args.device)
    data = unlearn_data(loaded, run, args)
    model = lora.wrap(loaded.model, args.seed)
    trainer = UnlearnTrainer(model, args, data, processing_class=loaded.tokenizer)
    watched = watch(trainer, loaded, run, here=is_first())
    on_first(lambda: prepare_folder(Path(args.output_dir), run))
    seconds = timed_training(trainer)
    if not is_first():
        return
    extra = {"method": args.method, "kind": "plain", "lora": lora.lora}
    metrics = finish(model, loaded, run, args, train_seconds=seconds, extra=extra, watched=watched)
    print_scores(metrics["scores"])


def finetune(argv: Sequence[str]) -> None:
    """On the full set."""
    run, lora, args = Parser((RunArguments, LoraArguments, FinetuneArguments)).parse(argv)
    _finetune(run, lora, args, kind="full")


def retain_log(argv: Sequence[str]) -> None:
    """On the retain split; its evaluation is the log that forget quality compares with."""
    run, lora, args = Parser((RunArguments, LoraArguments, FinetuneArguments)).parse(argv)
    if run.forget_path is not None or not run.evaluate:
        raise UserError("a retain log is TOFU's evaluation: drop --forget_path and --no_evaluate")
    _finetune(run, lora, args, kind="retain")
    print(f"retain log: {Path(args.output_dir) / 'evals' / EVAL}")


def _finetune(run: RunArguments, lora: LoraArguments, args: FinetuneArguments, *, kind: str) -> None:
    if args.output_dir is None or args.output_dir == "trainer_output":  # the library's own default
        args.output_dir = f"saves/finetune/{Path(run.model_name).name}_{run.forget_split}_{kind}"
    loaded = load(run, args.device)
    rows = loaded.split.retain
    if kind == "full":
        rows = rows + loaded.split.forget
        if run.forget_path is None and not run.holdout_rows and run.max_retain is None:
            rows = full_rows(run.data_dir)  # in the data set's own order
    encoded = loaded.encode(rows)
    model = lora.wrap(loaded.model, args.seed)
    trainer = FinetuneTrainer(model, args, encoded, processing_class=loaded.tokenizer)
    prepare_folder(Path(args.output_dir), run)
    seconds = timed_training(trainer)
    extra = {"kind": f"fine-tuned on {kind}", "lora": lora.lora}
    is_retain = kind == "retain"
    metrics = finish(model, loaded, run, args, train_seconds=seconds, extra=extra, is_retain_model=is_retain)
    print_scores(metrics["scores"])


def evaluate_model(argv: Sequence[str]) -> None:
    """Into <output_dir>/evals; an evaluation that is there already and still true is not repeated."""
    run, args = Parser((RunArguments, TrainingArguments)).parse(argv)
    loaded = load(run, args.device)
    folder = Path(args.output_dir) / "evals"
    log, was_there = evaluate(evaluation_of(loaded.model, loaded.tokenizer, run), folder)
    print_scores(scores_of(log))
    print(f"{'unchanged since it was written: ' if was_there else 'wrote '}{folder}")


def tiny(argv: Sequence[str]) -> None:
    run, _ = Parser((RunArguments, TrainingArguments)).parse(argv)
    folder = tiny_models(read_rows(run), run, Path("saves/tiny"))
    print(folder)


def timed_training(trainer: Trainer) -> float:
    """Train and return the seconds it took. Losses go to the log, not line by line to the screen."""
    trainer.remove_callback(PrinterCallback)
    begin = time.perf_counter()
    trainer.train()
    trainer.model.eval()  # type: ignore[union-attr]
    return time.perf_counter() - begin


def print_scores(scores: dict[str, Any]) -> None:
    for name in SHOWN:
        if name in scores:
            value = scores[name]
            print(f"{name:<22}{'open' if value is None else format(value, '.4g'):>12}")


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "unlearn": unlearn,
    "retain-log": retain_log,
    "finetune": finetune,
    "evaluate": evaluate_model,
    "tiny": tiny,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run one of `COMMANDS`, `unlearn` where none is named; raises `UserError` before anything is written."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in ("-h", "--help"):
        print(__doc__)
        return
    name = "unlearn"
    if words and not words[0].startswith("-"):
        name = words.pop(0)
    if name not in COMMANDS:
        raise UserError(f"unknown command '{name}'; known: {', '.join(COMMANDS)}")
    COMMANDS[name](words)


if __name__ == "__main__":
    run_cli(main)
