"""`ZOTrainer`: the Hugging Face training loop with a zeroth-order step in the place of the gradient step."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from transformers.trainer_utils import EvalLoopOutput

from src.engine.objective import Objective
from src.engine.processes import on_first, place
from src.record.chain import RecordError
from src.record.steps import StepRecord, Transcript
from src.utils import UserError
from src.zo.arguments import ZOArguments
from src.zo.directions import direction_seeds
from src.zo.recorded import RecordedTrainer
from src.zo.sources import CHECKED_SAMPLES, REMEDY, Source, check_sound, derivative_check, make_source

logger = logging.getLogger(__name__)
LEAST_CORRELATION = 0.5


class ZOTrainer(RecordedTrainer):
    """A `Trainer` whose step moves along K random directions, by the samples' derivatives along them.

    It differs from the base in `training_step` (the samples' derivatives along K directions, then `release`),
    and in `evaluation_loop` (which asks an `Objective` for its metrics). `train_dataset` and `eval_dataset` are
    `Objective`s over `model`. This class releases each direction's mean derivative: MeZO (arXiv 2305.17333)
    with the full batch, and no privacy.

    Under `accelerate launch` each process evaluates a share of the samples (`src/engine/processes.py`);
    `release` runs in the first process only.

    Args:
        public: facts for the transcript's header, e.g. the base model's name.

    Raises:
        UserError: losses are NaN, infinite or all zero; a step changed nothing, or what is frozen.
    """

    def __init__(
        self,
        model: PreTrainedModel | nn.Module,
        args: ZOArguments,
        train_dataset: Objective,
        eval_dataset: Objective | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, args, train_dataset, eval_dataset, **kwargs)
        self.step_seconds: list[float] = []
        self.step_loss = float("nan")
        self.derivative_check: dict[str, float] | None = None

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
        """The base's, with a digest of the data where the releases are no secret either.

        A subclass that makes private releases keeps the digest to itself.
        """
        data = {"data": self.data_fingerprint} if type(self).release is ZOTrainer.release else {}
        return {**super().public_header(), **data}

    def load_records(self) -> Transcript | None:
        """As the base's; a subclass whose `release` keeps something between steps, or draws, brings that back."""
        if type(self).release is not ZOTrainer.release:
            raise UserError(f"{type(self).__name__} cannot resume a run: its releases are not recorded")
        return super().load_records()

    @cached_property
    def source(self) -> Source:
        """Where the training samples' derivatives come from."""
        return make_source(self.args.zo_derivative, self.space, self.train_dataset, self.args.zo_eps)

    def checked_objective(self) -> Objective | None:
        """Whose derivatives the first step compares; what comes of it is published."""
        return self.train_dataset

    def _check_derivatives(self, seed: int) -> None:
        """Compares central differences with exact derivatives once, and warns where they are mostly noise."""
        objective = self.checked_objective()
        if self.args.no_derivative_check or self.args.zo_derivative != "central" or objective is None:
            return
        self.derivative_check = derivative_check(self.space, objective, self.args.zo_eps, seed)
        found = self.derivative_check
        if found is not None and found["correlation"] < LEAST_CORRELATION:
            logger.warning(
                f"central differences correlate {found['correlation']:.2f} with exact derivatives on"
                f" {CHECKED_SAMPLES} samples: use --zo_derivative exact, --dtype float32, or a --zo_eps above"
                f" {self.args.zo_eps:g}"
            )

    def _wrap_model(self, model: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        """No `DistributedDataParallel`: there are no gradients to reduce, and its buckets are a model's size."""
        if place()[1] > 1:
            model._is_accelerate_prepared = True  # type: ignore[assignment]
        return super()._wrap_model(model, *args, **kwargs)

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
        if not self.step_seconds:
            self._check_derivatives(seeds[0])
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
        """float32 (K, N) along the directions of `seeds`, and the mean loss, both sound."""
        derivatives, losses = self.source(seeds)
        check_sound(derivatives, losses, step, may_be_zero=self.train_dataset.may_be_zero)
        return derivatives, float(losses.mean(dtype=np.float64))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the base's, without the norm of a gradient that does not exist."""
        super().log({name: value for name, value in logs.items() if name != "grad_norm"}, start_time)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """2 operations a parameter and token in each forward pass, twice as many in a backward pass."""
        parameters = sum(p.numel() for p in self.model.parameters())
        passes = 3 if self.args.zo_derivative == "exact" else 2 * self.num_directions
        return 2 * passes * parameters * self.train_dataset.num_tokens

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
