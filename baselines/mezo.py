"""`MeZOTrainer`: the zeroth-order method that all others here start from, without privacy (arXiv 2305.17333).

A step takes a batch of B samples, the mean of their derivatives along one direction z, and moves by it:
theta <- theta - lr (1/B) sum_i g_i z (algorithm 1). Batches come from a new shuffle of the samples in each epoch,
the last one of an epoch being smaller where B does not divide N, as the library's sampler makes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from src.utils import UserError
from src.zo.arguments import RecordedSettings, ZOArguments
from src.zo.sources import check_sound
from src.zo.trainer import ZOTrainer


@dataclass
class MeZOSettings(RecordedSettings):
    """What a step sees of the samples."""

    zo_batch_size: int = field(default=16, metadata={"help": "Samples B of a step."})


@dataclass
class MeZOArguments(MeZOSettings, ZOArguments):
    """`ZOArguments` with the size of a batch."""

    def __post_init__(self) -> None:
        if self.zo_batch_size < 1:
            raise UserError(f"zo_batch_size must be at least 1, got {self.zo_batch_size}")
        super().__post_init__()


class MeZOTrainer(ZOTrainer):
    """A `ZOTrainer` whose steps use batches; nothing of it is private."""

    args: MeZOArguments

    def batch(self, step: int) -> np.ndarray:
        """int64, the sample numbers of a step; they follow from `seed`, so every process has the same."""
        size = len(self.train_dataset)
        steps_an_epoch = -(-size // self.args.zo_batch_size)
        epoch, index = divmod(step, steps_an_epoch)
        order = np.random.default_rng([self.args.seed, epoch]).permutation(size)
        return order[index * self.args.zo_batch_size : (index + 1) * self.args.zo_batch_size]

    def _derivatives(self, step: int, seeds: Sequence[int]) -> tuple[np.ndarray, float]:
        """The base's, on the step's batch."""
        derivatives, losses = self.source(seeds, torch.from_numpy(self.batch(step)))
        check_sound(derivatives, losses, step, may_be_zero=self.train_dataset.may_be_zero)
        return derivatives, float(losses.mean(dtype=np.float64))

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """The base's, of a batch."""
        share = min(1.0, self.args.zo_batch_size / len(self.train_dataset))
        return round(share * super().floating_point_ops(inputs))

    def privacy(self) -> dict[str, Any]:
        """That there is none."""
        return {
            "mechanism": "MeZO",
            "secrets": "none",
            "private": False,
            "releases": {"mean derivative": self.state.global_step},
            "guarantee": "not accounted",
        }
