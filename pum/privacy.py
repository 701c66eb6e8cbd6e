"""The report of a run, `privacy.json`: both bounds, what they cover, and what is published bare."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pum.arguments import PUMArguments
from pum.calibration import TAU_ZERO_REASON, joint_epsilon, paper_epsilon
from pum.plan import NoisePlan

# Where no delta is asked for, the report states the bounds for this one.
REPORT_DELTA = 1e-5


def report(
    plan: NoisePlan,
    args: PUMArguments,
    sizes: Mapping[str, tuple[int | None, int]],
    *,
    secrets: str,
    reference_is_public: bool,
) -> dict[str, Any]:
    """`privacy.json`: both bounds, what they cover, what is published bare. JSON without infinities.

    Args:
        sizes: group and number of entries of each published parameter.
        secrets: where alphas, noise and disguises come from.
        reference_is_public: whether the clipping reference is known not to depend on the protected model.
    """
    total = sum(count for _, count in sizes.values())
    bare = {n: c for n, (group, c) in sizes.items() if plan.sigmas[group] == 0.0 and plan.jitter == 0.0}
    unbounded = {name: count for name, (group, count) in sizes.items() if group not in plan.covered}
    enforced = plan.is_clipped and reference_is_public
    joint = _joint(plan, args)
    from_entropy = not secrets.startswith("reproducible")
    # Only where the bound holds without an assumption, for all that is published. sigma_rms and kappa tell theta's
    # size, and a client that compares with the server's model has it.
    holds = enforced and joint["epsilon"] is not None and not unbounded
    holds = holds and not args.sigma_rms and not args.kappa and args.client_reference == "copy"
    return {
        "protected": "the server's centre: two centres are neighbours within the sensitivities, layer by layer",
        "secrets": secrets,
        "private": from_entropy and holds,
        "copies_m": args.copies_m,
        "rounds_R": args.rounds_R,
        "alpha_min": args.alpha_min,
        "alpha_max": args.alpha_max,
        "delta": _delta(args),
        "jitter_tau": plan.jitter,
        "schedule": plan.schedule,
        "noise": [
            {"group": _label(g), "sigma": plan.sigmas[g], "clip_first_round": plan.thresholds.get(g)}
            for g in plan.sigmas
        ],
        "sensitivities": {
            "source": plan.sensitivity_source,
            "total": math.sqrt(sum(width**2 for width, _ in plan.terms)) if plan.terms else None,
            "enforced": enforced,
            "why": _why_enforced(plan, reference_is_public),
        },
        "paper": _paper(plan, args),
        "joint": joint,
        "published_bare": {"parameters": list(bare), "share": sum(bare.values()) / total},
        "bound_void_for": {"parameters": list(unbounded), "share": sum(unbounded.values()) / total},
        "disguised": args.use_orthogonal_reparam,
        "warnings": plan.warnings,
    }


def _why_enforced(plan: NoisePlan, reference_is_public: bool) -> str:
    if not plan.terms:
        return "no sensitivity is given"
    if not plan.thresholds:
        return "the centre is not clipped: that centres differ by no more is an assumption"
    if not plan.is_clipped:
        return (
            "the thresholds allow more than the sensitivity that is stated: that centres differ by no more is an"
            " assumption"
        )
    if not reference_is_public:
        return (
            "the clipping reference is the protected model itself, which it is always near: that centres differ by"
            " no more is an assumption; give center_reference_model_path"
        )
    return "the centre is clipped around a public reference"


def _paper(plan: NoisePlan, args: PUMArguments) -> dict[str, Any]:
    if not plan.terms:
        return {"epsilon": None, "why": "no sensitivity is given"}
    widths, sigmas = zip(*plan.terms, strict=True)
    epsilon = paper_epsilon(
        widths,
        sigmas,
        args.rounds_R,
        args.copies_m,
        args.alpha_min,
        args.alpha_max,
        _delta(args),
        orders=args.orders,
        worst_case=args.worst_case_alpha,
    )
    note = "the guide's formula, which adds up the copies as if their noises were independent; not a bound"
    if math.isinf(epsilon):
        return {"epsilon": None, "why": "infinite: something with a sensitivity has no zero-sum noise"}
    return {"epsilon": epsilon, "why": note}


def _joint(plan: NoisePlan, args: PUMArguments) -> dict[str, Any]:
    if not plan.terms:
        return {"epsilon": None, "why": "no sensitivity is given"}
    widths, sigmas = zip(*plan.terms, strict=True)
    # Equal alphas are the worst case (see joint_precision), and the true ones stay secret.
    alphas = [args.alpha_min] * args.copies_m
    epsilon = joint_epsilon(widths, sigmas, alphas, plan.jitter, args.rounds_R, _delta(args))
    if math.isinf(epsilon):
        return {"epsilon": None, "why": "infinite: " + TAU_ZERO_REASON}
    return {"epsilon": epsilon, "why": "all copies of all rounds together, every alpha and disguise known"}


def _delta(args: PUMArguments) -> float:
    return REPORT_DELTA if args.dp_delta is None else args.dp_delta


def _label(group: int | None) -> str:
    return "outside the layers" if group is None else f"layer {group}"


def summary(privacy: dict[str, Any]) -> str:
    """What the run says about the server's weights, in a few lines."""
    lines = [f"secrets             {privacy['secrets']}"]
    for name in ("paper", "joint"):
        bound = privacy[name]
        epsilon = "none" if bound["epsilon"] is None else f"{bound['epsilon']:.4g} at delta {privacy['delta']:g}"
        lines.append(f"epsilon, {name:<11}{epsilon} ({bound['why']})")
    for key, text in (("published_bare", "published bare"), ("bound_void_for", "bound void for")):
        found = privacy[key]
        names = ", ".join(found["parameters"][:3]) + (", ..." if len(found["parameters"]) > 3 else "")
        lines.append(f"{text:<20}{found['share']:.1%} of the weights" + (f": {names}" if names else ""))
    return "\n".join(lines + [f"warning             {warning}" for warning in privacy["warnings"]])
