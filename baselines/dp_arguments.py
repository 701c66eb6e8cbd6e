"""The arguments of `DPZOTrainer`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from baselines.accounting import ACCOUNTANTS
from src.utils import UserError
from src.zo.arguments import RecordedSettings, ZOArguments


@dataclass
class DPSettings(RecordedSettings):
    """The mechanism: DPZero (`dp_k` 1) or DP-AggZO (`dp_k` above 1)."""

    dp_k: int = field(default=1, metadata={"help": "Number K of directions a step."})
    dp_epsilon: float = field(default=2.0, metadata={"help": "Epsilon of the whole run."})
    dp_delta: float = field(default=1e-5, metadata={"help": "Delta of the whole run."})
    dp_clip: float = field(default=25.0, metadata={"help": "Bound c on the L2 norm of a sample's g / K."})
    dp_sample_rate: float = field(default=0.064, metadata={"help": "Chance of each sample to be in a batch."})
    dp_accountant: str = field(
        default="rdp",
        metadata={
            "help": "rdp: the noise of the sources (Opacus); with K > 1 a twentieth of epsilon hides N."
            " pld: the least noise; N is public."
        },
    )


@dataclass
class DPArguments(DPSettings, ZOArguments):
    """`ZOArguments` with the mechanism's settings, and where its secrets come from."""

    rows_are_secret: ClassVar[bool] = True

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
        if self.dp_accountant not in ACCOUNTANTS:
            raise UserError(f"dp_accountant must be one of {' and '.join(ACCOUNTANTS)}, got {self.dp_accountant}")
        if self.dp_load_best_dev:
            self.load_best_on_dev("dp_load_best_dev")
        super().__post_init__()
