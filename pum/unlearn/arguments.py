"""The arguments of `UnlearnTrainer`."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from pum.unlearn import get_method
from pum.unlearn.base import RETAIN_LOSSES
from pum.unlearn.settings import MethodSettings, resolve_settings, take_method_args
from src.utils import UserError


@dataclass
class UnlearnArguments(MethodSettings, TrainingArguments):
    """`TrainingArguments` with a method, its hyperparameters and TOFU's recipe as defaults (arXiv 2401.06121).

    A hyperparameter that the method has not is refused.
    """

    method: str = field(default="NPO", metadata={"help": "Inner unlearning method, a key of pum.unlearn.METHODS."})
    warmup_epochs: float = field(
        default=1.0,
        metadata={"help": "Epochs of linear warm-up where warmup_steps is 0; at most half of the run."},
    )
    fingerprint: bool = field(
        default=True, metadata={"help": "Record a digest of the result and warn where another method's is equal."}
    )
    output_dir: str | None = field(default="saves/unlearn/run", metadata={"help": "Folder of the run."})
    learning_rate: float = field(default=1e-5, metadata={"help": "Peak learning rate of AdamW."})
    weight_decay: float = field(default=0.01, metadata={"help": "Of AdamW."})
    per_device_train_batch_size: int = field(default=8, metadata={"help": "Forget rows in one micro-batch."})
    gradient_accumulation_steps: int = field(default=4, metadata={"help": "Micro-batches a step."})
    num_train_epochs: float | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Passes over the forget set; default 10, for WGA and SatImp 5."}
    )
    optim: str = field(default="adamw_torch", metadata={"help": "Optimizer, as in transformers."})
    save_strategy: str = field(default="no", metadata={"help": "Checkpoints on the way, as in transformers."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between logged losses."})
    report_to: str | None = field(
        default="none", metadata={"help": "Where losses are logged, as in transformers."}
    )

    def __post_init__(self) -> None:
        method = get_method(self.method)
        take_method_args(method.name, method.defaults, self)
        resolve_settings(method.name, method.defaults, self)
        if self.retain_loss_type not in (None, *RETAIN_LOSSES):
            raise UserError(
                f"unknown retain_loss_type '{self.retain_loss_type}': use {' or '.join(RETAIN_LOSSES)}"
            )
        for name in ("beta", "rmu_coeff", "pdu_step"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"{name} must be positive, got {value}")
        if not 0 <= self.learning_rate < math.inf:
            raise UserError(f"learning_rate must be finite and at least 0, got {self.learning_rate}")
        if self.num_train_epochs is not None and not 0 < self.num_train_epochs < math.inf:
            raise UserError(f"num_train_epochs must be finite and above 0, got {self.num_train_epochs}")
        if self.warmup_epochs < 0:
            raise UserError(f"warmup_epochs must be at least 0, got {self.warmup_epochs}")
        processes = int(os.environ.get("WORLD_SIZE", "1"))
        self._share_batch(processes)
        if processes > 1 and not torch.cuda.is_available():
            self.use_cpu = True  # or the library sees one process and no group, and each trains for itself
        if self.dataloader_num_workers:
            raise UserError("dataloader_num_workers must be 0: rows are drawn by one generator, in their order")
        if self.num_train_epochs is None:
            self.num_train_epochs = method.epochs
        if hasattr(self, "activation_checkpointing") and self.gradient_checkpointing is not None:
            # Its name in later versions of the library, which warn of the one that all versions have.
            self.activation_checkpointing, self.gradient_checkpointing = self.gradient_checkpointing, None
        super().__post_init__()
        self.remove_unused_columns = False
        if self.data_seed is None:
            self.data_seed = self.seed  # otherwise the order of rows hangs on the global generator
        self.dataloader_pin_memory = self.dataloader_pin_memory and self.device.type == "cuda"
        self._n_gpu = min(self.n_gpu, 1)  # otherwise Trainer wraps the model in DataParallel

    def _share_batch(self, processes: int) -> None:
        """Leave each of several processes its part of the effective batch, which stays what it is in one.

        Where micro-batches themselves have to be cut, means over tokens are taken in each part: a short row's
        tokens then weigh more than in one process.
        """
        batch, accumulation = self.per_device_train_batch_size, self.gradient_accumulation_steps
        self.whole_step = (batch, accumulation)  # rows of a micro-batch, and how many of them a step has
        if accumulation % processes == 0:
            self.gradient_accumulation_steps = accumulation // processes
        elif batch % processes == 0:
            self.per_device_train_batch_size = batch // processes
        else:
            raise UserError(
                f"{processes} processes cannot share a batch of {batch} x {accumulation}: make the batch or the"
                " accumulation a multiple of NUM_GPUS"
            )
