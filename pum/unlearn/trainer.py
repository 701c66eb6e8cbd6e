"""`UnlearnTrainer`: a `transformers.Trainer` that minimises an unlearning method's loss."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
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
from pum.unlearn.arguments import UnlearnArguments
from pum.unlearn.data import PairedRows, UnlearnData, collate_pairs
from src.engine.processes import average_, place
from src.tofu.logs import weights_digest
from src.utils import UserError, write_json

FINGERPRINT = "fingerprint.json"


class UnlearnTrainer(Trainer):
    """A `Trainer` whose loss is an unlearning method's.

    It differs from the base in `compute_loss`, in one backward pass for each term of the loss, in an epoch of
    whole steps (`WholeSteps`) with a warm-up that is counted in epochs, and in leaving a digest of the trained
    parameters in the output folder, by which two methods that did the same are noticed. `train()` changes `model`
    in place, leaves it in evaluation mode and lets go of the optimizer's state, the gradients and the reference.

    Args:
        reference: parameters of the model that the method compares with, by name. They are not copied and must
            not change while this trains. Default: those that the model has now.

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
        *,
        reference: Mapping[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        method = get_method(args.method)
        method.check(args, model, data)  # first of all, for the base makes the output folder
        assert args.data_seed is not None
        super().__init__(
            model,
            args,
            train_dataset=PairedRows(data, args.data_seed, batch=args.train_batch_size, place=place()),
            data_collator=lambda items: collate_pairs(items, data.collator),
            processing_class=processing_class,
            **kwargs,
        )
        self.model_accepts_loss_kwargs = False  # the loss is a mean, so Trainer divides by the accumulation steps
        self.method = method(args, self.model, reference)
        self.num_rows = len(data.forget)
        self._term = self.method.terms[0]
        self.add_callback(_AfterStep(self))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, None]:
        loss = self.method.term(self._term, model, inputs)
        average_([mean := loss.detach().clone()])  # a process that stops alone would leave the others waiting
        if not torch.isfinite(mean):
            step = self.state.global_step + 1
            raise UserError(f"{self.args.method}: the loss of step {step} is {mean.item()}; lower --learning_rate")
        return (loss, None) if return_outputs else loss

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """The base's, once for each term of the loss.

        In one graph the gradients of both terms would be held beside each other, and the activations, too. Of
        several processes, the gradients of a step are averaged at its end, all at once: the library's wrapper
        would wait for gradients of every parameter, of which RMU has none above its layer.
        """
        total = torch.zeros((), device=self.args.device)
        with model.no_sync() if hasattr(model, "no_sync") else nullcontext():  # type: ignore[operator]
            for term in self.method.terms:
                self._term = term
                total += super().training_step(model, inputs, *args, **kwargs)
        if self.accelerator.sync_gradients:
            average_(p.grad for p in model.parameters() if p.grad is not None)
        return total

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The base's scheduler; where `warmup_steps` is 0, `warmup_epochs` say how long the warm-up is."""
        set_warmup(self.args, self.args.warmup_epochs, self.num_rows, num_training_steps)
        return super().create_scheduler(num_training_steps, optimizer)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: the base's estimate takes one batch of `input_ids`."""
        return 0

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        args = self.args
        assert args.data_seed is not None
        return WholeSteps(self.num_rows, *args.whole_step, seed=args.data_seed)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        output = super().train(*args, **kwargs)
        leave_autocast(self)
        self.model.eval()
        # A trainer is part of a circle of references, so what it holds would outlive it.
        for holder in (self, self.callback_handler):
            holder.optimizer = holder.lr_scheduler = None
        self.method.reference = None
        self.model.zero_grad(set_to_none=True)
        self.accelerator.free_memory()
        if self.args.fingerprint and self.is_world_process_zero():
            record_fingerprint(self.model, Path(str(self.args.output_dir)), self.args.method)
        return output


def leave_autocast(trainer: Trainer) -> None:
    """Give the model its own `forward` back, where --bf16 or --fp16 trained it in mixed precision.

    Otherwise all that asks it later, the evaluation say, would get half-precision answers.
    """
    trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)


def steps_an_epoch(num_rows: int, batch_size: int, accumulation: int) -> int:
    """Optimizer steps of an epoch as open-unlearning counts them: micro-batches // accumulation, at least one.

    TOFU's forget10 with 4 x 8 rows a step has 50 micro-batches, so 12 steps an epoch and 120 in ten epochs.
    """
    return max(math.ceil(num_rows / batch_size) // accumulation, 1)


class WholeSteps(Sampler[int]):
    """The rows in an order drawn anew each epoch, cut where `steps_an_epoch` steps are full.

    Rows that are left over have their turn in another epoch. (open-unlearning's library adds their gradients to
    the next epoch's first step.)
    """

    def __init__(self, num_rows: int, batch_size: int, accumulation: int, *, seed: int) -> None:
        self.num_rows = num_rows
        self.kept = min(num_rows, steps_an_epoch(num_rows, batch_size, accumulation) * accumulation * batch_size)
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self.kept

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(self.num_rows, generator=self.generator)[: self.kept].tolist())


def set_warmup(args: TrainingArguments, epochs: float, num_rows: int, num_training_steps: int) -> None:
    """Set `args.warmup_steps`, where it is 0, to that many epochs, and at most to half of the run."""
    if args.warmup_steps == 0:
        whole = int(
            epochs * num_rows // (args.train_batch_size * args.gradient_accumulation_steps * args.world_size)
        )
        args.warmup_steps = min(whole, num_training_steps // 2)


class _AfterStep(TrainerCallback):
    """Lets a method with a state of its own (PDU) move it."""

    def __init__(self, trainer: UnlearnTrainer) -> None:
        self.trainer = trainer

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.trainer.method.after_step(state.epoch or 0.0)


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
