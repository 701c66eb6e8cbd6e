"""Where a step's N x K derivatives come from: central differences, or exactly, from one backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from torch import Tensor

from src.engine.derivatives import exact_derivatives
from src.engine.objective import Objective, Samples
from src.utils import UserError
from src.zo.directions import ParameterSpace

REMEDY = "lower the learning rate, or use float32 or bfloat16"
CHECKED_SAMPLES = 32


class Source(Protocol):
    """Derivatives along the directions of `seeds`, of all samples or of some."""

    def __call__(self, seeds: Sequence[int], samples: Samples | None = None) -> tuple[np.ndarray, np.ndarray]:
        """float32 (K, N) derivatives, and float32 (N,) losses."""


def make_source(kind: str, space: ParameterSpace, objective: Objective, eps: float) -> Source:
    """The source called `kind`, "central" or "exact".

    Raises:
        UserError: the objective's losses have no derivative.
    """
    if kind == "central":
        return CentralDifferences(space, objective, eps)
    objective.check_differentiable()
    return Exact(space, objective)


class Exact:
    """Derivatives from one pass forward and one backward whatever K (`src/engine/derivatives.py`)."""

    def __init__(self, space: ParameterSpace, objective: Objective) -> None:
        self.space, self.objective = space, objective

    def __call__(self, seeds: Sequence[int], samples: Samples | None = None) -> tuple[np.ndarray, np.ndarray]:
        derivatives, losses = exact_derivatives(self.objective, self.space, seeds, samples)
        return derivatives.float().numpy(), losses.float().numpy()


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


def derivative_check(
    space: ParameterSpace, objective: Objective, eps: float, seed: int
) -> dict[str, float] | None:
    """How true central differences are here: on the first `CHECKED_SAMPLES` samples, along one direction.

    Returns:
        "correlation" with the exact derivatives, and "error", the root mean square of the difference over that of
        the exact ones; None where the losses have no derivative, or all are equal.
    """
    try:
        exact = make_source("exact", space, objective, eps)
        rows = np.arange(min(CHECKED_SAMPLES, len(objective)))
        (truth,), _ = exact((seed,), rows)
    except UserError:
        return None
    (central,), _ = CentralDifferences(space, objective, eps)((seed,), rows)
    if not np.isfinite(central).all() or not central.std() or not truth.std():
        return None
    error = np.sqrt(np.mean((central - truth) ** 2) / np.mean(truth**2))
    return {"correlation": float(np.corrcoef(central, truth)[0, 1]), "error": float(error)}


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
