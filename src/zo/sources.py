"""Where a step's N x K derivatives come from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from src.engine.objective import Objective, Samples
from src.utils import UserError
from src.zo.directions import ParameterSpace

REMEDY = "lower the learning rate, or use float32 or bfloat16"


class CentralDifferences:
    """Derivatives from the losses at theta + eps z and theta - eps z: 2K forward passes, any objective.

    Args:
        space: of the objective's model.
        objective: per-sample losses.
        eps: distance of the two evaluations from theta.
    """

    def __init__(self, space: ParameterSpace, objective: Objective, eps: float) -> None:
        self.space, self.objective, self.eps = space, objective, eps

    def __call__(self, seeds: Sequence[int], samples: Samples | None = None) -> tuple[np.ndarray, np.ndarray]:
        """float32 (K, N) derivatives along the directions of `seeds`, and float32 (N,) losses, the mean of all.

        Args:
            samples: which of the objective's samples, None for all.
        """
        chosen = () if samples is None else (samples,)
        rows, losses = [], []
        for seed in seeds:
            plus, minus = self.space.two_point(seed, self.eps, lambda: self.objective.losses(*chosen))
            rows.append(central_difference(plus, minus, self.eps))
            losses.append(((plus + minus) / 2).float().numpy())
        return np.stack(rows), np.mean(losses, axis=0)


def central_difference(plus: Tensor, minus: Tensor, eps: float) -> np.ndarray:
    """g_i = (l_i(theta + eps z) - l_i(theta - eps z)) / (2 eps), float32 (N,) (arXiv 2605.06505, section 3)."""
    derivatives: np.ndarray = ((plus - minus) / (2 * eps)).float().numpy()
    return derivatives


def check_sound(derivatives: np.ndarray, losses: np.ndarray, step: int, *, may_be_zero: bool = False) -> None:
    """Raises `UserError` where a derivative is NaN or infinite, or all losses are zero though not `may_be_zero`.

    Both are facts about the whole training set, so stopping tells nothing about the secret half.

    Args:
        derivatives: (K, N).
        losses: (N,).
    """
    bad = int(np.count_nonzero(~np.isfinite(derivatives).all(axis=0)))
    if bad:
        raise UserError(f"step {step}: {bad} of {len(losses)} losses are NaN or infinite; {REMEDY}")
    if not may_be_zero and not losses.any():
        raise UserError(f"step {step}: all {len(losses)} losses are zero; check the labels and the prompts")
