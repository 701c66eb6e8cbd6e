"""The hyperparameters of the inner unlearning methods: one list for all, each method knows its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from src.utils import UserError

Defaults = Mapping[str, float | None]


@dataclass
class MethodSettings:
    """What the user says of a method. None stands for the method's own default."""

    gamma: float | None = field(default=None, metadata={"help": "Weight of the forget loss."})
    alpha: float | None = field(
        default=None, metadata={"help": "Weight of the retain loss; PDU: where it starts."}
    )
    beta: float | None = field(default=None, metadata={"help": "Of NPO, DPO, SimNPO, UNDIAL, WGA."})
    delta_simnpo: float | None = field(default=None, metadata={"help": "SimNPO's margin, nats a token."})
    satimp_beta1: float | None = field(default=None, metadata={"help": "SatImp's power of p."})
    satimp_beta2: float | None = field(default=None, metadata={"help": "SatImp's power of 1 - p."})
    retain_loss_type: str | None = field(
        default=None, metadata={"help": "NLL or KL(before || now); default: NLL, for RMU the distance of states."}
    )
    rmu_layer: int | None = field(default=None, metadata={"help": "RMU's layer, from 0; default 7 or the middle."})
    rmu_coeff: float | None = field(default=None, metadata={"help": "RMU's length of the target state, c."})
    pdu_retain_loss_eps: float | None = field(default=None, metadata={"help": "PDU's bound on the retain loss."})
    pdu_step: float | None = field(default=None, metadata={"help": "PDU's step on the multiplier."})
    pdu_warmup_epochs: float | None = field(
        default=None, metadata={"help": "Epochs before PDU's multiplier moves."}
    )
    seed: int = field(default=42, metadata={"help": "Of the run: the order of rows, RMU's direction."})


HYPERPARAMETERS = tuple(
    entry.name for entry in fields(MethodSettings) if entry.name not in ("retain_loss_type", "seed")
)


def resolve_settings(name: str, defaults: Defaults, settings: MethodSettings) -> dict[str, float | None]:
    """The method's hyperparameters: the user's where given, else its defaults.

    Raises:
        UserError: a hyperparameter is given that the method has not.
    """
    given = {key: getattr(settings, key) for key in HYPERPARAMETERS if getattr(settings, key) is not None}
    foreign = [key for key in given if key not in defaults]
    if foreign:
        known = ", ".join(defaults)
        raise UserError(f"{name} has no setting {', '.join(foreign)}; it has {known}")
    return {**defaults, **given}
