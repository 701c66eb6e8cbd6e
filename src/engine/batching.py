"""Sequences of token ids in micro-batches: sorted by length, padded on the right or packed, held on the device.

A causal model's states at real tokens do not depend on what follows them, so right padding needs no attention
mask. Packed sequences lie one behind the other in one row (`src/engine/packing.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from src.engine.packing import Layout
from src.engine.segments import Segments, spans_of

CPU_TOKEN_BUDGET = 2048
CPU_DERIVATIVE_BUDGET = 1024
CUDA_TOKEN_BUDGET = 32768
# One more micro-batch costs about as much as this many more tokens of padding.
BATCH_OVERHEAD_TOKENS = 28
# On a GPU a layer takes a millisecond to launch, in which it could multiply so many weights by a token each: on an
# H200, passes of OPT-1.3B with adapters took 24 ms however small, and 11 us a token where they were large.
LAUNCHED_PRODUCTS = 1e11

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class ScoredSequence:
    """Token ids, of which those from `start` on are scored (each from the state before it)."""

    ids: list[int]
    start: int


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Sequences that go through the model together. Two are equal where they are the same object.

    Attributes:
        rows: int64 (B,), which of the table's sequences these are.
        input_ids: int64 (B, L), padded on the right; (1, T) where packed.
        positions: int64 (2, P), row and column of each scored hidden state.
        owners: int64 (P,), which of the table's sequences it belongs to.
        targets: int64 (P,), the token that the hidden state predicts.
        lengths: int64 (B,), real tokens of each sequence.
        layout: of packed sequences, None for padded ones.
    """

    rows: Tensor
    input_ids: Tensor
    positions: Tensor
    owners: Tensor
    targets: Tensor
    lengths: Tensor
    layout: Layout | None = None

    def segments(self, samples: Tensor, owner: Indices | None = None) -> tuple[Segments, Segments]:
        """Which of `samples` the tokens, and the scored states, belong to.

        Args:
            samples: int64 (n,), all those that have a sequence here.
            owner: int64, the sample of each of the table's sequences; None where it is the sequence's own number.
        """
        sequences, counts = torch.unique_consecutive(self.owners, return_counts=True)
        slot = samples.new_empty(int(samples.max()) + 1)
        slot[samples] = torch.arange(len(samples), device=samples.device)
        if owner is not None:
            slot = slot[torch.from_numpy(owner).to(slot.device).clamp(max=len(slot) - 1)]
        whole = Segments.rows(self.input_ids.shape, slot[self.rows], len(samples))
        if self.layout is not None:
            whole = Segments(self.layout.spans, slot[self.rows], len(samples))
        return whole, Segments(spans_of(counts.cpu().numpy()), slot[sequences], len(samples))


class TokenTable:
    """Scored sequences as one padded array, from which micro-batches are cut without a loop over samples.

    Args:
        sequences: S of them.
        device: where micro-batches are put.
        drop_last: leave a sequence's last token, which predicts nothing, out of the pass.
    """

    def __init__(
        self, sequences: Sequence[ScoredSequence], device: torch.device, *, drop_last: bool = False
    ) -> None:
        self.device = device
        self.starts = np.array([s.start for s in sequences], dtype=np.int64)
        self.ends = np.array([len(s.ids) for s in sequences], dtype=np.int64)
        self.lengths = self.ends - 1 if drop_last else self.ends
        self.ids = np.zeros((len(sequences), int(self.ends.max())), dtype=np.int64)
        for row, sequence in enumerate(sequences):
            self.ids[row, : len(sequence.ids)] = sequence.ids
        self.num_tokens = int(self.lengths.sum())

    def micro_batches(
        self, token_budget: int, rows: Indices | None = None, *, packed: bool = False, least: int = 0
    ) -> list[MicroBatch]:
        """Micro-batches of at most `token_budget` tokens, padding included, or of one sequence.

        Args:
            rows: the sequences, None for all.
            packed: one behind the other in one row, instead of padded.
            least: tokens that a micro-batch costs however small it is, `launch_tokens`.
        """
        chosen = np.arange(len(self.lengths)) if rows is None else rows
        chosen = chosen[np.argsort(self.lengths[chosen], kind="stable")]
        lengths = self.lengths[chosen]
        cuts = even_cuts(lengths, token_budget) if packed else partition(lengths, token_budget, least)
        return [self.cut(chosen[begin:end], packed) for begin, end in itertools.pairwise(cuts)]

    def cut(self, rows: Indices, packed: bool) -> MicroBatch:
        """One micro-batch of these sequences, the longest of them last."""
        width = int(self.lengths[rows[-1]])
        columns = np.arange(self.ids.shape[1])
        scored = (columns >= self.starts[rows, None] - 1) & (columns < self.ends[rows, None] - 1)
        positions = np.stack(np.nonzero(scored))
        owners = rows[positions[0]]
        targets = self.ids[owners, positions[1] + 1]
        ids, lengths = self.ids[rows, :width], self.lengths[rows]
        layout = None
        if packed:
            layout = Layout.of(lengths, self.device)
            ids = ids[np.arange(width) < lengths[:, None]][None]
            begins = np.cumsum(lengths) - lengths
            positions = np.stack([np.zeros_like(owners), begins[positions[0]] + positions[1]])

        def put(array: Indices) -> Tensor:
            return torch.from_numpy(array).to(self.device)

        return MicroBatch(put(rows), put(ids), put(positions), put(owners), put(targets), put(lengths), layout)


