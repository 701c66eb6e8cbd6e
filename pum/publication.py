"""What the server publishes in a round: T_k(theta~ + alpha_k e_k + xi_k), one tensor at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from pum.aggregate import l2_norm
from pum.arguments import PUMArguments
from pum.center import (
    center,
    clip_scales,
    count_layers,
    distances,
    groups_of,
    layer_distances,
    update_reference,
)
from pum.kappa import kappa_sigmas
from pum.noise import SecretSource, ZeroSumStream, draw_alphas, jitter_noise
from pum.plan import KAPPA, NoisePlan, make_plan
from pum.privacy import report
from pum.reparam import Disguise
from src.models import load_model
from src.utils import UserError

State = Mapping[str, Tensor]


class Publication:
    """Round `index` of a run: the secrets of its copies, and the copies.

    A copy is a pure function of theta, the reference, the secret and k. Copies are asked for in ascending order;
    the noise's keys of those passed over are drawn all the same, for a copy's noise depends on that of the ones
    before. In memory between two copies is nothing but the reference's mean, where it is kept.

    Args:
        theta: the server's parameters, in the model's order; read anew for every copy.
        model: of which names, shapes and configuration are taken; it may lie on the meta device.
        reference: theta_ref; empty where nothing is clipped.
        keep_mean: whether a further round needs the mean of the copies.
        device: where sums are held.

    Attributes:
        alphas: of the copies.
        sigmas: the noise of each group in this round.
    """

    def __init__(
        self,
        theta: State,
        model: nn.Module,
        args: PUMArguments,
        plan: NoisePlan,
        secrets: SecretSource,
        index: int,
        *,
        reference: State,
        keep_mean: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self.args, self.plan, self.secrets, self.index = args, plan, secrets, index
        self.alphas = _alphas(args, secrets, index)
        self._theta, self._model, self._reference = theta, model, reference
        self._groups = groups_of(model)
        self._noise = ZeroSumStream(args.copies_m, device)
        self._scales: dict[int | None, float] = {}
        if reference:
            limits = plan.thresholds_of_round(index)
            self._scales = clip_scales(distances(theta, reference, self._groups), limits)
        kept = reference if keep_mean else {}
        self._mean = {name: torch.zeros_like(kept[name], device=device) for name in kept}
        self._next = 0

    @cached_property
    def sigmas(self) -> Mapping[int | None, float]:
        """The plan's, of which those by kappa follow theta."""
        args, plan = self.args, self.plan
        if not args.kappa or not self.index or plan.schedule != KAPPA:
            return plan.sigmas
        return plan.sigmas | kappa_sigmas(self._model, args.kappa, args.kappa_base_model_path, self._theta)

    def disguise(self, k: int) -> Disguise | None:
        """T_k, or None where copies are not disguised."""
        if not self.args.use_orthogonal_reparam:
            return None
        return Disguise.sample(self._model, self.secrets.generator("disguise", self.index, k))

    def copy(self, k: int) -> Iterator[tuple[str, Tensor]]:
        """Name and value of each parameter of copy k = 0..m-1, in the model's dtype, in memory of its own.

        Sums and disguise are computed in float32 and rounded once.
        """
        self._pass_over(k)
        disguise = self.disguise(k)
        for name, value, dtype in self._values(k):
            moved = value if disguise is None else disguise.move(name, value)
            yield name, moved.to(dtype)

    @torch.no_grad()
    def next_reference(self) -> Iterator[tuple[str, Tensor]]:
        """Name and value of theta_ref of the next round; nothing where no mean was kept."""
        if self._mean:
            self._pass_over(self.args.copies_m)
        for name in self._mean:
            following = {name: self._reference[name].clone()}
            update_reference(following, self._mean, self.args.theta_ref_beta)
            yield name, following[name]

    def _pass_over(self, end: int) -> None:
        if end < self._next:
            raise ValueError(f"copy {end + 1} was drawn already, or one before it was not read to its end")
        for k in range(self._next, end):
            for _ in self._values(k, only_noise=not self._mean):
                pass

    @torch.no_grad()
    def _values(self, k: int, *, only_noise: bool = False) -> Iterator[tuple[str, Tensor, torch.dtype]]:
        """theta~ + alpha_k e_k + xi_k, at least float32; with `only_noise` nothing but what later copies need."""
        self._next = self.args.copies_m + 1  # until all is read, no other copy can be drawn
        zero_sum, jitter = (self.secrets.generator(kind, self.index, k) for kind in ("noise", "jitter"))
        for name, group in self._groups.items():
            sigma = self.sigmas[group]
            if only_noise:
                if sigma:
                    self._noise.skip(name, sigma, zero_sum)
                continue
            parameter = self._theta[name]
            value = center(parameter, self._reference.get(name, parameter), self._scales.get(group, 1.0))
            if sigma:
                draw = self._noise.draw(name, parameter.shape, sigma, zero_sum)
                value.add_(draw.to(value.device), alpha=self.alphas[k])
            if self.plan.jitter:
                value.add_(jitter_noise(parameter.shape, self.plan.jitter, jitter).to(value.device))
            if name in self._mean:
                self._mean[name].add_(value.to(self._mean[name].device), alpha=1.0 / self.args.copies_m)
            yield name, value, parameter.dtype
        self._next = k + 1


