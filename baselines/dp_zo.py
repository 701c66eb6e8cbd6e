"""DPZero and DP-AggZO on `ZOTrainer`: differentially private zeroth-order training, the baselines of Table 3.

DPZero (Zhang et al., arXiv 2310.09639) is one direction a step, DP-AggZO (Bao et al. 2025) K of them, as in
arXiv 2605.06505, appendix on baselines. A step draws a Poisson batch (each of the N samples with probability
q_s), divides each sample's vector of K derivatives by K and clips it to L2 norm c, sums over the batch, adds
N(0, (noise_multiplier c)^2) to each coordinate and divides by the expected batch size q_s N:

    v = (sum_i clip_c(g_i / K) + noise) / (q_s N),    theta <- theta - lr sum_k v_k z_k
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from baselines.accounting import noise_multiplier
from paczo.bounds import success_for_epsilon
from paczo.randomness import SecretRandom
from src.engine.processes import on_first
from src.objectives import Objective
from src.utils import UserError
from src.zo.arguments import RecordedSettings, ZOArguments
from src.zo.trainer import ZOTrainer

_UNIT = 1 << 53


@dataclass
class DPSettings(RecordedSettings):
    """The mechanism: DPZero (`dp_k` 1) or DP-AggZO (`dp_k` above 1)."""

    dp_k: int = field(default=1, metadata={"help": "Number K of directions a step."})
    dp_epsilon: float = field(default=2.0, metadata={"help": "Epsilon of the whole run."})
    dp_delta: float = field(default=1e-5, metadata={"help": "Delta of the whole run."})
    dp_clip: float = field(default=25.0, metadata={"help": "Bound c on the L2 norm of a sample's g / K."})
    dp_sample_rate: float = field(default=0.064, metadata={"help": "Chance of each sample to be in a batch."})


@dataclass
class DPArguments(DPSettings, ZOArguments):
    """`ZOArguments` with the mechanism's settings, and where its secrets come from."""

    dp_secret_seed: int | None = field(
        default=None,
        metadata={"help": "Reproducible secrets for experiments. Such a run is not private."},
    )
    dp_load_best_dev: bool = field(
        default=False,
        metadata={
            "help": "Evaluate and save every eval_steps; load the checkpoint best on the dev set at the end."
        },
    )

    def __post_init__(self) -> None:
        if self.dp_k < 1:
            raise UserError(f"dp_k must be at least 1, got {self.dp_k}")
        for name in ("dp_epsilon", "dp_clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"{name} must be positive and finite, got {getattr(self, name)}")
        if not 0 < self.dp_delta < 1:
            raise UserError(f"dp_delta must lie strictly between 0 and 1, got {self.dp_delta}")
        if not 0 < self.dp_sample_rate <= 1:
            raise UserError(f"dp_sample_rate must lie in (0, 1], got {self.dp_sample_rate}")
        if self.dp_load_best_dev:
            self.load_best_on_dev("dp_load_best_dev")
        super().__post_init__()


class DPZOTrainer(ZOTrainer):
    """A `ZOTrainer` whose steps use Poisson batches and release clipped, noised sums.

    It differs from the base in the batch (`_derivatives` evaluates the drawn samples only), in `release`, and
    in what it logs: a batch's mean loss is covered by no noise, so it goes nowhere.

    Guarantee: the transcript, and with it the model, is (dp_epsilon, dp_delta)-differentially private for
    data sets that differ in one training sample (add or remove), with the number N and the dev set public.

    Raises:
        UserError: settings out of range, losses that are NaN or infinite, or a folder in use. A run cannot be
            resumed: its releases' randomness is not kept.
    """

    args: DPArguments

    def __init__(
        self,
        model: PreTrainedModel | nn.Module,
        args: DPArguments,
        train_dataset: Objective,
        eval_dataset: Objective | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, args, train_dataset, eval_dataset, **kwargs)
        self._random = SecretRandom.of_run(args.dp_secret_seed, on_first)
        try:
            self.noise_multiplier = noise_multiplier(
                args.dp_epsilon, delta=args.dp_delta, sample_rate=args.dp_sample_rate, steps=args.max_steps
            )
        except ValueError as error:
            raise UserError(str(error)) from error
        self.releases = 0

    @property
    def num_directions(self) -> int:
        return self.args.dp_k

    @property
    def mechanism_name(self) -> str:
        return "dpzero" if self.args.dp_k == 1 else "dp-aggzo"

    def public_header(self) -> dict[str, Any]:
        return {
            **super().public_header(),
            "mechanism": self.mechanism_name,
            "secrets": self._random.label,
            "num_samples": len(self.train_dataset),
            "noise_multiplier": self.noise_multiplier,
        }

    def batch(self, step: int) -> np.ndarray:
        """Sample numbers of a step's Poisson batch, int64, ascending; it may be empty. Secret."""
        return poisson_batch(self._random, step, len(self.train_dataset), self.args.dp_sample_rate)

    def _derivatives(self, step: int, seeds: Sequence[int]) -> tuple[np.ndarray, float]:
        """The base's on the step's batch; the second number, the loss for the logs, is always 0.

        A sample whose loss is NaN or infinite counts as 0. To stop at it, as the base does, would tell without
        noise that a secret batch holds it; the dev set's loss, which is public, stops a run that diverges.
        """
        samples = torch.from_numpy(self.batch(step))
        if not len(samples):
            return np.zeros((len(seeds), 0), dtype=np.float32), 0.0
        derivatives, _ = self.source(seeds, samples)
        derivatives[:, ~np.isfinite(derivatives).all(axis=0)] = 0.0
        return derivatives, 0.0

    def release(self, step: int, derivatives: np.ndarray) -> tuple[float, ...]:
        """K v_k for each direction: an update divides the sum over directions by K, the recipe does not."""
        directions = self.args.dp_k
        noise_std = self.noise_multiplier * self.args.dp_clip
        first = step * directions
        noise = np.array([self._random.standard_normal("dp noise", first + k) for k in range(directions)])
        noisy = clipped_sum(derivatives, self.args.dp_clip) + noise_std * noise
        expected_batch = self.args.dp_sample_rate * len(self.train_dataset)
        self.releases += 1
        return tuple((directions * noisy / expected_batch).tolist())

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """0: the base's number, which checkpoints hold, would tell the training set's number of tokens."""
        return 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the base's, without the batch's loss."""
        hidden = ("loss", "train_loss")
        super().log({name: value for name, value in logs.items() if name not in hidden}, start_time)

    def privacy(self) -> dict[str, Any]:
        """The run's guarantee, with the bound on a balanced membership attack that follows from it."""
        args = self.args
        return {
            "mechanism": self.mechanism_name,
            "secrets": self._random.label,
            "private": not self._random.reproducible,
            "prior_success": 0.5,
            "releases": {"gaussian": self.releases},
            "epsilon": args.dp_epsilon,
            "delta": args.dp_delta,
            "noise_multiplier": self.noise_multiplier,
            "neighbours": "add or remove one sample",
            "posterior_success_bound": success_for_epsilon(args.dp_epsilon, args.dp_delta),
        }


def poisson_batch(random: SecretRandom, step: int, num_samples: int, sample_rate: float) -> np.ndarray:
    """Numbers of the samples that a step draws, each independently with chance floor(2^53 q) / 2^53.

    int64, ascending, a pure function of the stream's key and the step.
    """
    below = math.floor(sample_rate * _UNIT)
    first = step * num_samples
    drawn = [i for i in range(num_samples) if random.uniform_index("poisson batch", first + i, _UNIT) < below]
    return np.array(drawn, dtype=np.int64)


def clipped_sum(derivatives: np.ndarray, clip: float) -> np.ndarray:
    """sum_i u_i min(1, clip / |u_i|) with u_i = g_i / K: float64 (K,), zeros for an empty batch.

    One sample more or less changes it by at most `clip` in L2 norm.

    Args:
        derivatives: float32 (K, n), one column a sample.
        clip: bound on a column's norm after the division by K.
    """
    vectors = derivatives.astype(np.float64) / len(derivatives)
    norms = np.linalg.norm(vectors, axis=0)
    shrunk = vectors * (clip / np.maximum(norms, clip))
    total: np.ndarray = shrunk.sum(axis=1)
    return total
