"""What every training command shares: its arguments, the run's folder, loading, evaluation, `metrics.json`.

A command is `run(...)` with a trainer class of its own: `paczo.run_paczo`, `baselines.run_dp_zo`.
"""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from src.engine.processes import is_first, on_first
from src.lora import LoraSettings, add_lora
from src.models import load_model
from src.objectives import Objective
from src.record.digest import configuration_digest, digest_path
from src.tasks import LOSSES, Limits, Splits, Task, get_task
from src.utils import UserError, precision, versions, write_json
from src.zo.arguments import ZOArguments

RUN_FILES = ("metrics.json", "transcript.jsonl", "checkpoints", "private", "hub")


@dataclass
class RunArguments:
    """What is trained, on what, from which weights."""

    task_name: str = field(default="SST2", metadata={"help": "A task of src/tasks.py."})
    model_name: str = field(
        default="facebook/opt-1.3b", metadata={"help": "Hub id, local folder or embedded name (smollm2-135m)."}
    )
    num_train: int = field(default=1000, metadata={"help": "Training samples, N."})
    num_dev: int = field(default=500, metadata={"help": "Dev samples, drawn after the training samples."})
    num_eval: int = field(default=1000, metadata={"help": "Test samples at most, from the validation split."})
    train_set_seed: int = field(default=0, metadata={"help": "Draw of the training and dev sets."})
    dtype: str = field(default="auto", metadata={"help": "Of the weights: auto, float32, float16, bfloat16."})
    lora: bool = field(default=False, metadata={"help": "Train LoRA adapters instead of all parameters."})
    lora_r: int = field(default=8, metadata={"help": "Rank of the adapters."})
    lora_alpha: float = field(default=16.0, metadata={"help": "Scale of the adapters, alpha."})
    lora_dtype: str | None = field(default=None, metadata={"help": "Of the adapters; default: the model's."})
    opt_bos: str = field(
        default="<s>", metadata={"help": "First token of OPT prompts: <s> (recipe) or </s> (pretraining)."}
    )
    train_as_classification: bool = field(
        default=False, metadata={"help": "Loss: cross-entropy over the candidates' scores (SST2's own)."}
    )
    non_diff: bool = field(
        default=False, metadata={"help": "Loss: minus the F1 of the generated answer (SQuAD's own)."}
    )
    only_train_option: bool = field(default=False, metadata={"help": "Loss: mean NLL of the answer's tokens."})
    max_new_tokens: int = field(default=50, metadata={"help": "Tokens generated for an answer at most."})
    token_budget: int | None = field(default=None, metadata={"help": "Padded tokens in one micro-batch."})
    smoke: bool = field(default=False, metadata={"help": "Mark the run as a check: any later run may replace it."})
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Delete the run that is in output_dir first."}
    )

    def __post_init__(self) -> None:
        for name in ("num_train", "num_dev", "num_eval", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        chosen = [name for name in LOSSES if getattr(self, name)]
        if len(chosen) > 1:
            raise UserError(f"choose one loss: {' and '.join(f'--{name}' for name in chosen)} exclude each other")

    def loss(self, task: Task) -> str:
        """The chosen loss, or the task's own; `UserError` where the task has no such loss."""
        name = next((name for name in LOSSES if getattr(self, name)), task.own_loss)
        task.check_loss(name)
        return name


def run(
    settings: RunArguments,
    args: ZOArguments,
    make_trainer: Callable[..., Any],
    words: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Train and evaluate once; returns what is written to `metrics.json` (in the run's first process).

    Args:
        settings, args: what to run.
        make_trainer: a `ZOTrainer` with `privacy()`, called as its class is.
        words: the command line, for the configuration's digest; None for the process's own.

    Raises:
        UserError: the input is wrong; nothing was overwritten.
    """
    task = get_task(settings.task_name)
    loss = settings.loss(task)
    if args.load_best_model_at_end:
        args.metric_for_best_model = task.metric_for_best_model
        args.greater_is_better = not task.metric_for_best_model.endswith("loss")
    data_dir = os.environ.get("DATA_DIR") or None
    splits = task.splits(
        data_dir,
        num_train=settings.num_train,
        num_dev=settings.num_dev,
        num_eval=settings.num_eval,
        train_set_seed=settings.train_set_seed,
    )
    digest = configuration_digest(sys.argv[1:] if words is None else words, data_dir)
    run_dir = Path(str(args.output_dir))
    resume = args.resume_from_checkpoint not in (None, "False", "false", "")
    check = _check_resumable if resume else check_run_dir
    on_first(lambda: check(run_dir, overwrite=settings.overwrite_output_dir))
    model, tokenizer = load_trainable(settings, args)
    train, dev, test = _objectives(settings, task, loss, splits, model, tokenizer)
    public = {
        "task": settings.task_name,
        "loss": loss,
        "base_model": settings.model_name,
        "train_set_seed": settings.train_set_seed,
    }
    trainer = make_trainer(model, args, train, dev, processing_class=tokenizer, public=public)
    if not resume:  # not before all that can be wrong is known to be right: it may remove an old run
        on_first(lambda: prepare_run_dir(run_dir, overwrite=settings.overwrite_output_dir, smoke=settings.smoke))
    begin = time.perf_counter()
    before = {**trainer.evaluate(), **trainer.evaluate(test, metric_key_prefix="test")}
    trainer.train()
    after = {**trainer.evaluate(), **trainer.evaluate(test, metric_key_prefix="test")}
    if not is_first():
        return {}
    metrics = {
        "before": _scores(before),
        "after": _scores(after),
        **_facts(trainer, time.perf_counter() - begin),
        "data": data_dir or "hub",
        "configuration": {**asdict(settings), **args.to_dict(), "dtype": str(model.dtype), "loss": loss},
    }
    _write_digest(run_dir, digest)
    write_json(run_dir / "metrics.json", metrics)
    print(summary_table(metrics))
    print(f"wrote {run_dir / 'metrics.json'}")
    return metrics


def _facts(trainer: Any, seconds: float) -> dict[str, Any]:
    """What a finished run says of itself: guarantee, steps, timing, device, versions."""
    return {
        "privacy": trainer.privacy(),
        "steps": trainer.state.global_step,
        "best_step": trainer.state.best_global_step,
        "seconds": {
            "total": seconds,
            # A resumed run may have had no step left to take.
            "per_step_median": statistics.median(trainer.step_seconds) if trainer.step_seconds else None,
        },
        "device": _device_name(trainer.args.device),
        "processes": trainer.args.world_size,
        "versions": versions(),
    }


def _runs_files(run_dir: Path) -> list[Path]:
    return [path for name in RUN_FILES if (path := run_dir / name).exists()]


def check_run_dir(run_dir: Path, *, overwrite: bool) -> None:
    """Refuse a folder that holds a run, unless that is a smoke check or is to be overwritten."""
    found = _runs_files(run_dir)
    if found and not overwrite and not (run_dir / "SMOKE").exists():
        names = ", ".join(path.name for path in found)
        raise UserError(
            f"{run_dir} already holds a run ({names}); choose another --output_dir or add --overwrite_output_dir"
        )


def prepare_run_dir(run_dir: Path, *, overwrite: bool, smoke: bool) -> None:
    """Make the run's folder. A run that is in it is removed if `check_run_dir` lets it."""
    check_run_dir(run_dir, overwrite=overwrite)
    marker = run_dir / "SMOKE"
    try:
        for path in [*_runs_files(run_dir), *([marker] if marker.exists() else [])]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        run_dir.mkdir(parents=True, exist_ok=True)
        if smoke:
            marker.touch()
    except OSError as error:
        raise UserError(f"cannot use the output folder {run_dir}: {error.strerror}") from error


def _check_resumable(run_dir: Path, *, overwrite: bool) -> None:
    if overwrite:
        raise UserError("a run is either resumed or overwritten: drop one of the two options")
    if (run_dir / "metrics.json").exists():
        raise UserError(f"the run in {run_dir} is finished; there is nothing to resume")
    if not any((run_dir / name).exists() for name in ("transcript.jsonl", "private")):
        raise UserError(f"{run_dir} holds no run to resume")


def _write_digest(run_dir: Path, digest: str) -> None:
    """Before `metrics.json`, which marks the run as finished."""
    path = digest_path(run_dir)
    path.parent.mkdir(exist_ok=True, mode=0o700)
    path.touch(mode=0o600)
    path.write_text(digest + "\n", encoding="utf-8")


def load_trainable(settings: RunArguments, args: ZOArguments) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """The model on its device, with adapters where asked for, and its tokenizer."""
    dtype = precision(settings.dtype, args.device)
    model, tokenizer = load_model(settings.model_name, dtype, args.device, opt_bos=settings.opt_bos)
    if not settings.lora:
        return model, tokenizer
    adapters = LoraSettings(settings.lora_r, settings.lora_alpha, seed=args.seed, dtype=settings.lora_dtype)
    return add_lora(model, adapters), tokenizer


def _objectives(
    settings: RunArguments,
    task: Task,
    loss: str,
    splits: Splits,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[Objective, Objective, Objective]:
    """Of the training, dev and test sets; the training loss is the one the flags choose."""
    limits = Limits(settings.token_budget, settings.max_new_tokens)
    try:
        return (
            task.training_objective(loss, model, tokenizer, splits.train, limits),
            task.objective(model, tokenizer, splits.dev, limits),
            task.objective(model, tokenizer, splits.test, limits),
        )
    except ValueError as error:
        raise UserError(f"{settings.task_name} does not fit {settings.model_name}: {error}") from error


def _scores(metrics: dict[str, float]) -> dict[str, dict[str, float]]:
    """{"dev": {...}, "test": {...}} of a trainer's flat metrics, without the library's speed figures."""
    names = ("loss", "accuracy", "f1")
    return {
        split: {name: metrics[f"{prefix}_{name}"] for name in names if f"{prefix}_{name}" in metrics}
        for split, prefix in (("dev", "eval"), ("test", "test"))
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine() + " CPU"


def summary_table(metrics: dict[str, Any]) -> str:
    """The run in a few lines: scores before and after, what was spent, and what that bounds."""
    privacy, before, after = metrics["privacy"], metrics["before"], metrics["after"]
    lines = [("", "before", "after")]
    for split in ("dev", "test"):
        for name, value in after[split].items():
            lines.append((f"{split} {name}", f"{before[split][name]:.4f}", f"{value:.4f}"))
    rows = [f"{a:<16}{b:>10}{c:>10}" for a, b, c in lines]
    releases = ", ".join(f"{count} {kind}" for kind, count in privacy["releases"].items()) or "none"
    rows.append(f"mechanism       {privacy['mechanism']} ({privacy['secrets']})")
    rows.append(f"releases        {releases}")
    rows += _guarantee(privacy)
    seconds = metrics["seconds"]["per_step_median"]
    if seconds is not None:
        rows.append(f"seconds a step  {seconds:.3f}")
    return "\n".join(rows)


def _guarantee(privacy: dict[str, Any]) -> list[str]:
    if "posterior_success_bound" not in privacy:
        return [f"guarantee       {privacy['guarantee']}"]
    bound = f"attack success  at most {privacy['posterior_success_bound']:.4f}"
    if "budget_nats" not in privacy:
        return [
            f"guarantee       epsilon {privacy['epsilon']:g} at delta {privacy['delta']:g},"
            f" noise multiplier {privacy['noise_multiplier']:g}",
            f"{bound} (prior {privacy['prior_success']:.4f})",
        ]
    epsilon = "" if privacy["epsilon"] is None else f", as epsilon {privacy['epsilon']:.2f}"
    rates = ", ".join(f"{most:.4f} at FPR {fpr}" for fpr, most in privacy["tpr_bounds"].items())
    return [
        f"nats            {privacy['spent_nats']:.6g} spent of {privacy['budget_nats']:.6g}",
        f"{bound} (prior {privacy['prior_success']:.4f}{epsilon})",
        f"true positives  at most {rates}",
        f"naming S*       at most {privacy['naming_success_bound']:.4f}",
    ]
