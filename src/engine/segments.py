"""Which tokens of a pass belong to which of its samples."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Spans = list[tuple[int, int, int]]


@dataclass(frozen=True)
class Segments:
    """Sequences one behind the other, and the sample of each.

    Attributes:
        spans: (first token, number of sequences, length of each) of each run of equally long neighbours.
        slots: int64 (S,), which of the pass's samples a sequence belongs to.
        count: samples of the pass, n.
    """

    spans: Spans
    slots: Tensor
    count: int

    @classmethod
    def rows(cls, shape: torch.Size, slots: Tensor, count: int) -> Segments:
        """Of a rectangle of (sequences, tokens), padding included."""
        return cls([(0, shape[0], shape[1])], slots, count)

    @property
    def tokens(self) -> int:
        """T, padding included."""
        return sum(count * length for _, count, length in self.spans)

    def outer(self, left: Tensor, right: Tensor) -> Tensor:
        """sum over a sequence's tokens of left_t right_t': (S, a, b) of left (T, a) and right (T, b)."""
        result = left.new_empty(len(self.slots), left.shape[1], right.shape[1])
        for first, begin, count, length in self._runs():
            a, b = (t[begin : begin + count * length].unflatten(0, (count, length)) for t in (left, right))
            part = result[first : first + count]
            if length == 1:  # a product of vectors, for which a batched matrix product is slow
                torch.mul(a.transpose(1, 2), b, out=part)
            else:
                torch.bmm(a.transpose(1, 2), b, out=part)
        return result

    def sums(self, values: Tensor) -> Tensor:
        """Sum over each sequence's tokens: (S, a) of (T, a)."""
        result = values.new_empty(len(self.slots), values.shape[1])
        for first, begin, count, length in self._runs():
            rows = values[begin : begin + count * length].unflatten(0, (count, length))
            torch.sum(rows, 1, out=result[first : first + count])
        return result

    def of_samples(self, values: Tensor) -> Tensor:
        """Sum over each sample's sequences: (n, a) of (S, a)."""
        return values.new_zeros(self.count, values.shape[1]).index_add_(0, self.slots, values)

    def owners(self) -> Tensor:
        """int64 (T,), the sample of each token."""
        runs = self._runs()
        return torch.cat([self.slots[a : a + count].repeat_interleave(length) for a, _, count, length in runs])

    def _runs(self) -> list[tuple[int, int, int, int]]:
        """(first sequence, first token, number of sequences, length of each) of each span."""
        firsts = itertools.accumulate((count for _, count, _ in self.spans), initial=0)
        return [(first, *span) for first, span in zip(firsts, self.spans, strict=False)]


def spans_of(lengths: NDArray[np.int64]) -> Spans:
    """Runs of equally long neighbours among sequences of these lengths, one behind the other."""
    changes = np.flatnonzero(np.diff(lengths)) + 1
    firsts, lasts = np.r_[0, changes], np.r_[changes, len(lengths)]
    begins = np.r_[0, np.cumsum(lengths)]
    return [(int(begins[a]), int(b - a), int(lengths[a])) for a, b in zip(firsts, lasts, strict=True)]


def wide(values: Tensor) -> Tensor:
    """In float32 at least: sums over tokens lose too much in half precision."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
