"""What every training command is told besides its mechanism: what is trained, on what, from which weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from src.engine.decoding import Decoding
from src.samples import Limits, Scoring
from src.tasks import Task, get_task
from src.utils import UserError, precision

TRACKS = ("lora", "prefix_tuning", "head_tuning")


@dataclass
class DataArguments:
    """The task and the samples drawn from it."""

    task_name: str = field(default="SST2", metadata={"help": "A task of src/tasks.py."})
    num_train: int | None = field(
        default=None,
        metadata={"help": "Training samples, N; without training, demonstrations. Default: 1000, and 0 without."},
    )
    num_dev: int | None = field(
        default=None,
        metadata={
            "help": "Dev samples, drawn after the training samples; 0: none. Default: the recipe's, 500 or 100."
        },
    )
    num_eval: int = field(default=1000, metadata={"help": "Test samples at most; 0: the whole validation split."})
    train_set_seed: int | None = field(
        default=None, metadata={"help": "Draw of the training, dev and test sets. Default: 0, see num_train_sets."}
    )
    num_train_sets: int | None = field(
        default=None,
        metadata={
            "help": "As many runs, with train_set_seed 0, 1, ... Without it, a train_set_seed and training, every"
            " test sample has demonstrations of its own."
        },
    )
    train_on: str = field(
        default="train",
        metadata={"help": "train, or dev: the public dev set in the place of the training set, as a baseline."},
    )
    max_length: int = field(default=2048, metadata={"help": "Tokens of a sample at most."})
    no_truncation: bool = field(default=False, metadata={"help": "Refuse longer samples instead of cutting them."})

    def __post_init__(self) -> None:
        for name in ("num_train", "num_dev", "num_eval"):
            if (getattr(self, name) or 0) < 0:
                raise UserError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.num_train_sets is not None and self.num_train_sets < 1:
            raise UserError(f"num_train_sets must be at least 1, got {self.num_train_sets}")
        if self.train_on not in ("train", "dev"):
            raise UserError(f"train_on must be train or dev, got '{self.train_on}'")
        if self.train_on == "dev" and self.num_dev == 0:
            raise UserError("--train_on dev needs dev samples, got --num_dev 0")


@dataclass
class ModelArguments:
    """The weights, and which of them are trained."""

    model_name: str = field(
        default="facebook/opt-1.3b", metadata={"help": "Hub id, local folder or embedded name (smollm2-135m)."}
    )
    dtype: str = field(default="auto", metadata={"help": "Of the weights: auto, float32, float16, bfloat16."})
    opt_bos: str = field(
        default="<s>", metadata={"help": "First token of OPT prompts: <s> (recipe) or </s> (pretraining)."}
    )
    lora: bool = field(default=False, metadata={"help": "Train LoRA adapters instead of all parameters."})
    lora_r: int = field(default=8, metadata={"help": "Rank of the adapters."})
    lora_alpha: float = field(default=16.0, metadata={"help": "Scale of the adapters, alpha."})
    lora_layers: str = field(
        default="all",
        metadata={"help": "Layers with adapters: all, last:N, or numbers as 3,5,7. What is in front is kept."},
    )
    lora_dtype: str | None = field(default=None, metadata={"help": "Of the adapters; default: the model's."})
    prefix_tuning: bool = field(
        default=False, metadata={"help": "Train keys and values in front of each layer's."}
    )
    num_prefix: int = field(default=5, metadata={"help": "Prefix entries of a layer."})
    no_reparam: bool = field(default=True, metadata={"help": "Train the prefix itself, not a network behind it."})
    prefix_init_by_real_act: bool = field(
        default=True, metadata={"help": "Start the prefix from the keys and values of random tokens."}
    )
    head_tuning: bool = field(default=False, metadata={"help": "Train the language-model head."})
    untie_emb: bool = field(default=False, metadata={"help": "Give the head weights of its own."})

    def __post_init__(self) -> None:
        chosen = [f"--{name}" for name in TRACKS if getattr(self, name)]
        if len(chosen) > 1:
            raise UserError(f"choose one track: {' and '.join(chosen)} exclude each other")
        for name in (self.dtype, self.lora_dtype or "auto"):
            precision(name, torch.device("cpu"))  # refuses what it does not know

    @property
    def track(self) -> str:
        """ "ft", "lora", "prefix" or "head"."""
        return next((name.removesuffix("_tuning") for name in TRACKS if getattr(self, name)), "ft")


@dataclass
class ScoringArguments:
    """The training loss, and how samples are evaluated."""

    trainer: str = field(
        default="zo", metadata={"help": "zo, or none: zero-shot and in-context evaluation of the model as it is."}
    )
    train_as_classification: bool = field(
        default=False, metadata={"help": "Loss: cross-entropy over the continuations' scores."}
    )
    non_diff: bool = field(default=False, metadata={"help": "Loss: minus the F1 of the generated answer."})
    only_train_option: bool = field(
        default=True,
        metadata={"help": "Loss without the two above: mean NLL of the right continuation; False: of the text."},
    )
    sfc: bool = field(default=False, metadata={"help": "Calibrate predictions by the prompt without the input."})
    icl_sfc: bool = field(default=False, metadata={"help": "The same, behind the demonstrations."})
    max_new_tokens: int = field(default=50, metadata={"help": "Tokens generated for an answer at most."})
    eos_token: str = field(default="\n", metadata={"help": "What ends a generated answer. Default: a line break."})
    sampling: bool = field(default=False, metadata={"help": "Sample answers; in evaluation only."})
    temperature: float = field(default=1.0, metadata={"help": "Of the sampling."})
    top_k: int | None = field(default=None, metadata={"help": "Sample among so many tokens; default: all."})
    top_p: float = field(default=0.95, metadata={"help": "Sample among the likeliest tokens of this mass."})
    num_beams: int = field(default=1, metadata={"help": "Beams of the search; in evaluation only."})
    linear_probing: bool = field(
        default=False, metadata={"help": "Fit the head by logistic regression instead of training; not private."}
    )
    lp_early_stopping: bool = field(default=False, metadata={"help": "Stop the fit sooner."})

    def __post_init__(self) -> None:
        if self.trainer == "regular" and not self.linear_probing:
            raise UserError("--trainer regular is not offered: use zo, or none to evaluate without training")
        if self.trainer not in ("zo", "none", "regular"):
            raise UserError(f"unknown trainer '{self.trainer}': use zo or none")
        if self.train_as_classification and self.non_diff:
            raise UserError("choose one loss: --train_as_classification and --non_diff exclude each other")
        if self.sfc and self.icl_sfc:
            raise UserError("choose one calibration: --sfc and --icl_sfc exclude each other")
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if self.linear_probing and (self.train_as_classification or self.non_diff):
            raise UserError("--linear_probing fits the right continuation's tokens: drop the other loss")

    def loss(self, task: Task) -> str:
        """The chosen loss; `UserError` where the task has no such loss."""
        if self.train_as_classification or self.non_diff:
            name = "non_diff" if self.non_diff else "train_as_classification"
        else:
            name = "only_train_option" if self.only_train_option else "full_text"
        task.check_loss(name)
        return name


@dataclass
class RunArguments(DataArguments, ModelArguments, ScoringArguments):
    """A run's data, model and scores, and what it leaves behind."""

    token_budget: int | None = field(default=None, metadata={"help": "Padded tokens in one micro-batch."})
    save_model: bool = field(
        default=False, metadata={"help": "Write the trained model or its adapters to model/."}
    )
    save_on_interrupt: bool = field(
        default=False, metadata={"help": "At SIGUSR1 or SIGINT end after the step, from which the run can go on."}
    )
    no_eval: bool = field(default=False, metadata={"help": "Evaluate nothing before and after the training."})
    result_file: str | None = field(
        default=None, metadata={"help": "Also write the final scores, flat, to this file; see tag."}
    )
    tag: str = field(
        default="",
        metadata={"help": "Also write the final scores to result/<task>-<model>-...-<tag>-trainset<i>.json."},
    )
    verbose: bool = field(default=False, metadata={"help": "Print every test sample with its prediction."})
    smoke: bool = field(default=False, metadata={"help": "Mark the run as a check: any later run may replace it."})
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Delete the run that is in output_dir first."}
    )

    def __post_init__(self) -> None:
        for kind in (DataArguments, ModelArguments, ScoringArguments):
            kind.__post_init__(self)
        task = get_task(self.task_name)
        self.task_name = task.name
        task.check_calibration(self.calibration)
        if self.num_train is None:
            self.num_train = 1000 if self.trains or self.linear_probing else 0
        if self.num_train < 1 and (self.trains or self.linear_probing):
            raise UserError("num_train must be at least 1, got 0")
        if self.num_dev is None:
            self.num_dev = task.num_dev if self.trains else 0
        if self.train_set_seed is None and self.num_train_sets is None and (self.trains or self.linear_probing):
            self.train_set_seed = 0
        if self.num_dev and not self.trains:
            raise UserError("without training there is no dev set: drop --num_dev")
        if self.result_file and (self.num_train_sets or 1) > 1 and self.train_set_seed is None:
            raise UserError("--result_file names one file for several train sets: use --tag")
        try:
            self.scoring()
        except ValueError as error:
            raise UserError(str(error)) from error

    @property
    def trains(self) -> bool:
        """Whether steps are taken."""
        return self.trainer != "none" and not self.linear_probing

    @property
    def calibration(self) -> str:
        return "sfc" if self.sfc else "icl_sfc" if self.icl_sfc else ""

    def limits(self) -> Limits:
        return Limits(self.token_budget, self.max_new_tokens, self.max_length, truncate=not self.no_truncation)

    def scoring(self, demonstrations: Sequence[str] | None = None, *, seed: int = 0) -> Scoring:
        """`seed` is that of sampled answers."""
        decoding = Decoding(
            self.eos_token, self.sampling, self.temperature, self.top_k, self.top_p, self.num_beams, seed
        )
        return Scoring(demonstrations, self.calibration, decoding)

    def each_train_set(self) -> list[RunArguments]:
        """The same run with every train set that is asked for, or this one alone."""
        if self.train_set_seed is not None or self.num_train_sets is None:
            return [self]
        return [replace(self, train_set_seed=seed) for seed in range(self.num_train_sets)]
