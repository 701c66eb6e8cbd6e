"""Per-sample derivatives along K directions from one pass forward and one backward, exactly.

The losses of a micro-batch are summed and go backward together. Samples do not mix, so the gradient of a module's
output belongs to the sample of its token (`taps.py`), and with the module's input it gives each sample's
derivative along any direction (`uses.py`). K directions cost what one does, but for their own products, which are
small for adapters. No gradient of a weight is formed or written, and frozen matrices pass on the gradients of
activations only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from src.engine.batching import Indices, default_derivative_budget
from src.engine.layers import checkpointed
from src.engine.objective import Objective, Samples, as_rows
from src.engine.scoring import Piece
from src.engine.taps import Taps, Uses

# In float16 the gradients of small losses would fall below the smallest number.
LOSS_SCALE = {torch.float16: 256.0}


class Tile(Protocol):
    """Noise of some directions on some parameters, as `src.zo.directions.NoiseTile`."""

    @property
    def first(self) -> int: ...
    @property
    def noise(self) -> Tensor: ...
    @property
    def parts(self) -> list[tuple[str, int, int, int]]: ...


class Directions(Protocol):
    """Where directions live, as `src.zo.directions.ParameterSpace`."""

    parameters: dict[str, nn.Parameter]

    def tiles(self, seeds: Sequence[int]) -> Iterable[Tile]: ...


def exact_derivatives(
    objective: Objective, space: Directions, seeds: Sequence[int], samples: Samples | None = None
) -> tuple[Tensor, Tensor]:
    """<grad l_i, z_k> of N samples along K directions, and the losses; parameters and `.grad` stay as they are.

    Args:
        objective: losses with a derivative, over the model of `space`.
        space: of the trained parameters.
        seeds: of the K directions.
        samples: which of the objective's samples, in any order and as often as asked for; None for all.

    Returns:
        float32 (K, N) and float32 (N,) on the CPU; float64 where the model is.

    Raises:
        UserError: the losses have no derivative, or a trained tensor belongs to a module that is not known.
    """
    objective.check_differentiable()
    taps = Taps(objective.model, space.parameters)
    rows, places = as_rows(samples), None
    if rows is not None:
        if not len(rows):
            return torch.empty(len(seeds), 0), torch.empty(0)
        rows, places = np.unique(rows, return_inverse=True)
    table = objective.spread(lambda some: _within_memory(objective, space, seeds, some, taps), rows)
    table = table if places is None else table[torch.from_numpy(places)]
    return table[:, :-1].T.contiguous(), table[:, -1].contiguous()


def _within_memory(
    objective: Objective, space: Directions, seeds: Sequence[int], rows: Indices | None, taps: Taps
) -> Tensor:
    """(n, K + 1): derivatives and loss of each row; out of memory on a GPU, again with less at once."""
    if objective.model.training:
        objective.model.eval()
    if objective.derivative_budget is None:
        objective.derivative_budget = default_derivative_budget(objective.model, objective.device)
    while True:
        budget = objective.derivative_budget
        pieces = objective.pieces(budget, rows)
        try:
            with checkpointed(objective.model, objective.recompute), taps.open() as uses:
                parts = [_of_piece(objective, space, seeds, piece, taps, uses) for piece in pieces]
            break
        except torch.cuda.OutOfMemoryError:
            # Samples one by one already: keep the layers' inputs only, and run each layer a second time.
            single = len(pieces) == sum(len(piece.samples) for piece in pieces)
            if single and (objective.recompute or not objective.recomputable):
                raise
            objective.recompute |= single
        torch.cuda.empty_cache()
        if not single:
            objective.derivative_budget = budget // 2
    order = torch.cat([piece.samples for piece in pieces]).cpu()
    chosen = np.arange(len(objective)) if rows is None else rows
    place = torch.empty(len(objective), dtype=torch.int64)
    place[order] = torch.arange(len(order))
    return torch.cat(parts)[place[torch.from_numpy(chosen)]]


def _of_piece(
    objective: Objective, space: Directions, seeds: Sequence[int], piece: Piece, taps: Taps, uses: Uses
) -> Tensor:
    """(n, K + 1) of one piece's samples, in its order."""
    uses.clear()
    losses = objective.piece_losses(piece, taps)
    scale = LOSS_SCALE.get(next(objective.model.parameters()).dtype, 1.0)
    (scale * losses.sum()).backward()
    losses = losses.detach()
    result = losses.new_zeros(len(losses), len(seeds))
    for tile in space.tiles(seeds):
        noise = tile.noise.to(losses.dtype)
        columns = result[:, tile.first : tile.first + len(noise)]
        for name, begin, count, column in tile.parts:
            for use in uses[name]:
                columns += use.project(noise[:, column : column + count], begin)
    uses.clear()
    return torch.cat([result / scale, losses[:, None]], dim=1).cpu()
