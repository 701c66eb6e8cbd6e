"""The hyperparameters of the inner unlearning methods: one list for all, each method knows its own."""

from __future__ import annotations

import sys
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
    method_args: str | None = field(
        default=None, metadata={"help": 'Any of these in one text, "delta=0.0 rmu_layer=7".'}
    )
    skip_foreign_args: bool = field(
        default=False, metadata={"help": "Skip with a note what method_args has and the method has not."}
    )


HYPERPARAMETERS = tuple(
    entry.name
    for entry in fields(MethodSettings)
    if entry.name not in ("retain_loss_type", "seed", "method_args", "skip_foreign_args")
)
# open-unlearning's names, which it has once for each method
ALIASES = {
    "delta": "delta_simnpo",
    "beta1": "satimp_beta1",
    "beta2": "satimp_beta2",
    "steering_coeff": "rmu_coeff",
    "retain_loss_eps": "pdu_retain_loss_eps",
    "dual_step_size": "pdu_step",
    "dual_warmup_epochs": "pdu_warmup_epochs",
}


def take_method_args(name: str, defaults: Defaults, settings: MethodSettings) -> None:
    """Move what `settings.method_args` says into the fields, for the method of that name.

    Raises:
        UserError: a word is not name=value, names no setting of any method, has no number, or says again what a
            field says already.
    """
    words, settings.method_args = (settings.method_args or "").split(), None
    for word in words:
        given, _, text = word.partition("=")
        key = ALIASES.get(given, given)
        if key != "retain_loss_type" and key not in HYPERPARAMETERS:
            raise UserError(f"method_args: '{word}' is not name=value with a name of {', '.join(HYPERPARAMETERS)}")
        if settings.skip_foreign_args and key in HYPERPARAMETERS and key not in defaults:
            print(f"note: {name} has no {given}, which is skipped", file=sys.stderr)
            continue
        if getattr(settings, key) is not None:
            raise UserError(f"method_args: {given} is given twice")
        try:
            value = text if key == "retain_loss_type" else int(text) if key == "rmu_layer" else float(text)
        except ValueError as error:
            raise UserError(f"method_args: {given} must be a number, got '{text}'") from error
        setattr(settings, key, value)


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
