"""`UnlearnTrainer`: a `transformers.Trainer` that minimises an unlearning method's loss."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from pum.unlearn import get_method
from pum.unlearn.base import RETAIN_LOSSES, resolve_settings
from src.tofu_encoding import collate
from src.tofu_logs import weights_digest
from src.utils import UserError, write_json

Item = Mapping[str, Any]
FINGERPRINT = "fingerprint.json"


@dataclass
class UnlearnArguments(TrainingArguments):
    """`TrainingArguments` with a method, its hyperparameters and TOFU's recipe as defaults (arXiv 2401.06121).

    None stands for the method's own default. A hyperparameter that the method has not is refused.
    """

    method: str = field(default="NPO", metadata={"help": "Inner unlearning method, a key of pum.unlearn.METHODS."})
    gamma: float | None = field(default=None, metadata={"help": "Weight of the forget loss."})
    alpha: float | None = field(
        default=None, metadata={"help": "Weight of the retain loss; PDU: where it starts."}
    )
    beta: float | None = field(default=None, metadata={"help": "Of NPO, DPO, SimNPO, UNDIAL, WGA."})
    delta_simnpo: float | None = field(default=None, metadata={"help": "SimNPO's margin, nats a token."})
    satimp_beta1: float | None = field(default=None, metadata={"help": "SatImp's power of p."})
    satimp_beta2: float | None = field(default=None, metadata={"help": "SatImp's power of 1 - p."})
    retain_loss_type: str | None = field(
        default=None, metadata={"help": "NLL or KL(before || now); default: NLL, for RMU the distance of states."}
    )
    rmu_layer: int | None = field(default=None, metadata={"help": "RMU's layer, from 0; default 7 or the middle."})
    rmu_coeff: float | None = field(default=None, metadata={"help": "RMU's length of the target state, c."})
    pdu_retain_loss_eps: float | None = field(default=None, metadata={"help": "PDU's bound on the retain loss."})
    pdu_step: float | None = field(default=None, metadata={"help": "PDU's step on the multiplier."})
    pdu_warmup_epochs: float | None = field(
        default=None, metadata={"help": "Epochs before PDU's multiplier moves."}
    )
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
        resolve_settings(method, self)
        if self.retain_loss_type not in (None, *RETAIN_LOSSES):
            raise UserError(
                f"unknown retain_loss_type '{self.retain_loss_type}': use {' or '.join(RETAIN_LOSSES)}"
            )
        for name in ("beta", "rmu_coeff", "pdu_step"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"{name} must be positive, got {value}")
        if self.warmup_epochs < 0:
            raise UserError(f"warmup_epochs must be at least 0, got {self.warmup_epochs}")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError("this trainer runs on one process; unset NUM_GPUS")
        if self.num_train_epochs is None:
            self.num_train_epochs = method.epochs
        super().__post_init__()
        self.remove_unused_columns = False
        if self.data_seed is None:
            self.data_seed = self.seed  # otherwise the order of rows hangs on the global generator
        self.dataloader_pin_memory = self.dataloader_pin_memory and self.device.type == "cuda"
        self._n_gpu = min(self.n_gpu, 1)  # otherwise Trainer wraps the model in DataParallel


@dataclass(frozen=True)
class UnlearnData:
    """What a run unlearns and what it keeps.

    Attributes:
        forget: rows of `src.tofu_encoding.encode_rows`; each has a "refusal" where the method needs one.
        retain: likewise; empty only where the method does not look at it.
        collator: puts rows of one kind into padded tensors.
    """

    forget: Sequence[Item]
    retain: Sequence[Item]
    collator: Callable[[Sequence[Item]], dict[str, Tensor]] = field(default=collate)


class PairedRows(Dataset[dict[str, Item]]):
    """Forget rows, each with a retain row drawn anew at every access by a generator of their own."""

    def __init__(self, data: UnlearnData, seed: int) -> None:
        self.data = data
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.data.forget)

    def __getitem__(self, index: int) -> dict[str, Item]:
        forget = self.data.forget[index]
        item = {"forget": forget}
        if "refusal" in forget:
            item["refusal"] = forget["refusal"]
        if self.data.retain:
            drawn = int(torch.randint(len(self.data.retain), (1,), generator=self.generator))
            item["retain"] = self.data.retain[drawn]
        return item


class UnlearnTrainer(Trainer):
    """A `Trainer` whose loss is an unlearning method's.

    It differs from the base in `compute_loss`, in a warm-up that is counted in epochs, and in leaving a digest
    of the trained parameters in the output folder, by which two methods that did the same are noticed.
    `train()` changes `model` in place and leaves it in evaluation mode. The reference model, where one is
    needed, is the model as it is when the trainer is made.

    Raises:
        UserError: the data lack what the method needs, or a loss is not finite.
    """

    args: UnlearnArguments
    model: nn.Module

    def __init__(
        self,
        model: PreTrainedModel | nn.Module,
        args: UnlearnArguments,
        data: UnlearnData,
        processing_class: PreTrainedTokenizerBase | None = None,
        **kwargs: Any,
    ) -> None:
        method = get_method(args.method)
        method.check(args, model, data)  # first of all, for the base makes the output folder
        assert args.data_seed is not None
        super().__init__(
            model,
            args,
            train_dataset=PairedRows(data, args.data_seed),
            data_collator=lambda items: collate_pairs(items, data.collator),
            processing_class=processing_class,
            **kwargs,
        )
        self.model_accepts_loss_kwargs = False  # the loss is a mean, so Trainer divides by the accumulation steps
        self.method = method(args, self.model)
        self.num_rows = len(data.forget)
        self.add_callback(_AfterStep(self))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, None]:
        loss = self.method.loss(model, inputs)
        if not torch.isfinite(loss):
            step = self.state.global_step + 1
            raise UserError(f"{self.args.method}: the loss of step {step} is {loss.item()}; lower --learning_rate")
        return (loss, None) if return_outputs else loss

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The base's scheduler; where `warmup_steps` is 0, `warmup_epochs` say how long the warm-up is."""
        set_warmup(self.args, self.args.warmup_epochs, self.num_rows, num_training_steps)
        return super().create_scheduler(num_training_steps, optimizer)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: the base's estimate takes one batch of `input_ids`."""
        return 0

    def train(self, *args: Any, **kwargs: Any) -> Any:
        output = super().train(*args, **kwargs)
        self.model.eval()
        if self.args.fingerprint and self.is_world_process_zero():
            record_fingerprint(self.model, Path(str(self.args.output_dir)), self.args.method)
        return output


