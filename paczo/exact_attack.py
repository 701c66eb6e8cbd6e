"""What the strongest adversary really learned from a run, beside the bound: `private/attack.json`.

Where only bits are accounted for (PAC-ZPL, and PAC-MI charged by the bit), an adversary who knows the data can
compute the exact posterior over the candidate subsets: it follows from the bits, the subsets' signs and the flips,
all of which he knows. Here it is computed from the run's own ledger. How many of its guesses are right depends on
S*, so the file is private.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paczo.bit_channel import flip_log_odds
from paczo.ledger import unpack_signs, write_private
from src.record.chain import Record, read_records


def posterior_from_ledger(first: Record, lines: list[Record]) -> NDArray[np.float64]:
    """The posterior over the M subsets given the released bits of this run and of those before it, (M,).

    Args:
        first: the ledger's first line.
        lines: one a step.
    """
    num_subsets, earlier = first["num_subsets"], first["earlier_runs"]
    log_posterior = np.zeros(num_subsets) if earlier is None else np.array(earlier["log_posterior"])
    for line in lines:
        for bit, release in zip(line["coefficients"], line["releases"], strict=True):
            if release["flip"] is not None:
                tilt = 0.5 * bit * flip_log_odds(release["flip"])
                log_posterior = log_posterior + tilt * unpack_signs(release["signs"], num_subsets)
    weights: NDArray[np.float64] = np.exp(log_posterior - log_posterior.max())
    return weights / float(weights.sum())


def exact_attack(posterior: NDArray[np.float64], membership: NDArray[np.bool_], secret: int) -> dict[str, Any]:
    """How sure the best guesses are, and how many of them are right.

    Args:
        posterior: (M,), over the subsets.
        membership: bool (N, M).
        secret: S*.

    Returns:
        "member": of the guesses whether a sample is in S*: mean and largest posterior over the N samples of the
        likelier answer, and the share of right ones, a tie counting half. "naming": the posterior of the likeliest
        subset, and whether it is S* (0 or 1, shared among ties).
    """
    inside = membership @ posterior
    likelier = np.maximum(inside, 1.0 - inside)
    right = np.where(np.abs(inside - 0.5) < 1e-12, 0.5, (inside > 0.5) == membership[:, secret])
    named = posterior >= posterior.max() * (1.0 - 1e-12)
    return {
        "member": {
            "mean_posterior": float(likelier.mean()),
            "worst_posterior": float(likelier.max()),
            "right": float(right.mean()),
        },
        "naming": {"posterior": float(posterior.max()), "right": float(named[secret] / named.sum())},
    }


def write_exact_attack(folder: Path, membership: NDArray[np.bool_], privacy: dict[str, Any]) -> None:
    """Writes `folder/attack.json` (0600) from `folder/ledger.jsonl`, whose closing line is there.

    The bounds are on the mean success over the runs that could have been; one run may be above.

    Args:
        membership: bool (N, M).
        privacy: of `privacy_report`.
    """
    first, *lines = read_records(folder / "ledger.jsonl")
    found = exact_attack(posterior_from_ledger(first, lines[:-1]), membership, first["secret"])
    found["member"] |= {"prior": privacy["prior_success"], "bound": privacy["posterior_success_bound"]}
    found["naming"] |= {"prior": 1.0 / first["num_subsets"], "bound": privacy["naming_success_bound"]}
    write_private(folder / "attack.json", json.dumps(found, indent=2) + "\n")
