"""A run's mechanism: made from the run's settings, and its recorded releases made again. Private as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paczo.ledger import unpack_signs
from paczo.mechanisms import NonPrivate, PacMI, PacZPL, Release
from paczo.pac_arguments import PACSettings
from paczo.randomness import SecretRandom
from src.record.chain import Record, RecordError

Mechanism = PacMI | PacZPL | NonPrivate


def mechanism_name(settings: PACSettings) -> str:
    """As every output names it."""
    if settings.no_privacy:
        return f"non-private ({settings.ablation})"
    if settings.pac_zpl:
        return "pac-zpl, abstaining" if settings.pac_zpl_abstain else "pac-zpl"
    return "pac-mi" if settings.pac_charge == "real" else f"pac-mi, charged by the {settings.pac_charge}"


def make_mechanism(
    settings: PACSettings,
    steps: int,
    secret: int,
    membership: NDArray[np.bool_],
    random: SecretRandom,
    log_prior: ArrayLike | None,
) -> Mechanism:
    """The mechanism before its first release.

    Args:
        settings: of the run.
        steps: T.
        secret: S*.
        membership: bool (N, M).
        random: of the run; no other run may have it.
        log_prior: what earlier runs on S* have left, (M,); None for the uniform one.
    """
    if settings.no_privacy:
        return NonPrivate(str(settings.ablation), membership[:, secret], random)
    if settings.pac_mi is None:
        return PacZPL(settings.pac_m, secret, random, abstain=settings.pac_zpl_abstain, log_prior=log_prior)
    return PacMI(
        settings.pac_m,
        secret,
        settings.pac_mi,
        steps,
        random,
        adaptive=settings.pac_adaptive_mi,
        directions=settings.pac_k,
        charge=settings.pac_charge,
        log_prior=log_prior,
    )


def repeat(mechanism: Mechanism, line: Record, path: Path) -> list[str]:
    """Makes a recorded step's releases again; the random numbers are the same, so they must be too.

    Args:
        mechanism: in the state before the step; it is moved on.
        line: of the ledger at `path`.

    Returns:
        The releases' kinds.

    Raises:
        RecordError: a release, or the nats spent so far, come out otherwise than recorded.
    """
    kinds = []
    for coefficient, recorded in zip(line["coefficients"], line["releases"], strict=True):
        if isinstance(mechanism, NonPrivate):
            mechanism.skip()
            kinds.append(recorded["kind"])
            continue
        release = mechanism.release(unpack_signs(recorded["signs"], len(mechanism.log_posterior)))
        again = {**diagnostics(release), "coefficient": release.bit}
        if any({**recorded, "coefficient": coefficient}.get(name) != value for name, value in again.items()):
            raise RecordError(f"{path}: step {line['step']} does not give the release that is recorded")
        kinds.append(release.kind)
    if line["spent_nats"] != mechanism.spent_nats:
        raise RecordError(f"{path}: the nats spent up to step {line['step']} do not add up")
    return kinds


def diagnostics(release: Release) -> dict[str, Any]:
    """What the ledger keeps of a release besides its coefficient."""
    return {
        "kind": release.kind,
        "mi_nats": release.mi_nats,
        "q_plus": release.q_plus,
        "noise_std": release.noise_std,
        "noisy_sign": release.noisy_sign,
        "flip": release.flip,
    }


def run_id(random: SecretRandom) -> str:
    """The public name of the run with this secret stream: pseudorandom, so it tells nothing of the key."""
    return f"{random.uniform_index('run id', 0, 1 << 64):016x}"
