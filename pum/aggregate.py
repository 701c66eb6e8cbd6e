"""The server's merge: clip an update, then the alpha-weighted (harmonic) mean, one copy at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from src.utils import UserError


class HarmonicMean:
    """eta S1/S0 with S0 = sum_k 1/alpha_k and S1 = sum_k D_k/alpha_k; only these two are kept.

    The weights 1/alpha_k are what makes the noise cancel: for an update D_k affine in the published
    parameters, sum_k (1/alpha_k) alpha_k e_k = 0 (run guide of arXiv 2602.23798). S1 is float32 on `device`.

    Args:
        eta: server step size eta_srv.
        device: where S1 is held; None: where each parameter's first update lies.
        shapes: of the updates, by name. S1 is then allocated at once, so that a run that has not enough memory
            ends in its first copy. Default: those of the first update.
    """

    def __init__(
        self,
        eta: float = 1.0,
        device: torch.device | str | None = None,
        shapes: Mapping[str, torch.Size] | None = None,
    ) -> None:
        if not math.isfinite(eta):
            raise ValueError(f"eta must be finite, got {eta!r}")
        self._eta = eta
        self._device = device
        self._s0 = 0.0
        self._s1 = {name: torch.zeros(shape, device=device) for name, shape in (shapes or {}).items()}

    def add(self, update: Mapping[str, Tensor], alpha: float) -> None:
        """Add one client's update D_k, which is not changed.

        Raises UserError, changing nothing, for entries that are not finite and for names or shapes that
        are not S1's. Raises ValueError for alpha < 1.
        """
        if not 1.0 <= alpha < math.inf:
            raise ValueError(f"alpha must be at least 1, got {alpha!r}")
        expected = {name: tensor.shape for name, tensor in self._s1.items()} or None
        check_update(update, expected)
        for name, tensor in update.items():
            share = tensor.detach().to(device=self._device or tensor.device, dtype=torch.float32)
            if name in self._s1:
                self._s1[name].add_(share, alpha=1.0 / alpha)
            else:
                self._s1[name] = share.div(alpha)
        self._s0 += 1.0 / alpha

    def result(self) -> dict[str, Tensor]:
        """eta S1/S0, float32. The tensors are S1's own, scaled in place: the mean is used up by this call.

        Raises ValueError where nothing was added.
        """
        if not self._s0:
            raise ValueError("no update was added, or the result was taken already")
        scale = self._eta / self._s0
        merged, self._s1, self._s0 = self._s1, {}, 0.0
        for tensor in merged.values():
            tensor.mul_(scale)
        return merged


def check_update(update: Mapping[str, Tensor], shapes: Mapping[str, torch.Size] | None) -> None:
    """Raise `UserError` unless `update` has exactly the names and shapes expected and is finite throughout."""
    if shapes is not None:
        different = sorted(set(update) ^ set(shapes))
        if different:
            raise UserError(f"a client's update has other parameters than the model: {', '.join(different[:3])}")
    for name, tensor in update.items():
        if shapes is not None and tensor.shape != shapes[name]:
            raise UserError(
                f"a client's update of {name} has shape {tuple(tensor.shape)}, not {tuple(shapes[name])}"
            )
        if not torch.isfinite(tensor).all():
            raise UserError(
                f"a client's update of {name} holds NaN or infinity; nothing was merged. Lower the learning rate"
                " or the noise"
            )


def clip_factors(
    update: Mapping[str, Tensor],
    group_of: Callable[[str], int | None],
    *,
    per_layer: Sequence[float] | None = None,
    total: float | None = None,
) -> dict[str, list[float]]:
    """Factors for each tensor of an aligned update, to be applied one after the other (`scaled`).

    Layer l gets at most per_layer[l] in L2 norm, then all together at most `total`. A limit of at most 0 is none.

    Args:
        update: read tensor by tensor, once for each of the two limits.
        group_of: a parameter's layer, None outside the layers, which only `total` clips.
    """
    factors: dict[str, list[float]] = {name: [] for name in update}

    def shrink(names: Sequence[str], limit: float) -> None:
        if limit <= 0.0:
            return
        norm = l2_norm(scaled(update[name], factors[name]) for name in names)
        if norm > limit:
            for name in names:
                factors[name].append(limit / norm)

    if per_layer is not None:
        for layer, limit in enumerate(per_layer):
            shrink([name for name in update if group_of(name) == layer], limit)
    if total is not None:
        shrink(list(update), total)
    return factors


def scaled(tensor: Tensor, factors: Sequence[float]) -> Tensor:
    """`tensor` times each factor in turn; itself where there is none."""
    for factor in factors:
        tensor = tensor * factor
    return tensor


def l2_norm(tensors: Iterable[Tensor]) -> float:
    """L2 norm of all entries together, summed in float64."""
    return math.sqrt(
        sum(float(torch.linalg.vector_norm(tensor.detach(), dtype=torch.float64)) ** 2 for tensor in tensors)
    )