def _alphas(args: PUMArguments, secrets: SecretSource, index: int) -> list[float]:
    m = args.copies_m
    if args.alphas == "fixed":
        return [1.0 + k / max(m - 1, 1) for k in range(m)]
    return draw_alphas(m, args.alpha_min, args.alpha_max, secrets.generator("alpha", index))


def noise_plan(args: PUMArguments, model: nn.Module, groups: Mapping[str, int | None]) -> NoisePlan:
    """The noise plan of a run that starts from `model`; raises `UserError` as `make_plan`."""
    norms = None
    paths = args.center_clip_ref_model_paths
    if paths is not None:
        base = first_reference(args, model)
        norms = [layer_distances(load_model(path)[0], base, path) for path in paths]
    weights = list(model.parameters())
    rms = l2_norm(weights) / math.sqrt(sum(weight.numel() for weight in weights))
    outside = None in groups.values()
    kappa, public = args.kappa, args.kappa_base_model_path
    plan = make_plan(
        args,
        count_layers(groups),
        outside=outside,
        reference_norms=norms,
        weights_rms=rms,
        kappa_sigmas=None if kappa is None else kappa_sigmas(model, kappa, public),
    )
    if norms is not None and args.center_reference_model_path is None:
        plan.warnings.append(
            "the quantile policy measures from the protected model itself: give center_reference_model_path"
        )
    return plan


def first_reference(args: PUMArguments, model: nn.Module, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """theta_ref of the first round, float32 on `device`: the public model, else theta_0."""
    source, path = model, args.center_reference_model_path
    if path is not None:
        source = load_model(path)[0]
        shapes = [{name: tensor.shape for name, tensor in each.named_parameters()} for each in (source, model)]
        if shapes[0] != shapes[1]:
            raise UserError(f"center_reference_model_path '{path}' has other parameters than the model")
        own = dict(model.named_parameters())
        if all(torch.equal(tensor, own[name].to(tensor)) for name, tensor in source.named_parameters()):
            raise UserError(
                f"center_reference_model_path '{path}' is the protected model itself, not a public one"
            )
    return {
        name: parameter.detach().to(device, torch.float32, copy=True)
        for name, parameter in source.named_parameters()
    }


def privacy_report(args: PUMArguments, plan: NoisePlan, model: nn.Module, secrets: SecretSource) -> dict[str, Any]:
    """Both bounds, what they cover and what is published bare: the content of `privacy.json`."""
    groups = groups_of(model)
    return report(
        plan,
        args,
        {name: (groups[name], parameter.numel()) for name, parameter in model.named_parameters()},
        secrets=secrets.label,
        reference_is_public=args.center_reference_model_path is not None,
    )
