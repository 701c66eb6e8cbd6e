"""The optimizer of zeroth-order training: it applies step records."""

from __future__ import annotations

from collections.abc import Callable

import torch

from src.record.steps import StepRecord
from src.zo.directions import ParameterSpace


class ZOOptimizer(torch.optim.Optimizer):
    """Applies step records, so that learning-rate schedules and checkpoints stay the library's.

    Gradients play no part. `queue` a record, then `step()` applies it once; without one, `step()` does nothing.
    """

    def __init__(self, space: ParameterSpace, lr: float) -> None:
        super().__init__(list(space.parameters.values()), {"lr": lr})
        self._space = space
        self._record: StepRecord | None = None

    def queue(self, record: StepRecord) -> None:
        self._record = record

    @property
    def rests(self) -> bool:
        """Whether the queued record has coefficients of 0 only."""
        return self._record is not None and not any(self._record.coefficients)

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        record, self._record = self._record, None
        if record is not None:
            self._space.apply(record)
