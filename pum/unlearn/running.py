"""What plain and PUM runs share: their arguments, loading, saving, evaluation and the run's `metrics.json`."""

from __future__ import annotations

import os
import resource
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.utils.logging import disable_progress_bar

from pum.unlearn import get_method
from pum.unlearn.arguments import UnlearnArguments
from pum.unlearn.data import UnlearnData
from pum.unlearn.on_the_way import EvaluationOnTheWay
from src.models import load_model
from src.tofu.chat import DATE_STRING, ChatFormat, chat_format
from src.tofu.evaluation import EvalSettings, Evaluation, evaluate, load_eval_data, shared_settings
from src.tofu.logs import RetainLog, read_retain_log, scores_of
from src.tofu.metrics import probability
from src.tofu.passes import teacher_forced
from src.tofu.prompts import encode_rows, row_sequences
from src.tofu.rows import Row, Split, file_rows, load_split, refusals
from src.utils import UserError, precision, versions, write_json

DEFAULT_MODEL = "open-unlearning/tofu_Llama-3.2-1B-Instruct_full"
RUN_FILES = ("metrics.json", "fingerprint.json", "privacy.json", "evals")


@dataclass
class RunArguments:
    """Which model, on which rows, and how it is evaluated. DATA_DIR chooses between a local folder and the hub."""

    model_name: str = field(
        default=DEFAULT_MODEL, metadata={"help": "Hub id, local folder or embedded name (smollm2-135m)."}
    )
    forget_split: str = field(default="forget10", metadata={"help": "forget01, forget05 or forget10."})
    forget_path: str | None = field(
        default=None, metadata={"help": "JSON-lines file to forget instead: question and answer, or text."}
    )
    retain_path: str | None = field(default=None, metadata={"help": "What to keep, with --forget_path."})
    refusals_path: str | None = field(default=None, metadata={"help": "Refusals for DPO, one a line."})
    holdout_rows: int = field(
        default=0,
        metadata={"help": "Rows at the retain split's end kept from training, for the attacks."},
    )
    max_retain: int | None = field(default=None, metadata={"help": "Retain rows at most, from the split's start."})
    dtype: str = field(default="float32", metadata={"help": "Of the weights: float32, float16, bfloat16, auto."})
    opt_bos: str = field(default="</s>", metadata={"help": "First token of OPT prompts; </s> as in pretraining."})
    system_prompt: str | None = field(
        default=None, metadata={"help": "For chat templates; default: open-unlearning's of the model's family."}
    )
    date_string: str = field(default=DATE_STRING, metadata={"help": "Today's date for templates that write one."})
    evaluate: bool = field(default=True, metadata={"help": "Evaluate the result on TOFU."})
    retain_log: str | None = field(
        default=None, metadata={"help": "TOFU_EVAL.json of a model that never saw the forget set."}
    )
    reference_model: str | None = field(default=None, metadata={"help": "Model for the Reference attack."})
    eval_every: int | None = field(
        default=None, metadata={"help": "Steps between evaluations on the way; null: only the result's."}
    )
    eval_limit: int | None = field(default=None, metadata={"help": "Rows of each evaluation set at most."})
    max_new_tokens: int = field(default=200, metadata={"help": "Of a generated answer."})
    eval_gradnorm: bool = field(default=True, metadata={"help": "Compute the GradNorm attack."})
    mink_k: float = field(default=0.4, metadata={"help": "Share of the tokens that Min-K% looks at."})
    eval_autocast: bool = field(default=False, metadata={"help": "Evaluate in bfloat16 over the weights' dtype."})
    smoke: bool = field(default=False, metadata={"help": "Mark the run as a check: any later run may replace it."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Replace the run in output_dir."})
    check_only: bool = field(default=False, metadata={"help": "Check the arguments; load and write nothing."})

    def __post_init__(self) -> None:
        if self.forget_path is None and self.retain_path is not None:
            raise UserError("--retain_path belongs to --forget_path: give both, or a TOFU split")
        for name in ("max_retain", "eval_limit", "eval_every", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be at least 1, got {value}")
        if self.holdout_rows < 0:
            raise UserError(f"holdout_rows must be at least 0, got {self.holdout_rows}")
        precision(self.dtype, torch.device("cpu"))  # this and the next refuse what they cannot take
        self.eval_settings()

    def eval_settings(self) -> EvalSettings:
        return EvalSettings(
            self.max_new_tokens, self.eval_limit, self.eval_gradnorm, self.mink_k, self.eval_autocast
        )

    def chat(self, tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
        return chat_format(tokenizer, self.system_prompt, self.date_string)

    @property
    def data_dir(self) -> str | None:
        return os.environ.get("DATA_DIR") or None


@dataclass
class Loaded:
    """A run's model and rows, before anything has changed."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    split: Split
    chat: ChatFormat
    max_length: int | None

    def encode(self, rows: list[Row], **settings: Any) -> list[dict[str, Any]]:
        return encode_rows(self.tokenizer, rows, self.chat, max_length=self.max_length, **settings)


def read_rows(run: RunArguments) -> Split:
    """The forget, retain and holdout rows that the arguments name."""
    if run.forget_path is not None:
        retain = file_rows(Path(run.retain_path)) if run.retain_path else []
        split = Split(file_rows(Path(run.forget_path)), retain, [])
    else:
        split = load_split(run.forget_split, run.data_dir, holdout_rows=run.holdout_rows)
    return Split(split.forget, split.retain[: run.max_retain], split.holdout)


def load(run: RunArguments, device: torch.device) -> Loaded:
    """Rows first, for they fail sooner, then the model; says how it is asked."""
    disable_progress_bar()  # of loading and saving weights
    split = read_rows(run)
    log = retain_log_of(run)
    model, tokenizer = load_model(run.model_name, precision(run.dtype, device), device, opt_bos=run.opt_bos)
    chat = run.chat(tokenizer)
    if log is not None and run.forget_path is None:
        rows = split.forget[: run.eval_limit]
        log.check(shared_settings(run.forget_split, chat, run.mink_k), len(rows))
    print(chat, file=sys.stderr)
    return Loaded(model, tokenizer, split, chat, getattr(model.config, "max_position_embeddings", None))


def retain_log_of(run: RunArguments) -> RetainLog | None:
    return read_retain_log(Path(run.retain_log)) if run.retain_log else None


def unlearn_data(loaded: Loaded, run: RunArguments, args: UnlearnArguments) -> UnlearnData:
    """Encoded rows, with refusals where the method needs them."""
    texts = None
    if get_method(args.method).needs_refusals:
        texts = refusals(run.data_dir, Path(run.refusals_path) if run.refusals_path else None)
    forget = loaded.encode(loaded.split.forget, refusal_texts=texts)
    return UnlearnData(forget, loaded.encode(loaded.split.retain))


def prepare_folder(folder: Path, run: RunArguments) -> None:
    """Make the run's folder. A run that is in it is removed if it was a smoke check or is to be overwritten.

    Any other is refused, and so is the folder of the model that the run starts from.
    """
    marker = folder / "SMOKE"
    if folder.exists() and Path(run.model_name).exists() and folder.samefile(run.model_name):
        raise UserError(f"{folder} holds the model that the run starts from; choose another --output_dir")
    if (folder / "metrics.json").exists() and not (run.overwrite_output_dir or marker.exists()):
        raise UserError(f"{folder} already holds a run; choose another --output_dir or add --overwrite_output_dir")
    try:
        for path in [*(folder / name for name in RUN_FILES), marker, *folder.glob("pum_round*")]:
            if path.exists():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        folder.mkdir(parents=True, exist_ok=True)
        if run.smoke:
            marker.touch()
    except OSError as error:
        raise UserError(f"cannot use the output folder {folder}: {error.strerror}") from error


def save(model: nn.Module, tokenizer: PreTrainedTokenizerBase, folder: Path) -> nn.Module:
    """Write model and tokenizer as a folder that `load_model` takes; adapters are merged into the model first."""
    merged: Any = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model  # type: ignore[operator]
    merged.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return merged.eval()


def evaluation_of(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, run: RunArguments, *, is_retain_model: bool = False
) -> Evaluation:
    """The TOFU evaluation that the arguments describe."""
    data = load_eval_data(run.forget_split, run.data_dir, holdout_rows=run.holdout_rows, limit=run.eval_limit)
    reference = None
    if run.reference_model is not None:
        first = next(model.parameters())
        reference, _ = load_model(run.reference_model, first.dtype, first.device, opt_bos=run.opt_bos)
    return Evaluation(
        model,
        tokenizer,
        data,
        run.eval_settings(),
        chat=run.chat(tokenizer),
        retain_log=retain_log_of(run),
        reference_model=reference,
        is_retain_model=is_retain_model,
    )


def watch(trainer: Trainer, loaded: Loaded, run: RunArguments, *, here: bool) -> EvaluationOnTheWay | None:
    """Let the trainer evaluate on the way, where the arguments ask for it: `here`, in the first process alone."""
    if run.eval_every is None:
        return None
    if run.forget_path is not None:
        raise UserError("--eval_every is TOFU's evaluation: drop --forget_path")

    def score(model: nn.Module, folder: Path) -> Mapping[str, float | None]:
        return scores_of(evaluate(evaluation_of(model, loaded.tokenizer, run), folder)[0])

    callback = EvaluationOnTheWay(run.eval_every, score)
    if here:
        trainer.add_callback(callback)
    return callback


def finish(
    model: nn.Module,
    loaded: Loaded,
    run: RunArguments,
    args: TrainingArguments,
    *,
    train_seconds: float,
    extra: Mapping[str, Any] | None = None,
    is_retain_model: bool = False,
    watched: EvaluationOnTheWay | None = None,
) -> dict[str, Any]:
    """Save and evaluate what a run trained, write its `metrics.json` and say where it is.

    Args:
        model: after training, with adapters or without.
        train_seconds: what the training took.
        extra: more entries for `metrics.json`.
        watched: what was evaluated on the way.
    """
    folder = Path(str(args.output_dir))
    peak = peak_memory(next(model.parameters()).device)
    model = save(model, loaded.tokenizer, folder)
    begin = time.perf_counter()
    scores: dict[str, float | None] = {}
    if run.evaluate and run.forget_path is None:
        evaluation = evaluation_of(model, loaded.tokenizer, run, is_retain_model=is_retain_model)
        scores = scores_of(evaluate(evaluation, folder / "evals")[0])
    elif run.evaluate:
        scores = plain_scores(model, loaded)
    metrics = {
        "scores": scores,
        "seconds": {"train": train_seconds, "evaluation": time.perf_counter() - begin},
        "peak_memory": peak,
        "model": run.model_name,
        "forget": run.forget_path or run.forget_split,
        "rows": {"forget": len(loaded.split.forget), "retain": len(loaded.split.retain)},
        "data": run.data_dir or "hub",
        "prompts": loaded.chat.record(),
        "versions": versions(),
        "configuration": {**asdict(run), **args.to_dict()},
        **({"on_the_way": watched.history} if watched else {}),
        **(extra or {}),
    }
    write_json(folder / "metrics.json", metrics)
    print(f"wrote {folder}")
    return metrics


def plain_scores(model: nn.Module, loaded: Loaded) -> dict[str, float | None]:
    """Mean answer probability of both sets, for rows that have no perturbed answers."""
    result: dict[str, float | None] = {}
    for name, rows in (("forget", loaded.split.forget), ("retain", loaded.split.retain)):
        if rows:
            sequences = row_sequences(loaded.tokenizer, rows, loaded.chat, max_length=loaded.max_length)
            values = [probability(scored.loss) for scored in teacher_forced(model, sequences)]
            result[f"{name}_Q_A_Prob"] = sum(values) / len(values)
    return result


def peak_memory(device: torch.device) -> dict[str, Any]:
    """Peak memory so far in MiB: what the device's allocator held, on a CPU what the process held."""
    if device.type == "cuda":
        return {"mib": torch.cuda.max_memory_allocated(device) / 2**20, "kind": "allocated on the GPU"}
    unit = 1 if sys.platform == "darwin" else 1024
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return {"mib": held / 2**20, "kind": "resident in the process"}
