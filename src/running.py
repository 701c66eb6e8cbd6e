"""What every training run shares: drawing samples, loading the model, evaluation, the run's folder.

A command is `src.command.command` with arguments and a trainer class of its own: `paczo.run_paczo`,
`baselines.run_dp_zo`.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.integrations import get_reporting_integration_callbacks

from src.arguments import RunArguments
from src.engine.processes import is_first, on_first
from src.ht_opt import HeadSettings, add_head, candidate_tokens
from src.interrupt import StopOnSignal
from src.lora import LoraSettings, add_lora
from src.models import load_model
from src.objectives import Objective
from src.prefix import PrefixSettings, add_prefix
from src.record.digest import configuration_digest
from src.record.folder import check_resumable, check_run_dir, prepare_run_dir
from src.results import DEV_LABEL, answers, by_split, check_flat_path, flat_path, machine, show, write_results
from src.samples import Sample
from src.tasks import Splits, Task, get_task
from src.utils import UserError, one_line, precision
from src.zo.arguments import ZOArguments


def run(
    settings: RunArguments,
    args: ZOArguments,
    make_trainer: Callable[..., Any],
    words: Sequence[str] | None = None,
    *,
    number: int = 0,
) -> dict[str, Any]:
    """Train and evaluate once; returns what is written to `metrics.json` (in the run's first process).

    Args:
        settings, args: what to run.
        make_trainer: a `ZOTrainer` with `privacy()`, called as its class is.
        words: the command line, for the configuration's digest; None for the process's own.
        number: of the train set, for the flat file's name.

    Raises:
        UserError: the input is wrong; nothing was overwritten.
    """
    task = get_task(settings.task_name)
    loss = settings.loss(task)
    _choose_best_by(settings, args, task)
    data_dir = os.environ.get("DATA_DIR") or None
    with _unsaid(args.rows_are_secret):
        splits = _splits(settings, task, data_dir)
    digest = configuration_digest(sys.argv[1:] if words is None else words, data_dir)
    run_dir, flat_file = Path(str(args.output_dir)), flat_path(settings, number)
    check_flat_path(flat_file, run_dir)
    resume = args.resume_from_checkpoint not in (None, "False", "false", "")
    check = check_resumable if resume else check_run_dir
    on_first(lambda: check(run_dir, overwrite=settings.overwrite_output_dir))
    _check_reports(args)
    model, tokenizer = load_trainable(settings, args, task, splits.train[0])
    train, dev, test = _objectives(settings, args, task, loss, splits, model, tokenizer)
    public = {
        "task": settings.task_name,
        "loss": loss,
        "base_model": settings.model_name,
        "train_set_seed": settings.train_set_seed,
        **({"train_on": settings.train_on} if settings.train_on != "train" else {}),
    }
    trainer = make_trainer(model, args, train, dev, processing_class=tokenizer, public=public)
    if settings.save_on_interrupt:
        trainer.add_callback(StopOnSignal())
    if not resume:  # not before all that can be wrong is known to be right: it may remove an old run
        trainer.check_new()
        on_first(lambda: prepare_run_dir(run_dir, overwrite=settings.overwrite_output_dir, smoke=settings.smoke))
    begin = time.perf_counter()
    before = {} if settings.no_eval else _evaluated(trainer, dev, test)
    trainer.train()
    after = {} if settings.no_eval else _evaluated(trainer, dev, test)
    if settings.save_model:
        trainer.save_model(str(run_dir / "model"))
    given = answers(splits.test, test) if settings.verbose else []
    if not is_first():
        return {}
    metrics = {
        "before": by_split(before),
        "after": by_split(after),
        **_facts(trainer, time.perf_counter() - begin),
        "data": data_dir or "hub",
        **({"label": DEV_LABEL} if settings.train_on == "dev" else {}),
        "configuration": {**asdict(settings), **args.to_dict(), "dtype": str(model.dtype), "loss": loss},
    }
    show(splits.test[: len(given)], [""] * len(given), given)
    write_results(run_dir, metrics, digest, flat_file)
    return metrics


def load_trainable(
    settings: RunArguments, args: ZOArguments, task: Task, sample: Sample
) -> tuple[nn.Module, PreTrainedTokenizerBase]:
    """The model on its device, with what the track trains, and its tokenizer.

    Args:
        sample: one of the task's, to see how its candidates stand behind a prompt.
    """
    if settings.untie_emb and settings.track != "head":
        raise UserError("--untie_emb belongs to --head_tuning, whose head always has weights of its own")
    dtype = precision(settings.dtype, args.device)
    model, tokenizer = load_model(settings.model_name, dtype, args.device, opt_bos=settings.opt_bos)
    if settings.track == "lora":
        adapters = LoraSettings(
            settings.lora_r,
            settings.lora_alpha,
            seed=args.seed,
            dtype=settings.lora_dtype,
            layers=settings.lora_layers,
        )
        return add_lora(model, adapters), tokenizer
    if settings.track == "prefix":
        prefix = PrefixSettings(
            settings.num_prefix, settings.prefix_init_by_real_act, seed=args.seed, no_reparam=settings.no_reparam
        )
        return add_prefix(model, prefix), tokenizer
    if settings.track == "head":
        return add_head(model, _head_settings(tokenizer, task, sample)), tokenizer
    return model, tokenizer


def _head_settings(tokenizer: PreTrainedTokenizerBase, task: Task, sample: Sample) -> HeadSettings:
    """The candidates' rows where all of the task's samples have the same ones, else the whole head."""
    if sample.continuations != tuple(task.template.words):
        return HeadSettings(rows="all")
    return HeadSettings(tokens=candidate_tokens(tokenizer, sample.prompt, sample.continuations))


def _choose_best_by(settings: RunArguments, args: ZOArguments, task: Task) -> None:
    """Sets what the best checkpoint is best at; `UserError` where a dev set is asked for and there is none."""
    without = settings.num_dev == 0 or settings.train_on == "dev"
    if without and (args.load_best_model_at_end or args.eval_strategy != "no"):
        wanted = "the best checkpoint is chosen" if args.load_best_model_at_end else "--eval_strategy evaluates"
        raise UserError(f"{wanted} on a dev set, and this run has none: drop that option, or give --num_dev")
    if args.load_best_model_at_end:
        args.metric_for_best_model = task.metric_for_best_model
        args.greater_is_better = not task.metric_for_best_model.endswith("loss")


def _splits(settings: RunArguments, task: Task, data_dir: str | None) -> Splits:
    """The drawn samples; with `train_on` dev the dev set is trained on, and there is none."""
    assert settings.num_train is not None
    assert settings.num_dev is not None
    drawn = task.splits(
        data_dir,
        num_train=settings.num_train,
        num_dev=settings.num_dev,
        num_eval=settings.num_eval or None,
        train_set_seed=settings.train_set_seed or 0,
    )
    return Splits(drawn.dev, [], drawn.test) if settings.train_on == "dev" else drawn


def _check_reports(args: ZOArguments) -> None:
    """`UserError` where what `report_to` names is unknown or not installed."""
    names: Any = args.report_to
    try:
        for callback in get_reporting_integration_callbacks(names):
            callback()
    except (ImportError, RuntimeError, ValueError) as error:
        raise UserError(f"--report_to {' '.join(names)}: {one_line(error)}") from error


@contextmanager
def _unsaid(secret: bool) -> Iterator[None]:
    """Inside, where `secret`, no warning tells of single rows, or how many there are.

    Raises:
        UserError: a row does not fit; which one is not said.
    """
    if not secret:
        yield
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    except UserError:
        raise
    except ValueError:
        message = "a training row does not fit the model; which one, and why, is not said of secret rows"
        raise UserError(message) from None


def _objectives(
    settings: RunArguments,
    args: ZOArguments,
    task: Task,
    loss: str,
    splits: Splits,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
) -> tuple[Objective, Objective | None, Objective]:
    """Of the training, dev and test sets; the training loss is the one the flags choose."""
    limits, scoring = settings.limits(), settings.scoring(seed=args.seed)
    try:
        with _unsaid(args.rows_are_secret):
            train = task.training_objective(loss, model, tokenizer, splits.train, limits)
        return (
            train,
            task.objective(model, tokenizer, splits.dev, limits, scoring) if splits.dev else None,
            task.objective(model, tokenizer, splits.test, limits, scoring),
        )
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{settings.task_name} does not fit {settings.model_name}: {error}") from error


def _evaluated(trainer: Any, dev: Objective | None, test: Objective) -> dict[str, float]:
    found: dict[str, float] = {} if dev is None else trainer.evaluate()
    return {**found, **trainer.evaluate(test, metric_key_prefix="test")}


def _kept_front(trainer: Any) -> dict[str, int] | None:
    """Layers in front of the first trained one, and bytes of hidden states kept behind them; None without any."""
    # How many tokens a DP run's training set has would be released without noise.
    sets = {trainer.checked_objective(), trainer.eval_dataset}
    fronts = [front for data in sets if (front := getattr(data, "front", None)) is not None]
    if not any(front.depth for front in fronts):
        return None
    return {"layers": fronts[0].depth, "bytes": sum(front.kept_bytes for front in fronts)}


def _facts(trainer: Any, seconds: float) -> dict[str, Any]:
    """What a finished run says of itself: guarantee, steps, timing, device, versions."""
    return {
        "privacy": trainer.privacy(),
        "steps": trainer.state.global_step,
        "best_step": trainer.state.best_global_step,
        "evaluations": [entry for entry in trainer.state.log_history if "eval_loss" in entry],
        "derivative_check": trainer.derivative_check,
        "kept_front": _kept_front(trainer),
        "seconds": {
            "total": seconds,
            # A resumed run may have had no step left to take.
            "per_step_median": statistics.median(trainer.step_seconds) if trainer.step_seconds else None,
        },
        **machine(trainer.args.device, trainer.args.world_size),
    }
