"""`ZOTrainer`: the Hugging Face training loop with a zeroth-order step in the place of the gradient step."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import EvalLoopOutput

from src.checkpoints import Checkpoint, check_weights, choose_checkpoint
from src.fingerprint import data_fingerprint
from src.objectives import Objective
from src.processes import check_equal, is_first, on_first, place
from src.records import Record, RecordError
from src.transcript import Transcript, TranscriptWriter, check_same, header, load
from src.utils import UserError
from src.zo import ParameterSpace, StepRecord, ZOOptimizer, direction_seeds
from src.zo_arguments import ZOArguments
from src.zo_callbacks import EndOfRecords, FirstStepGuard

# Settings that decide what a step does: a run goes on only where they are as they were.
RECORDED_SETTINGS = (
    "seed",
    "zo_eps",
    "max_steps",
    "learning_rate",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
)
REMEDY = "lower the learning rate, or use float32 or bfloat16"


class ZOTrainer(Trainer):
    """A `Trainer` whose step is two forward passes over the whole training set for each of K directions.

    It differs from the base in `training_step` (losses at theta +- eps z, then `release`), in its optimizer
    (which applies the released record), in `evaluation_loop` (which asks an `Objective` for its metrics), and
    in how a run is resumed. `train_dataset` and `eval_dataset` are `Objective`s over `model`. The run's folder
    is `args.output_dir`, with `transcript.jsonl` and `checkpoints/` in it. The base class releases each
    direction's mean derivative: MeZO (arXiv 2305.17333) with the full batch, and no privacy.

    To resume, make the trainer as for a new run, with the base model, and call
    `train(resume_from_checkpoint=True)`. The steps up to the latest complete checkpoint are applied from the
    transcript and compared with it; the trainer's own state comes from it. The recorded steps after it (all of
    them where there is no checkpoint) pass through the library's loop without a forward pass, so that
    schedule, evaluations, checkpoints and callbacks are those of the uninterrupted run.

    Under `accelerate launch` each process evaluates a share of the samples (`src/processes.py`). The methods
    that keep records or draw secrets run in the first process only: `release`, `load_records`,
    `start_records`, `publish`, `end_records`, `close_records`, `unpublished`, `recorded_loss`.

    Args:
        public: facts for the transcript's header, e.g. the base model's name.

    Raises:
        UserError: losses are NaN, infinite or all zero; a step changed nothing, or what is frozen.
    """

    args: ZOArguments
    model: nn.Module
    train_dataset: Objective

    def __init__(
        self,
        model: PreTrainedModel | nn.Module,
        args: ZOArguments,
        train_dataset: Objective,
        eval_dataset: Objective | None = None,
        *,
        public: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, args, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs)
        self.public = dict(public or {})
        self.step_seconds: list[float] = []
        self.step_loss = float("nan")
        self.transcript: TranscriptWriter | None = None
        self.data_fingerprint = data_fingerprint(train_dataset)
        self._past: Transcript | None = None
        self._past_checkpoint: Checkpoint | None = None
        self._resuming = self._started = self._ended = False
        self.add_callback(FirstStepGuard(self))
        self.add_callback(EndOfRecords(self))

    @property
    def run_dir(self) -> Path:
        return Path(str(self.args.output_dir))

    @property
    def num_directions(self) -> int:
        """K."""
        return 1

    def release(self, step: int, derivatives: np.ndarray) -> tuple[float, ...] | None:
        """What leaves the private side in a step: one coefficient a direction; None ends the training.

        Args:
            step: 0, 1, 2, ...
            derivatives: float32 (K, N), the samples' derivatives along the K directions.
        """
        return tuple(float(mean) for mean in derivatives.mean(axis=1, dtype=np.float64))

    def public_header(self) -> dict[str, Any]:
        """What the transcript's header says besides the parameters; a run goes on only where it is the same."""
        settings = {name: getattr(self.args, name) for name in RECORDED_SETTINGS}
        # A digest of the data is no private release; a subclass that makes a private one keeps it to itself.
        data = {"data": self.data_fingerprint} if type(self).release is ZOTrainer.release else {}
        return {**settings, **data, **self.public}

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As the base's; once for each trainer.

        Args:
            resume_from_checkpoint: True goes on from the latest complete checkpoint, or from the transcript
                alone where there is none; a path goes on from that one. None takes the arguments' value.

        Raises:
            UserError: there is no run to resume, it is damaged, or it had other settings, data or base model.
        """
        if self._started:
            raise UserError("this trainer has trained already; make a new one, with the base model")
        self._started = True
        wanted = self.args.resume_from_checkpoint if resume_from_checkpoint is None else resume_from_checkpoint
        try:
            return super().train(self._prepare_to_resume(wanted), *args, **kwargs)
        finally:
            if is_first():
                self.close_records()

    def _prepare_to_resume(self, wanted: str | bool | None) -> str | None:
        """Reads and checks what is there; returns the checkpoint's path for the base class."""
        text = str(wanted)
        if text in ("None", "False", "false", ""):
            return None
        if self.args.zo_inplace:
            raise UserError("a run with zo_inplace cannot be resumed: its rounding is not in the transcript")
        if self.optimizer is not None:
            raise UserError("resume with a new trainer over the base model")
        self._resuming = True
        self._past = on_first(self.load_records)
        steps = [] if self._past is None else self._past.steps
        found = choose_checkpoint(self.run_dir / "checkpoints", None if text in ("True", "true") else text)
        if found is not None and found.step > len(steps):
            raise RecordError(f"{found.path} is after {found.step} steps, but only {len(steps)} are recorded")
        self._past_checkpoint = found
        return None if found is None else str(found.path)

    def load_records(self) -> Transcript | None:
        """The records of the run to resume, checked; None where nothing but private state is there yet.

        A subclass whose `release` keeps something between steps, or draws, brings that back here.
        """
        if type(self).release is not ZOTrainer.release:
            raise UserError(f"{type(self).__name__} cannot resume a run: its releases are not recorded")
        return load(self.run_dir / "transcript.jsonl")

    def start_records(self, head: Record) -> None:
        """Opens the files of a new run; `head` is the transcript's first line."""
        self.transcript = TranscriptWriter(self.run_dir / "transcript.jsonl", head)

    def publish(self, record: StepRecord) -> None:
        """Writes a step to the transcript, before the parameters change."""
        assert self.transcript is not None
        self.transcript.append(record)

    def end_records(self, trainable_checksum: str | None) -> None:
        """Writes the transcript's closing line."""
        assert self.transcript is not None
        self.transcript.end(trainable_checksum)

    def finish(self, trainable_checksum: str | None) -> None:
        """`end_records`, once."""
        if not self._ended:
            check_equal("trained parameters", str(trainable_checksum))
            on_first(lambda: self.end_records(trainable_checksum))
            self._ended = True

    def close_records(self) -> None:
        """Closes the files."""
        if self.transcript is not None:
            self.transcript.close()

    def unpublished(self, step: int) -> tuple[float, ...] | None:
        """Coefficients that a run released before it died, without having published them."""
        return None

    def recorded_loss(self, step: int) -> float:
        """The logged loss of a step that is not made again; NaN, which the library's log skips, if unknown."""
        return float("nan")

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The base's decay rule decides which parameters decay; the optimizer only applies records."""
        if self.optimizer is None:
            decayed = set(self.get_decay_parameter_names(self.model)) if self.args.weight_decay else set()
            trainable = {name for name, p in self.model.named_parameters() if p.requires_grad}
            self.space = ParameterSpace(
                self.model, self.args.weight_decay, decayed & trainable, self.args.zo_inplace
            )
            self.zo_optimizer = ZOOptimizer(self.space, lr=self.args.learning_rate)
            self.optimizer = self.zo_optimizer
            head = header(self.model, self.space, self.public_header())
            past = self._past
            if past is None:
                on_first(lambda: self.start_records(head))
            else:
                on_first(lambda: check_same(past, head))
                self._catch_up(past)
                on_first(lambda: self._reopen(past))
        return self.optimizer

    def _catch_up(self, past: Transcript) -> None:
        """Brings the parameters to the checkpoint's."""
        if self._past_checkpoint is not None:
            for record in past.steps[: self._past_checkpoint.step]:
                self.space.apply(record)
        self._ended = past.end is not None

    def _reopen(self, past: Transcript) -> None:
        """Opens the transcript behind its last line, if the parameters are the checkpoint's."""
        if self._past_checkpoint is not None:
            check_weights(self._past_checkpoint.path, self.space.parameters)
        self.transcript = TranscriptWriter.resume(past)

    def _wrap_model(self, model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        """No `DistributedDataParallel`: there are no gradients to reduce, and its buckets are a model's size."""
        if place()[1] > 1:
            model._is_accelerate_prepared = True  # type: ignore[assignment]
        return super()._wrap_model(model, *args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Parameters come from the transcript: see `_continue`."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        """One empty batch an epoch: a step uses the whole objective, which holds its own tensors."""
        return DataLoader([{}], batch_size=1, collate_fn=lambda batch: batch[0])  # type: ignore[arg-type]

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Evaluate the directions, release their coefficients and hand the record to the optimizer.

        A step that is in the transcript of a resumed run is handed on as it is.
        Returns the mean of the losses that were computed anyway, for the logs.
        """
        step = self.state.global_step
        seeds = direction_seeds(self.args.seed, step, self.num_directions)
        rate = float(self._get_learning_rate())
        if self._past is not None and step < len(self._past.steps):
            record = self._past.steps[step]
            if (record.seeds, record.learning_rate) != (seeds, rate):
                raise RecordError(
                    f"{self._past.path}: step {step} has other seeds or another rate than these settings give"
                )
            self.zo_optimizer.queue(record)
            return self._loss(on_first(lambda: self.recorded_loss(step)))
        if self._ended:
            self.control.should_training_stop = True
            return self._loss(on_first(lambda: self.recorded_loss(step)))
        return self._loss(self._new_step(step, seeds, rate))

    def _new_step(self, step: int, seeds: tuple[int, ...], rate: float) -> float:
        begin = time.perf_counter()
        coefficients, self.step_loss = on_first(lambda: (self.unpublished(step), self.recorded_loss(step)))
        if coefficients is None:
            derivatives, self.step_loss = self._derivatives(step, seeds)
            coefficients = on_first(lambda: self.release(step, derivatives))
        if coefficients is None:
            self.control.should_training_stop = True
        else:
            record = StepRecord(step, seeds, coefficients, rate)
            on_first(lambda: self.publish(record))
            self.zo_optimizer.queue(record)
        self.step_seconds.append(time.perf_counter() - begin)
        return self.step_loss

    def _loss(self, value: float) -> Tensor:
        return torch.tensor(value, device=self.args.device)

    def _derivatives(self, step: int, seeds: Sequence[int]) -> tuple[np.ndarray, float]:
        rows, losses = [], []
        for seed in seeds:
            plus, minus = self.space.two_point(seed, self.args.zo_eps, self.train_dataset.losses)
            rows.append(
                two_point_derivatives(
                    plus, minus, self.args.zo_eps, step, may_be_zero=self.train_dataset.may_be_zero
                )
            )
            losses.append(float((plus.mean() + minus.mean()) / 2))
        return np.stack(rows), sum(losses) / len(losses)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the base's, without the norm of a gradient that does not exist."""
        super().log({name: value for name, value in logs.items() if name != "grad_norm"}, start_time)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Two forward passes of 2 operations a parameter and token, for each direction."""
        parameters = sum(p.numel() for p in self.model.parameters())
        return 4 * self.num_directions * parameters * self.train_dataset.num_tokens

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The metrics of the dataloader's `Objective`, all from one pass; a loss that is not finite is refused."""
        objective = dataloader.dataset
        if not isinstance(objective, Objective):
            raise UserError(f"evaluation needs an Objective, got {type(objective).__name__}")
        found = objective.metrics()
        if not math.isfinite(found["loss"]):
            raise UserError(f"{metric_key_prefix}: losses are NaN or infinite; {REMEDY}")
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        return EvalLoopOutput(predictions=np.empty(0), label_ids=None, metrics=metrics, num_samples=len(objective))

    def _get_output_dir(self, trial: Any) -> str:
        """Checkpoints lie below the run's folder, beside the transcript."""
        return str(self.run_dir / "checkpoints")


def central_difference(plus: Tensor, minus: Tensor, eps: float) -> np.ndarray:
    """g_i = (l_i(theta + eps z) - l_i(theta - eps z)) / (2 eps), float32 (N,) (arXiv 2605.06505, section 3)."""
    derivatives: np.ndarray = ((plus - minus) / (2 * eps)).float().numpy()
    return derivatives


def two_point_derivatives(
    plus: Tensor, minus: Tensor, eps: float, step: int, *, may_be_zero: bool = False
) -> np.ndarray:
    """`central_difference` of losses that are sound.

    Raises:
        UserError: a loss or a derivative is NaN or infinite, or all losses are zero though not `may_be_zero`.
            Both are facts about the whole training set, so stopping tells nothing about the secret half.
    """
    derivatives = central_difference(plus, minus, eps)
    bad = int(np.count_nonzero(~np.isfinite(derivatives)))
    if bad:
        raise UserError(f"step {step}: {bad} of {len(plus)} losses are NaN or infinite; {REMEDY}")
    if not may_be_zero and not (plus.any() and minus.any()):
        raise UserError(f"step {step}: all {len(plus)} losses are zero; check the labels and the prompts")
    return derivatives
