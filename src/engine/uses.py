"""What a trained tensor did in one pass, and from it each sample's derivative along any part of a direction.

The gradient of a module's output belongs to the sample of its token, so a sample's gradient with respect to a
weight is a sum over its own tokens of (gradient of the output) x (input). It is formed for a tile of the weight at
a time and multiplied with all directions: with t tokens a sample that is t times cheaper than a product with each
direction at each token, and holds n x tile numbers instead of one gradient a sample.

Prior art: ghost clipping, and the "ghost dot-product" of In-Run Data Shapley (arXiv 2406.11011).
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from src.engine.segments import Segments, wide

# Numbers of per-sample gradients that are held at once: on a CPU what its cache holds.
CPU_GRADIENTS, CUDA_GRADIENTS = 1 << 20, 1 << 26


class Use(Protocol):
    """One use of a trained tensor in a pass."""

    def project(self, noise: Tensor, begin: int) -> Tensor:
        """Derivatives of n samples along part of D directions, the rest of each being zero.

        Args:
            noise: (D, m), the directions' elements begin .. begin + m of the tensor, flattened.
            begin: the first of them.

        Returns:
            (n, D), in the dtype of `noise`.
        """


class MatrixUse:
    """Of a matrix W (a, b) whose gradient is sum_t left_t right_t'.

    Args:
        left: (T, a). right: (T, b).
        segments: which sample each of the T tokens belongs to.
    """

    def __init__(self, left: Tensor, right: Tensor, segments: Segments) -> None:
        self.left, self.right, self.segments = left, right, segments
        self.width = right.shape[1]
        size = len(segments.slots) * left.shape[1] * self.width
        # A narrow matrix, as an adapter's: the gradients take less room than what they are made of.
        self.settled: Tensor | None = None
        if size <= left.numel() + right.numel():
            self.settled = segments.outer(wide(left), wide(right)).flatten(1)
            del self.left, self.right

    def project(self, noise: Tensor, begin: int) -> Tensor:
        if self.settled is not None:
            part = self.settled[:, begin : begin + noise.shape[1]].to(noise.dtype)
            return self.segments.of_samples(part @ noise.T)
        end = begin + noise.shape[1]
        result = noise.new_zeros(len(self.segments.slots), len(noise))
        most = CUDA_GRADIENTS if noise.is_cuda else CPU_GRADIENTS
        rows = max(1, most // (len(result) * self.width))
        right = wide(self.right)
        for row in range(begin // self.width, -(-end // self.width), rows):
            left = wide(self.left[:, row : row + rows])
            gradients = self.segments.outer(left, right).flatten(1)
            first = row * self.width
            a, b = max(begin, first), min(end, first + gradients.shape[1])
            result += gradients[:, a - first : b - first].to(noise.dtype) @ noise[:, a - begin : b - begin].T
        return self.segments.of_samples(result)


class VectorUse:
    """Of a vector whose gradient is known for each sample: a bias, a norm's weight, a prefix.

    Args:
        gradients: (n, a).
    """

    def __init__(self, gradients: Tensor) -> None:
        self.gradients = gradients

    def project(self, noise: Tensor, begin: int) -> Tensor:
        return self.gradients[:, begin : begin + noise.shape[1]].to(noise.dtype) @ noise.T


class RowsUse:
    """Of a matrix (V, b) of which only some rows took part: a head that scored some of its vocabulary.

    Args:
        left: (T, v), right: (T, b), segments: as for `MatrixUse`, of those rows alone.
        rows: int64 (v,), which rows of the matrix they are.
    """

    def __init__(self, left: Tensor, right: Tensor, segments: Segments, rows: Tensor) -> None:
        self.gradients, self.segments = segments.outer(wide(left), wide(right)), segments
        self.rows: list[int] = rows.tolist()

    def project(self, noise: Tensor, begin: int) -> Tensor:
        width, end = self.gradients.shape[2], begin + noise.shape[1]
        result = noise.new_zeros(len(self.gradients), len(noise))
        for index, row in enumerate(self.rows):
            a, b = max(begin, row * width), min(end, (row + 1) * width)
            if a < b:
                part = self.gradients[:, index, a - row * width : b - row * width].to(noise.dtype)
                result += part @ noise[:, a - begin : b - begin].T
        return self.segments.of_samples(result)


class LookupUse:
    """Of a table (V, d) of which each token took one row.

    Args:
        ids: int64 (T,), the row that a token took.
        delta: (T, d), the gradient of what it took.
        segments: which sample each of the T tokens belongs to.
    """

    def __init__(self, ids: Tensor, delta: Tensor, segments: Segments) -> None:
        self.ids, self.delta = ids, wide(delta)
        self.owners, self.count = segments.owners(), segments.count

    def project(self, noise: Tensor, begin: int) -> Tensor:
        width, end = self.delta.shape[1], begin + noise.shape[1]
        result = noise.new_zeros(self.count, len(noise))
        whole = (-(-begin // width), end // width)  # rows of the table that lie in this part altogether
        touched = (self.ids + 1) * width > begin
        touched &= self.ids * width < end
        inside = touched & (self.ids >= whole[0]) & (self.ids < whole[1])
        if inside.any():
            ids, delta = self.ids[inside] - whole[0], self.delta[inside].to(noise.dtype)
            table = noise[:, whole[0] * width - begin : whole[1] * width - begin].unflatten(1, (-1, width))
            for index, direction in enumerate(table):
                result[:, index].index_add_(0, self.owners[inside], (direction[ids] * delta).sum(1))
        for token in (touched & ~inside).nonzero()[:, 0].tolist():
            first = int(self.ids[token]) * width
            a, b = max(begin, first), min(end, first + width)
            part = noise[:, a - begin : b - begin] @ self.delta[token, a - first : b - first].to(noise.dtype)
            result[self.owners[token]] += part
        return result
