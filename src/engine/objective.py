"""What every objective is: N samples, a model, and passes over them that survive a full GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from src.engine.batching import Indices, default_token_budget
from src.engine.processes import place, spread
from src.engine.scoring import Piece, Watcher
from src.utils import UserError

Samples = Sequence[int] | Tensor | Indices
ResultT = TypeVar("ResultT")


class Objective(Dataset[int]):
    """N samples whose losses can be asked for together.

    Subclasses define `losses()` and `metrics()`. It is a `Dataset` so that `Trainer` takes it as one; its
    items are the samples' numbers, which nothing needs to load.

    Attributes:
        num_tokens: real tokens of one pass over all samples.
        token_budget: padded tokens in one micro-batch of a forward pass.
        derivative_budget: likewise of a pass forward and backward; None for the device's default.
        recompute: whether such a pass keeps the layers' inputs only and runs each layer a second time.
        may_be_zero: whether all losses may be zero at once in a sound run.
    """

    may_be_zero = False

    def __init__(self, model: nn.Module, num_samples: int, token_budget: int | None = None) -> None:
        if num_samples < 1:
            raise ValueError("an objective needs at least one sample")
        self.model = model
        self.device = next(model.parameters()).device
        self.num_samples = num_samples
        self.num_tokens = 0
        self.token_budget = default_token_budget(model, self.device) if token_budget is None else token_budget
        self.derivative_budget: int | None = None
        self.recompute = False

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> int:
        return index

    def losses(self, samples: Samples | None = None) -> Tensor:
        """float32, on the CPU: (N,) in sample order, or one for each of `samples`, in their order."""
        raise NotImplementedError

    def pieces(self, token_budget: int, rows: Indices | None = None) -> list[Piece]:
        """The samples in pieces that go through the model together, for `piece_losses`; `rows` None for all."""
        raise NotImplementedError

    @property
    def recomputable(self) -> bool:
        """Whether a pass forward and backward may run the layers a second time."""
        return False

    def check_differentiable(self) -> None:
        """Raises `UserError` where the losses have no derivative: a subclass that has one defines `pieces`."""
        if type(self).pieces is Objective.pieces:
            raise UserError(f"the losses of {type(self).__name__} have no derivative; use --zo_derivative central")

    def piece_losses(self, piece: Piece, watcher: Watcher) -> Tensor:
        """float32 (n,), float64 where the model is, of the piece's samples, with the graph behind them."""
        raise NotImplementedError

    def keep_front(self) -> None:
        """For runs over other samples every step: keeps what frozen layers give for each sample, if it can."""

    def metrics(self) -> dict[str, float]:
        """Scores by name, "loss" (the mean) among them, all from one pass."""
        return {"loss": float(self.losses().mean())}

    def spread(self, evaluate: Callable[[Indices | None], Tensor], rows: Indices | None) -> Tensor:
        """`evaluate(rows)`, None for all samples, shared among the run's processes; on the CPU."""
        if place()[1] == 1:
            return evaluate(rows).cpu()
        return spread(evaluate, np.arange(len(self)) if rows is None else rows, self.device)

    def _pass(self, run: Callable[[int], ResultT]) -> ResultT:
        """`run(token_budget)` in evaluation mode; out of memory on a GPU, again with half the budget."""
        if self.model.training:
            self.model.eval()
        while True:
            try:
                return run(self.token_budget)
            except torch.cuda.OutOfMemoryError:
                if self.token_budget < 2:
                    raise
            torch.cuda.empty_cache()
            self.token_budget //= 2


def as_rows(samples: Samples | None) -> Indices | None:
    """Sample numbers as an int64 array; None stays None, for all."""
    return None if samples is None else np.asarray(samples, dtype=np.int64)
