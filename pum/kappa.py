"""Noise as a share of the task vector: sigma_l = kappa RMS(theta_l - theta_base,l) (arXiv 2602.23798)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor, nn

from pum.aggregate import l2_norm
from pum.center import groups_of, layer_distances
from src.models import load_model
from src.utils import UserError


def kappa_sigmas(
    model: nn.Module, kappa: float, base_model_path: str | None, theta: Mapping[str, Tensor] | None = None
) -> dict[int | None, float]:
    """Standard deviation of the noise of each layer; what lies outside the layers gets none.

    Args:
        kappa: 0.01 is the paper's "1 % noise".
        model: it may lie on the meta device where `theta` is given.
        base_model_path: of the public model that `model` was fine-tuned from; None measures from zero.
        theta: in the place of the model's own parameters, read one at a time.

    Raises:
        UserError: the layers cannot be told, or the base model has others or is the model itself.
    """
    members: dict[int, list[str]] = {}
    parameters = dict(model.named_parameters()) if theta is None else theta
    for name, group in groups_of(model).items():
        if group is not None:
            members.setdefault(group, []).append(name)
    if not members:
        raise UserError("kappa is noise of the layers, which cannot be told in this model; give sigma")
    if base_model_path is None:
        norms = [l2_norm(parameters[name] for name in members[layer]) for layer in sorted(members)]
    else:
        norms = layer_distances(load_model(base_model_path)[0], parameters, base_model_path)
    if kappa > 0.0 and not all(norms):
        raise UserError(
            f"kappa measures from '{base_model_path}', which has a layer equal to the model's: no noise"
        )
    counts = {layer: sum(model.get_parameter(name).numel() for name in names) for layer, names in members.items()}
    return {layer: kappa * norm / math.sqrt(counts[layer]) for layer, norm in enumerate(norms)}
