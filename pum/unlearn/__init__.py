"""Inner unlearning methods by name. They run alone (`pum.run_unlearn`) or on a disguised copy (`pum.run_pum`)."""

from __future__ import annotations

from pum.unlearn.base import UnlearnMethod
from pum.unlearn.ceu import CEU
from pum.unlearn.dpo import DPO
from pum.unlearn.grad_ascent import GradAscent, GradDiff
from pum.unlearn.npo import NPO
from pum.unlearn.pdu import PDU
from pum.unlearn.rmu import RMU
from pum.unlearn.satimp import SatImp
from pum.unlearn.simnpo import SimNPO
from pum.unlearn.undial import UNDIAL
from pum.unlearn.wga import WGA
from src.utils import UserError

METHODS: dict[str, type[UnlearnMethod]] = {
    method.name: method for method in (GradAscent, GradDiff, NPO, DPO, SimNPO, RMU, UNDIAL, CEU, WGA, SatImp, PDU)
}


def get_method(name: str) -> type[UnlearnMethod]:
    """The method called `name`; an unknown one raises `UserError`."""
    if name not in METHODS:
        raise UserError(f"unknown unlearning method '{name}'; known: {', '.join(METHODS)}")
    return METHODS[name]
