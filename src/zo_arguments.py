"""The arguments of `ZOTrainer`."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from src.utils import UserError


@dataclass
class ZOArguments(TrainingArguments):
    """`TrainingArguments` with what a zeroth-order step needs. `max_steps` counts the steps, T."""

    zo_eps: float = field(default=1e-3, metadata={"help": "Distance of the two evaluations, eps."})
    zo_inplace: bool = field(
        default=False,
        metadata={"help": "Undo a perturbation by subtraction: no copy of what is trained, but rounding drift."},
    )

    def __post_init__(self) -> None:
        if not self.zo_eps > 0:
            raise UserError(f"zo_eps must be positive, got {self.zo_eps}")
        if self.max_steps < 1:
            raise UserError(f"max_steps must be at least 1, got {self.max_steps}; every step uses the whole set")
        if self.gradient_accumulation_steps != 1:
            raise UserError("gradient_accumulation_steps must be 1: a step has no gradient to accumulate")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.cuda.is_available():
            self.use_cpu = True  # or the library sees one process and no group
        super().__post_init__()
        self.max_grad_norm = 0.0
        self._n_gpu = min(self.n_gpu, 1)  # otherwise Trainer wraps the model in DataParallel
