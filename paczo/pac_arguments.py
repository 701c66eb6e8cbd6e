"""The arguments of `PACTrainer`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from paczo.mechanisms import CHARGES, NON_PRIVATE_MODES
from src.utils import UserError
from src.zo.arguments import RecordedSettings, ZOArguments


@dataclass
class PACSettings(RecordedSettings):
    """The mechanism. Choose one of `pac_mi`, `pac_zpl` and `no_privacy`."""

    pac_m: int = field(default=128, metadata={"help": "Number M of candidate subsets; even."})
    pac_mi: float | None = field(default=None, metadata={"help": "PAC-MI: budget in nats for the whole run."})
    pac_zpl: bool = field(default=False, metadata={"help": "PAC-ZPL: release with zero mutual information."})
    pac_zpl_abstain: bool = field(
        default=False, metadata={"help": "PAC-ZPL: where the subsets disagree release 0 in the place of a coin."}
    )
    pac_charge: str = field(
        default="real",
        metadata={
            "help": "PAC-MI: account for the real-valued noisy sign (real, the paper's) or the released bit (bit)."
        },
    )
    pac_clip: float = field(default=25.0, metadata={"help": "Bound c on each sample's derivative."})
    pac_k: int = field(default=1, metadata={"help": "Number K of directions a step."})
    pac_adaptive_mi: bool = field(
        default=True, metadata={"help": "Share what is left of the budget among the steps that are left."}
    )
    pac_disjoint_pairs: bool = field(
        default=False, metadata={"help": "Subsets are M/2 random halves and their complements."}
    )
    pac_sampling_rate: int | None = field(
        default=None, metadata={"help": "Each sample is in exactly this many of the M subsets, not in M/2."}
    )
    no_privacy: bool = field(default=False, metadata={"help": "Release without a mechanism; not accounted."})
    ablation: str | None = field(
        default=None, metadata={"help": f"With no_privacy: {', '.join(NON_PRIVATE_MODES)} (default: none)."}
    )

    @property
    def tells_bits_only(self) -> bool:
        """Whether all that is accounted for follows from public bits for whoever knows the data."""
        return self.pac_zpl or (self.pac_mi is not None and self.pac_charge == "bit")


@dataclass
class PACArguments(PACSettings, ZOArguments):
    """`ZOArguments` with the mechanism's settings, and where its secrets come from."""

    pac_secret_seed: int | None = field(
        default=None,
        metadata={"help": "Reproducible secrets for experiments. Such a run is not private."},
    )
    pac_continue_from: str | None = field(
        default=None,
        metadata={
            "help": "private/ of a finished run whose secret subset this run goes on with; their budgets add."
        },
    )
    pac_load_best_dev: bool = field(
        default=False,
        metadata={
            "help": "Evaluate and save every eval_steps; load the checkpoint best on the dev set at the end."
        },
    )

    def __post_init__(self) -> None:
        chosen = [name for name in ("pac_zpl", "no_privacy") if getattr(self, name)]
        if self.pac_mi is not None:
            chosen.append("pac_mi")
        if len(chosen) != 1:
            found = " and ".join(f"--{name}" for name in chosen) or "none"
            raise UserError(f"choose one of --pac_mi NATS, --pac_zpl and --no_privacy; got {found}")
        if self.pac_mi is not None and not 0 < self.pac_mi < math.inf:
            raise UserError(f"pac_mi must be positive and finite, got {self.pac_mi}; use --pac_zpl for zero nats")
        if self.pac_charge not in CHARGES:
            raise UserError(f"unknown pac_charge '{self.pac_charge}'; known: {', '.join(CHARGES)}")
        if self.pac_charge != "real" and self.pac_mi is None:
            raise UserError(f"--pac_charge {self.pac_charge} needs --pac_mi: nothing else is charged")
        if self.pac_zpl_abstain and not self.pac_zpl:
            raise UserError("--pac_zpl_abstain needs --pac_zpl")
        if self.pac_continue_from is not None and self.no_privacy:
            raise UserError("--pac_continue_from excludes --no_privacy, which keeps no account of the secret")
        if self.pac_m < 2 or self.pac_m % 2:
            raise UserError(f"pac_m must be even and at least 2, got {self.pac_m}")
        if not 0 < self.pac_clip < math.inf:
            raise UserError(f"pac_clip must be positive and finite, got {self.pac_clip}; 1e9 clips nothing")
        if self.pac_k < 1:
            raise UserError(f"pac_k must be at least 1, got {self.pac_k}")
        if self.pac_sampling_rate is not None:
            if self.pac_disjoint_pairs:
                raise UserError("--pac_sampling_rate and --pac_disjoint_pairs exclude each other")
            if not 1 <= self.pac_sampling_rate < self.pac_m:
                limits = f"between 1 and pac_m - 1 = {self.pac_m - 1}"
                raise UserError(f"pac_sampling_rate must be {limits}, got {self.pac_sampling_rate}")
        if self.ablation is not None and not self.no_privacy:
            raise UserError("--ablation needs --no_privacy: the ablations are not accounted")
        if self.no_privacy:
            self.ablation = self.ablation or "none"
            if self.ablation not in NON_PRIVATE_MODES:
                raise UserError(f"unknown ablation '{self.ablation}'; known: {', '.join(NON_PRIVATE_MODES)}")
        if self.pac_load_best_dev:
            self.load_best_on_dev("pac_load_best_dev")
        super().__post_init__()