def even_cuts(lengths: Indices, token_budget: int) -> list[int]:
    """Cut sequences into the fewest runs of at most `token_budget` tokens (or one sequence), evenly filled."""
    _check_budget(token_budget)
    ends = np.r_[0, np.cumsum(lengths)]
    fewest = len(_filled(ends, token_budget))
    low, high = 0, token_budget
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if len(_filled(ends, middle)) > fewest else (low, middle)
    return _filled(ends, high)


def _filled(ends: Indices, limit: int) -> list[int]:
    """Cuts of runs that are each filled up to `limit` tokens."""
    cuts, last = [0], len(ends) - 1
    while cuts[-1] < last:
        reached = int(np.searchsorted(ends, ends[cuts[-1]] + limit, side="right")) - 1
        cuts.append(max(reached, cuts[-1] + 1))
    return cuts


def partition(lengths: Indices, token_budget: int, least: int = 0) -> list[int]:
    """Cut sorted lengths into the cheapest runs: the positions of the cuts, 0 and the end among them.

    Each run costs its padded tokens (at most `token_budget` unless it is one sequence; `least` where they are
    fewer) and `BATCH_OVERHEAD_TOKENS`; dynamic programming over the runs' ends finds the cheapest.
    """
    _check_budget(token_budget)
    count = len(lengths)
    if count == 0:
        return [0]
    best = np.full(count + 1, np.inf)
    best[0] = 0
    previous = np.zeros(count + 1, dtype=np.int64)
    for end in range(1, count + 1):
        width = int(lengths[end - 1])
        first = max(0, end - max(1, token_budget // width))
        begins = np.arange(first, end)
        costs = best[first:end] + np.maximum((end - begins) * width, least) + BATCH_OVERHEAD_TOKENS
        choice = int(costs.argmin())
        best[end], previous[end] = costs[choice], first + choice
    cuts = [count]
    while cuts[-1] > 0:
        cuts.append(int(previous[cuts[-1]]))
    return cuts[::-1]


def _check_budget(token_budget: int) -> None:
    if token_budget < 1:
        raise ValueError(f"token_budget must be at least 1, got {token_budget}")


def default_token_budget(model: nn.Module, device: torch.device) -> int:
    """Tokens of a micro-batch: what keeps a CPU's cores busy, or what half of a GPU's free memory holds.

    Without gradients one layer's activations are alive at a time: about 12 hidden and 3 feed-forward vectors a
    token.
    """
    return CPU_TOKEN_BUDGET if device.type != "cuda" else _cuda_budget(model, device, 4)


def default_derivative_budget(model: nn.Module, device: torch.device) -> int:
    """Likewise for a pass forward and backward, which keeps every layer's activations in the model's dtype."""
    if device.type != "cuda":
        return CPU_DERIVATIVE_BUDGET
    layers = int(getattr(getattr(model, "config", None), "num_hidden_layers", 32))
    return _cuda_budget(model, device, layers * next(model.parameters()).element_size())


def launch_tokens(model: nn.Module, device: torch.device) -> int:
    """Tokens that a GPU passes through the model's layers in the time of launching them; 0 on a CPU."""
    if device.type != "cuda":
        return 0
    hidden, inner = _widths(model)
    return int(LAUNCHED_PRODUCTS / (4 * hidden**2 + 2 * hidden * inner))


def _widths(model: nn.Module) -> tuple[int, int]:
    """Of the states and of the feed-forward layers' inside."""
    config = getattr(model, "config", None)
    hidden = int(getattr(config, "hidden_size", 4096))
    inner = getattr(config, "intermediate_size", None) or getattr(config, "ffn_dim", None)
    return hidden, int(inner or 4 * hidden)


def _cuda_budget(model: nn.Module, device: torch.device, bytes_per_number: int) -> int:
    """Tokens whose activations of one layer take half of the free memory."""
    hidden, inner = _widths(model)
    bytes_per_token = bytes_per_number * (12 * hidden + 3 * inner)
    free, _ = torch.cuda.mem_get_info(device)
    return max(256, min(CUDA_TOKEN_BUDGET, free // 2 // bytes_per_token))
