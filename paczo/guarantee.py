"""What a run says of its privacy: the entry `privacy` of `metrics.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from paczo.bounds import FALSE_RATES, epsilon_for_success, naming_success, posterior_success, tpr_at_fpr
from paczo.continuation import EarlierRuns
from paczo.pac_arguments import PACSettings
from paczo.randomness import SecretRandom
from paczo.run_mechanism import Mechanism, mechanism_name


def privacy_report(
    settings: PACSettings,
    mechanism: Mechanism,
    random: SecretRandom,
    releases: Mapping[str, int],
    earlier: EarlierRuns | None,
) -> dict[str, Any]:
    """Budget and spent nats of all runs on the secret, and what the budget bounds.

    The bounds follow from the budget. What was spent on this path of the run is not by itself a bound: mutual
    information is the mean over all paths, and only the budget holds on each.
    """
    rate = 0.5 if settings.pac_sampling_rate is None else settings.pac_sampling_rate / settings.pac_m
    prior = max(rate, 1 - rate)
    report: dict[str, Any] = {
        "mechanism": mechanism_name(settings),
        "secrets": random.label,
        "private": not settings.no_privacy and not random.reproducible,
        "prior_success": prior,
        "releases": dict(sorted(releases.items())),
    }
    if mechanism.spent_nats is None:
        return {**report, "guarantee": "not accounted"}
    budget, spent = settings.pac_mi or 0.0, float(mechanism.spent_nats)
    if earlier is not None:
        budget, spent = budget + earlier.budget_nats, spent + earlier.spent_nats
        report["earlier"] = {"runs": earlier.runs, "budget_nats": earlier.budget_nats}
    success = posterior_success(budget, prior)
    epsilon = epsilon_for_success(success)
    return {
        **report,
        "budget_nats": budget,
        "spent_nats": spent,
        "posterior_success_bound": success,
        "tpr_bounds": {f"{fpr:g}": tpr_at_fpr(budget, fpr, rate) for fpr in FALSE_RATES},
        "naming_success_bound": naming_success(budget, settings.pac_m),
        "epsilon": epsilon if prior == 0.5 and math.isfinite(epsilon) else None,
    }
