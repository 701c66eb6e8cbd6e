"""The arguments of `ZOTrainer`: what a step does, which is recorded, and how it is carried out, which is not."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, ClassVar

import torch
from transformers import TrainingArguments

from src.utils import UserError

# Of the library's own settings, those that decide what a step does.
LIBRARY_SETTINGS = (
    "seed",
    "max_steps",
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
)


POLYNOMIAL_END = 1e-7  # the library's, where nothing else is said


class RecordedSettings:
    """Base of the dataclasses that say what a mechanism is.

    Every field of theirs is public, stands in the transcript's header, and must be as it was when a run goes on.
    """


@dataclass
class StepSettings(RecordedSettings):
    """What a zeroth-order step does."""

    zo_eps: float = field(default=1e-3, metadata={"help": "Distance of the two evaluations, eps."})
    zo_derivative: str = field(
        default="central",
        metadata={
            "help": "central: differences of two passes a direction, the recipe's; exact: all directions from one"
            " pass forward and one backward, for losses that have a derivative."
        },
    )


@dataclass
class ExecutionSettings:
    """How a step is carried out: nothing here decides what is released."""

    zo_inplace: bool = field(
        default=False,
        metadata={"help": "Undo a perturbation by subtraction: no copy of what is trained, but rounding drift."},
    )
    no_derivative_check: bool = field(
        default=False,
        metadata={"help": "Do not compare the first step's central differences with exact derivatives."},
    )


@dataclass
class ZOArguments(StepSettings, ExecutionSettings, TrainingArguments):
    """`TrainingArguments` with what a zeroth-order step needs. `max_steps` counts the steps, T.

    Attributes:
        rows_are_secret: whether nothing may be said of single training rows, or of how many there are.
    """

    rows_are_secret: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for name in ("zo_eps", "learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{name} must be positive and finite, got {getattr(self, name)}")
        for name in ("eval_steps", "save_steps", "logging_steps"):
            given = getattr(self, name)
            if given is not None and not given > 0:
                raise UserError(f"{name} must be positive, got {given}")
        if self.zo_derivative not in ("central", "exact"):
            raise UserError(f"zo_derivative must be central or exact, got '{self.zo_derivative}'")
        if self.max_steps < 1:
            raise UserError(f"max_steps must be at least 1, got {self.max_steps}; every step uses the whole set")
        if self.gradient_accumulation_steps != 1:
            raise UserError("gradient_accumulation_steps must be 1: a step has no gradient to accumulate")
        if self.auto_find_batch_size:
            raise UserError("auto_find_batch_size must be off: it would make steps again that are published")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.cuda.is_available():
            self.use_cpu = True  # or the library sees one process and no group
        super().__post_init__()
        if self.lr_scheduler_type == "polynomial":
            options: Any = self.lr_scheduler_kwargs or {}
            last = options.get("lr_end", POLYNOMIAL_END)
            if not self.learning_rate > last:
                raise UserError(f"a polynomial schedule ends at {last:g}, which learning_rate must lie above")
        self.max_grad_norm = 0.0
        self._n_gpu = min(self.n_gpu, 1)  # otherwise Trainer wraps the model in DataParallel

    def __getstate__(self) -> dict[str, Any]:
        """Checkpoints and uploads hold the arguments as a file: without the hub's token."""
        return {**self.__dict__, "hub_token": None}

    def load_best_on_dev(self, option: str) -> None:
        """Evaluate and save every `eval_steps`, and load the checkpoint that is best on the dev set at the end.

        Raises:
            UserError: `eval_steps` is not given; `option` is what asked for it.
        """
        if self.eval_steps is None:
            raise UserError(f"--{option} needs --eval_steps")
        self.eval_strategy = self.save_strategy = "steps"
        self.save_steps = self.eval_steps
        self.load_best_model_at_end = True


def recorded_settings(args: ZOArguments) -> dict[str, Any]:
    """Every setting that decides what a run does, by name: the library's, and all of each `RecordedSettings`."""
    names = list(LIBRARY_SETTINGS)
    for kind in reversed(type(args).__mro__):
        if issubclass(kind, RecordedSettings) and not issubclass(kind, TrainingArguments) and is_dataclass(kind):
            names += [entry.name for entry in fields(kind) if entry.name not in names]
    return {name: getattr(args, name) for name in names}
