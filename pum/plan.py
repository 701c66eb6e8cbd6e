"""From settings to noise: which sensitivities, which thresholds of the centre, which sigma and tau."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pum.arguments import PUMArguments
from pum.calibration import InfeasibleBudget, joint_jitter, paper_schedule
from pum.center import Thresholds, quantile_thresholds
from src.utils import UserError

KAPPA = "manual: kappa"


@dataclass
class NoisePlan:
    """What a run publishes with. A group is a layer's index, or None for what is outside the layers.

    Attributes:
        thresholds: C of each group that is clipped, in the first round; empty without clipping.
        sigmas: zero-sum noise of every group.
        jitter: tau.
        terms: (sensitivity, sigma) pairs that the accountings add up, mean square over the rounds.
        covered: groups whose sensitivity is bounded.
        round_factor: by which the thresholds grow each further round.
        schedule, sensitivity_source: where noise and sensitivities come from, in words.
        total: sensitivity of all parameters together, where the user states one.
        is_clipped: whether the thresholds alone keep every term's parameters within its sensitivity.
    """

    thresholds: dict[int | None, float]
    sigmas: dict[int | None, float]
    jitter: float
    terms: list[tuple[float, float]]
    covered: set[int | None]
    round_factor: float = 1.0
    schedule: str = "manual"
    sensitivity_source: str = "none"
    total: float | None = None
    is_clipped: bool = False
    warnings: list[str] = field(default_factory=list)

    def thresholds_of_round(self, index: int) -> Thresholds:
        """C of round `index` (0, 1, ...): those of the quantile policy grow by gamma each round."""
        return {
            group: limit if group is None else limit * self.round_factor**index
            for group, limit in self.thresholds.items()
        }


def make_plan(
    args: PUMArguments,
    layers: int,
    *,
    outside: bool = True,
    reference_norms: Sequence[Sequence[float]] | None = None,
    weights_rms: float = 0.0,
    kappa_sigmas: Mapping[int | None, float] | None = None,
) -> NoisePlan:
    """The noise plan of a run; raises `UserError` for lists of the wrong length and contradictory settings.

    Args:
        layers: number of layers L, 0 where it cannot be told.
        outside: whether there are parameters outside the layers.
        reference_norms: (J, L) distances of the public reference models from the base, for the quantile policy.
        weights_rms: root mean square of all weights, which `sigma_rms` is a share of.
        kappa_sigmas: what `kappa` gives each layer.
    """
    _check_lengths(args, layers)
    plan = NoisePlan({}, {}, args.jitter_tau, [], set())
    widths = _sensitivities(args, layers, reference_norms, plan)
    _set_thresholds(args, widths, plan)
    groups: list[int | None] = [*range(layers), *([None] if outside or not layers else [])]
    _manual_noise(args, groups, weights_rms, kappa_sigmas, plan)
    per_layer = args.per_layer_noise and widths is not None
    if args.per_layer_noise and widths is None and args.dp_epsilon is not None:
        plan.warnings.append("the model's layers cannot be told: one sigma is calibrated for all parameters")
    term_groups, term_widths = _terms(args, groups, widths, per_layer, plan)
    if args.dp_epsilon is not None:
        _calibrate(args, term_groups, term_widths, plan)
    plan.terms = [
        (width, min(plan.sigmas[group] for group in members))
        for members, width in zip(term_groups, term_widths, strict=True)
    ]
    plan.is_clipped = _is_clipped(plan, term_groups, term_widths, args.rounds_R)
    if not any(plan.sigmas.values()) and not plan.jitter:
        plan.warnings.append("the copies have no noise: each one is the model itself")
    if args.copies_m == 1 and any(plan.sigmas.values()):
        raise UserError("copies_m 1 has no zero-sum noise: use at least 2 copies, or sigma 0 and jitter_tau")
    return plan


def _check_lengths(args: PUMArguments, layers: int) -> None:
    names = (
        "center_clip_C_per_layer",
        "dp_sensitivity_per_layer_l2",
        "sigma_per_layer",
        "clip_update_norm_per_layer",
    )
    for name in names:
        value = getattr(args, name)
        # Where the layers cannot be told, the guide falls back to one sigma, from the list's norm.
        fallback = name == "dp_sensitivity_per_layer_l2" and not layers
        if value is not None and len(value) != layers and not fallback:
            raise UserError(f"{name} has {len(value)} entries, but the model has {layers} layers")


def _sensitivities(
    args: PUMArguments, layers: int, norms: Sequence[Sequence[float]] | None, plan: NoisePlan
) -> list[float] | None:
    """D_l of the first round: from public references, given thresholds, the list, or the total's share."""
    given = args.dp_sensitivity_per_layer_l2
    if norms is not None:
        limits = quantile_thresholds(norms, args.center_clip_quantile_q, args.center_clip_quantile_kappa)
        plan.sensitivity_source, plan.round_factor = "quantile of public references", args.center_clip_round_gamma
        if given is not None or args.dp_sensitivity_total_l2 is not None:
            plan.warnings.append("the quantile policy sets the sensitivities: dp_sensitivity_* is not used")
        return [2.0 * limit for limit in limits]
    if args.center_clip_C_per_layer is not None:
        widths = [2.0 * limit for limit in args.center_clip_C_per_layer]
        if given is not None and any(claim < width for claim, width in zip(given, widths, strict=True)):
            raise UserError("dp_sensitivity_per_layer_l2 is below 2 C of center_clip_C_per_layer in some layer")
        plan.sensitivity_source = "center_clip_C_per_layer"
        return widths if given is None else list(given)
    if given is not None:
        plan.sensitivity_source = "dp_sensitivity_per_layer_l2"
        if not layers:
            plan.total = math.sqrt(sum(width**2 for width in given))
        return list(given) if layers else None
    if args.dp_sensitivity_total_l2 is not None:
        plan.sensitivity_source = "dp_sensitivity_total_l2"
        plan.total = args.dp_sensitivity_total_l2
        return [plan.total / math.sqrt(layers)] * layers if layers else None
    return None


