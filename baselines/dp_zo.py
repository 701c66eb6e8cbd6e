"""DPZero and DP-AggZO on `ZOTrainer`: differentially private zeroth-order training, the baselines of Table 3.

DPZero (Zhang et al., arXiv 2310.09639) is one direction a step, DP-AggZO (Bao et al. 2025) K of them, as in
arXiv 2605.06505, appendix on baselines. A step draws a Poisson batch (each of the N samples with probability
q_s), divides each sample's vector of K derivatives by K and clips it to L2 norm c, sums over the batch, adds
noise of standard deviation noise_multiplier c to each coordinate and divides by the expected batch size q_s N:

    v = (sum_i clip_c(g_i / K) + noise) / (q_s N),    theta <- theta - lr sum_k v_k z_k

The sums and the noise are integers (`mechanism.py`): nothing about the noise is a matter of floating point.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from baselines.accounting import ACCOUNTANTS, noise_multiplier
from baselines.dp_arguments import DPArguments
from baselines.mechanism import Grid, cost_of_the_grid, noisy_count, poisson_batch, release
from paczo.bounds import success_for_epsilon
from paczo.private_run import PrivateRun
from paczo.publishing import NOT_PRIVATE
from src.engine.processes import on_first
from src.objectives import Objective
from src.record.chain import Record
from src.utils import UserError


@dataclass(frozen=True)
class Shares:
    """What of epsilon goes into the noise, and into the number of samples; 0 where that number is public."""

    noise: float
    count: float


class DPZOTrainer(PrivateRun):
    """A `ZOTrainer` whose steps use Poisson batches and release clipped, noised sums.

    It differs from the base in the batch (`_derivatives` evaluates the drawn samples only), in `release`, and
    in what it logs: a batch's mean loss is covered by no noise, so it goes nowhere, not even into the ledger.

    Guarantee: the transcript, and with it the model, is (dp_epsilon, dp_delta)-differentially private for
    data sets that differ in one training sample (add or remove), with the dev set public, and N where
    `dp_accountant` is `pld` or K is 1. `baselines/README.md` says what that leaves open.

    Raises:
        UserError: settings out of range or without a noise that is enough, or a folder in use.
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
        super().__init__(model, args, train_dataset, eval_dataset, secret_seed=args.dp_secret_seed, **kwargs)
        try:
            self.noise_multiplier = multiplier(args, args.dp_accountant)
        except ValueError as error:
            raise UserError(str(error)) from error
        self.shares = shares(args, args.dp_accountant)
        self.grid = Grid(args.dp_clip, self.noise_multiplier)
        self.releases = 0

    @property
    def num_directions(self) -> int:
        return self.args.dp_k

    @property
    def mechanism_name(self) -> str:  # type: ignore[override]
        return "dpzero" if self.args.dp_k == 1 else "dp-aggzo"

    @property
    def count(self) -> int:
        """N as it is published: noisy where a share of epsilon is for that."""
        size, share = len(self.train_dataset), self.shares.count
        return noisy_count(self._random, size, share) if share else size

    def public_header(self) -> dict[str, Any]:
        return {
            **super().public_header(),
            "noisy_num_samples" if self.shares.count else "num_samples": self.count,
            "noise_multiplier": self.noise_multiplier,
        }

    def batch(self, step: int) -> np.ndarray:
        """Sample numbers of a step's Poisson batch, int64, ascending; it may be empty. Secret.

        Drawn in the first process, which has the key of a resumed run.
        """
        size, rate = len(self.train_dataset), self.args.dp_sample_rate
        return on_first(lambda: poisson_batch(self._random, step, size, rate))

    def checked_objective(self) -> Objective | None:
        """The dev set, which is public: a figure of the training samples would be released without noise."""
        return self.eval_dataset  # type: ignore[return-value]

    def _derivatives(self, step: int, seeds: Sequence[int]) -> tuple[np.ndarray, float]:
        """The base's on the step's batch; the second number, the loss for the logs, is always 0.

        A sample whose loss is NaN or infinite counts as 0. To stop at it, as the base does, would tell without
        noise that a secret batch holds it; the dev set's loss, which is public, stops a run that diverges.
        """
        samples = torch.from_numpy(self.batch(step))
        if not len(samples):
            return np.zeros((len(seeds), 0), dtype=np.float32), 0.0
        self.train_dataset.keep_front()
        derivatives, _ = self.source(seeds, samples)
        derivatives[:, ~np.isfinite(derivatives).all(axis=0)] = 0.0
        return derivatives, 0.0

    def release(self, step: int, derivatives: np.ndarray) -> tuple[float, ...] | None:
        """K v_k for each direction: an update divides the sum over directions by K, the recipe does not."""
        if self.closed:
            return None
        noisy = release(self.grid, derivatives, self._random, step)
        coefficients = tuple((self.args.dp_k * noisy / (self.args.dp_sample_rate * self.count)).tolist())
        self.note(step, coefficients)
        self.releases += 1
        return coefficients

    def repeat(self, line: Record, path: Path) -> None:
        self.releases += 1

    def recorded_loss(self, step: int) -> float:
        return 0.0

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """0: the base's number, which checkpoints hold, would tell the training set's number of tokens."""
        return 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the base's, without the batch's loss."""
        hidden = ("loss", "train_loss")
        super().log({name: value for name, value in logs.items() if name not in hidden}, start_time)

    def card(self) -> str:
        facts = self.privacy()
        guarantee = (
            f"The model is ({facts['epsilon']:g}, {facts['delta']:g})-differentially private for training sets"
            f" that differ in one sample (accountant {facts['accountant']}, {self.args.max_steps} steps)."
        )
        guarantee = guarantee if facts["private"] else NOT_PRIVATE.format(guarantee)
        return f"# Fine-tuned with {facts['mechanism']}\n\n{guarantee}\n\nSecrets: {facts['secrets']}.\n"

    @cached_property
    def _multipliers(self) -> dict[str, float | None]:
        """Of each accountant; a search that takes about a second, and every checkpoint has a card."""
        return {name: _multiplier_or_none(self.args, name) for name in ACCOUNTANTS}

    def privacy(self) -> dict[str, Any]:
        """The run's guarantee, with the bound on a balanced membership attack that follows from it.

        `noise_multipliers` holds what each accountant asks for; None where it cannot show the guarantee.
        """
        args = self.args
        return {
            "mechanism": self.mechanism_name,
            "secrets": self._random.label,
            "private": not self._random.reproducible,
            "prior_success": 0.5,
            "releases": {"gaussian": self.releases},
            "epsilon": args.dp_epsilon,
            "delta": args.dp_delta,
            "accountant": args.dp_accountant,
            "noise_multiplier": self.noise_multiplier,
            "noise_multipliers": self._multipliers,
            "epsilon_of_noise": self.shares.noise,
            "epsilon_of_num_samples": self.shares.count,
            "neighbours": "add or remove one sample",
            "posterior_success_bound": success_for_epsilon(args.dp_epsilon, args.dp_delta),
        }


def shares(args: DPArguments, accountant: str) -> Shares:
    """With `rdp` and several directions as in DP-AggZO's code: a twentieth of epsilon hides the number N."""
    if accountant == "rdp" and args.dp_k > 1:
        return Shares(0.95 * args.dp_epsilon, 0.05 * args.dp_epsilon)
    return Shares(args.dp_epsilon, 0.0)


def multiplier(args: DPArguments, accountant: str) -> float:
    """The noise multiplier that an accountant asks for; `ValueError` where it cannot show the guarantee."""
    epsilon, draws = shares(args, accountant).noise, args.dp_k * args.max_steps
    delta = args.dp_delta - cost_of_the_grid(epsilon, draws)
    if delta <= 0:
        raise ValueError(f"dp_delta {args.dp_delta} is too small beside dp_epsilon {args.dp_epsilon}")
    return noise_multiplier(
        epsilon, accountant=accountant, delta=delta, sample_rate=args.dp_sample_rate, steps=args.max_steps
    )


def _multiplier_or_none(args: DPArguments, accountant: str) -> float | None:
    try:
        return multiplier(args, accountant)
    except ValueError:
        return None