def set_warmup(args: TrainingArguments, epochs: float, num_rows: int, num_training_steps: int) -> None:
    """Set `args.warmup_steps`, where it is 0, to that many epochs, and at most to half of the run."""
    if args.warmup_steps == 0:
        steps_an_epoch = math.ceil(num_rows / (args.train_batch_size * args.gradient_accumulation_steps))
        args.warmup_steps = min(int(epochs * steps_an_epoch), num_training_steps // 2)


class _AfterStep(TrainerCallback):
    """Lets a method with a state of its own (PDU) move it."""

    def __init__(self, trainer: UnlearnTrainer) -> None:
        self.trainer = trainer

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.method.after_step(state.epoch or 0.0)


def collate_pairs(
    items: Sequence[Mapping[str, Item]], collator: Callable[[Sequence[Item]], dict[str, Tensor]]
) -> dict[str, dict[str, Tensor]]:
    """{"forget": tensors, "retain": tensors, ...} of items that all have the same kinds of rows."""
    return {kind: collator([item[kind] for item in items]) for kind in items[0]}


def record_fingerprint(model: nn.Module, folder: Path, method: str) -> None:
    """Write the digest of what was trained into `folder` and compare it with those of the folders beside it.

    Warns where another method's run ended with the same parameters: two different losses that move a model to
    the same point, bit for bit, are one loss, or did nothing at all.
    """
    digest = weights_digest(model, trained_only=True)
    for path in sorted(folder.parent.glob(f"*/{FINGERPRINT}")):
        if path.parent == folder:
            continue
        try:
            other = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            continue
        if other.get("weights") == digest and other.get("method") != method:
            warnings.warn(
                f"{method} ended with the same parameters as {other['method']} in {path.parent}: "
                "one of them did not do what its name says, or nothing was trained",
                stacklevel=2,
            )
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / FINGERPRINT, {"method": method, "weights": digest})