def _set_thresholds(args: PUMArguments, widths: list[float] | None, plan: NoisePlan) -> None:
    limits: dict[int | None, float] = {}
    if args.center_clip_C_per_layer is not None:
        limits.update(enumerate(args.center_clip_C_per_layer))
    elif widths is not None:
        limits.update({layer: width / 2.0 for layer, width in enumerate(widths)})
    if args.center_clip_C_global is not None:
        limits[None] = args.center_clip_C_global
    if args.server_center_clipping and not limits:
        raise UserError(
            "server_center_clipping needs center_clip_C_per_layer, center_clip_C_global or sensitivities"
        )
    if args.server_center_clipping is not False:
        plan.thresholds = limits


def _manual_noise(
    args: PUMArguments,
    groups: Sequence[int | None],
    weights_rms: float,
    kappa_sigmas: Mapping[int | None, float] | None,
    plan: NoisePlan,
) -> None:
    sigma = args.sigma if args.sigma_rms is None else args.sigma_rms * weights_rms
    plan.sigmas = dict.fromkeys(groups, sigma)
    if args.sigma_per_layer is not None:
        plan.sigmas.update(enumerate(args.sigma_per_layer))
    if kappa_sigmas is not None:
        plan.sigmas.update(kappa_sigmas)
        plan.schedule = KAPPA
        if args.kappa_base_model_path is None:
            plan.warnings.append(
                "kappa has no base model: sigma is a share of the layers' weights, tens of times more than of what"
                " fine-tuning changed; give BASE_MODEL (--kappa_base_model_path)"
            )


def _terms(
    args: PUMArguments,
    groups: Sequence[int | None],
    widths: list[float] | None,
    per_layer: bool,
    plan: NoisePlan,
) -> tuple[list[list[int | None]], list[float]]:
    """Groups with one sensitivity each, and these, as the root of the mean square over the rounds."""
    growth = [plan.round_factor ** (2 * index) for index in range(args.rounds_R)]
    factor = math.sqrt(sum(growth) / len(growth))
    found: dict[int | None, float] = {}
    if widths is not None:
        found.update({layer: factor * width for layer, width in enumerate(widths)})
    if args.center_clip_C_global is not None and None in groups:
        found[None] = 2.0 * args.center_clip_C_global
    total = plan.total
    if per_layer or (args.dp_epsilon is None and total is None):
        plan.covered = set(found)
        return [[group] for group in found], list(found.values())
    # One sigma: the sensitivity of all together. A total given by the user is a statement on all parameters.
    plan.covered = set(groups) if total is not None else set(found)
    combined = total if total is not None else math.sqrt(sum(width**2 for width in found.values()))
    return [list(groups)], [combined]


def _is_clipped(
    plan: NoisePlan, groups: Sequence[Sequence[int | None]], widths: Sequence[float], rounds: int
) -> bool:
    """Whether 2 C of each term's covered groups together is within its sensitivity, in mean square over rounds."""
    tables = [plan.thresholds_of_round(index) for index in range(rounds)]
    for members, width in zip(groups, widths, strict=True):
        covered = [group for group in members if group in plan.covered]
        if any(group not in plan.thresholds for group in covered):
            return False
        mean_square = sum((2.0 * table[group]) ** 2 for table in tables for group in covered) / rounds
        if mean_square > width**2 * (1.0 + 1e-9):
            return False
    return bool(widths)


def _calibrate(args: PUMArguments, groups: list[list[int | None]], widths: list[float], plan: NoisePlan) -> None:
    epsilon, delta = args.dp_epsilon, args.dp_delta
    assert epsilon is not None
    assert delta is not None
    try:
        if args.dp_accounting == "joint":
            least = joint_jitter(epsilon, delta, widths, args.rounds_R, args.copies_m)
            if 0.0 < args.jitter_tau < least:
                plan.warnings.append(
                    f"jitter_tau {args.jitter_tau:g} is below what the target needs: {least:g} is used"
                )
            plan.jitter, plan.schedule = max(args.jitter_tau, least), "joint: jitter"
            return
        schedule = paper_schedule(
            epsilon,
            delta,
            widths,
            args.rounds_R,
            args.copies_m,
            args.alpha_min,
            args.alpha_max,
            orders=args.orders,
            allocation=args.dp_per_layer_allocation,
            worst_case=args.worst_case_alpha,
        )
    except InfeasibleBudget as error:
        plan.warnings.append(f"no calibration is feasible, the manual sigma stays: {error}")
        return
    for members, sigma in zip(groups, schedule.sigmas, strict=True):
        plan.sigmas.update(dict.fromkeys(members, sigma))
    plan.schedule = f"paper: {schedule.allocation}, order {schedule.order:g}"
