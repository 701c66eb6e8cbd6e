"""The published centre: theta~ = theta_ref + clip(theta - theta_ref), layer by layer.

Two clipped centres with the same reference differ by at most 2 C_l in layer l, which is the sensitivity that the
noise is calibrated to (run guide of arXiv 2602.23798). That needs a reference that does not depend on theta.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from pum.aggregate import l2_norm
from src.utils import UserError

_LAYER = re.compile(r"(?:^|\.)(?:layers|h)\.(\d+)\.")

Thresholds = Mapping[int | None, float]


def layer_index(name: str) -> int | None:
    """The layer that a parameter belongs to, by `.layers.{i}.` or `.h.{i}.` in its name.

    None outside the layers: embeddings, final norm, head.
    """
    match = _LAYER.search(name)
    return int(match.group(1)) if match else None


def groups_of(model: nn.Module) -> dict[str, int | None]:
    """The group of each parameter, by name: its layer, or None.

    None for all where the layers cannot be told, that is, unless their indices are 0..L-1.
    """
    groups = {name: layer_index(name) for name, _ in model.named_parameters()}
    found = set(groups.values()) - {None}
    return groups if found == set(range(len(found))) else dict.fromkeys(groups)


def count_layers(groups: Mapping[str, int | None]) -> int:
    """Number of layers, L; 0 where they cannot be told."""
    return len(set(groups.values()) - {None})


def distances(
    parameters: Mapping[str, Tensor], reference: Mapping[str, Tensor], groups: Mapping[str, int | None]
) -> dict[int | None, float]:
    """||theta_g - theta_ref,g|| in L2 norm for every group, in float64."""
    squares: dict[int | None, float] = {}
    for name, group in groups.items():
        squares[group] = squares.get(group, 0.0) + l2_norm([_difference(parameters[name], reference[name])]) ** 2
    return {group: math.sqrt(square) for group, square in squares.items()}


def clip_scales(norms: Mapping[int | None, float], thresholds: Thresholds) -> dict[int | None, float]:
    """min(1, C_g/norm_g) for every group that has a threshold. A threshold of 0 puts it on the reference."""
    scales = {}
    for group, limit in thresholds.items():
        norm = norms[group]
        scales[group] = 1.0 if norm <= limit else limit / norm
    return scales


def center(parameter: Tensor, reference: Tensor, scale: float) -> Tensor:
    """theta_ref + scale (theta - theta_ref) of one parameter, a new tensor on the parameter's device.

    float32, or float64 where the parameter is.
    """
    value = parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32), copy=True)
    if scale == 1.0:
        return value
    base = reference.to(value.device, value.dtype)
    return value.sub_(base).mul_(scale).add_(base)


def update_reference(reference: Mapping[str, Tensor], mean_published: Mapping[str, Tensor], beta: float) -> None:
    """theta_ref <- (1 - beta) theta_ref + beta mean_k(published copies in server coordinates), in place."""
    for name, tensor in reference.items():
        tensor.mul_(1.0 - beta).add_(mean_published[name].to(tensor.device, tensor.dtype), alpha=beta)


def quantile_thresholds(norms: Sequence[Sequence[float]], quantile: float, kappa: float) -> list[float]:
    """C_l = kappa Quantile_q over references j of ||theta_l^(j) - theta_base,l||; linear interpolation.

    Args:
        norms: (J, L), one row a public reference model.
    """
    table = np.asarray(norms, dtype=np.float64)
    if table.ndim != 2 or not table.size or not np.all(np.isfinite(table)):
        raise UserError("the quantile policy needs at least one reference model with finite weights")
    return [float(value) for value in kappa * np.quantile(table, quantile, axis=0)]


def layer_distances(model: nn.Module, base: Mapping[str, Tensor], name: str) -> list[float]:
    """||theta_l - theta_base,l|| of a reference model, one a layer; `UserError` where it has another shape."""
    parameters = dict(model.named_parameters())
    groups = {key: group for key, group in groups_of(model).items() if group is not None}
    inside = {key for key in base if layer_index(key) is not None}
    if set(groups) != inside or any(parameters[key].shape != base[key].shape for key in inside):
        raise UserError(f"reference model '{name}' has not the layers of the model that is published")
    found = distances(parameters, base, groups)
    return [found[layer] for layer in range(len(found))]


def _difference(parameter: Tensor, reference: Tensor) -> Tensor:
    return parameter.detach().float() - reference.to(parameter.device).to(torch.float32)
