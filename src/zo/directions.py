"""Zeroth-order directions and updates. The only place where trainable parameters change.

A direction is z ~ N(0, I) over all trainable parameters, a pure function of its seed, of the device type and
of the parameters' order and dtypes: parameters of one dtype and device lie one after the other in one flat
buffer, and the buffers' noise is that of `src/zo/noise.py`. So z is never held whole, and an update needs only
(seed, coefficient, learning rate).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from src.record.fingerprint import checksum
from src.record.steps import StepRecord
from src.zo.noise import BLOCK_SIZE, Block, drawn, drawn_rows

__all__ = ["ParameterSpace", "StepRecord", "direction_seeds"]

CACHED_ELEMENTS = 1 << 24
# Noise of many directions that is held at once, in bytes.
TILE_BYTES = 1 << 29


class NoiseTile(NamedTuple):
    """Some directions over some of the parameters' elements.

    Attributes:
        first: of the directions, counted from 0.
        noise: float32 (D, m).
        parts: (name, first element, elements, column) of each parameter with elements in it; the elements are
            counted in the flattened parameter, the column is where they begin in `noise`.
    """

    first: int
    noise: Tensor
    parts: list[tuple[str, int, int, int]]


def direction_seeds(run_seed: int, step: int, num_directions: int) -> tuple[int, ...]:
    """The public seeds of a step's directions, unrelated between steps, directions and runs.

    They have 48 bits, of which a CPU's generator takes the lower 32: among 128,000 directions two are expected to
    be alike.
    """
    names = (f"direction/{run_seed}/{step}/{k}" for k in range(num_directions))
    return tuple(int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") for name in names)


@dataclass
class _Buffer:
    """Trainable parameters of one dtype on one device, as views of one flat tensor."""

    flat: Tensor
    names: list[str]
    first_block: int
    snapshot: Tensor | None = None

    def blocks(self) -> list[Block]:
        return [Block(self.first_block + i, part) for i, part in enumerate(self.flat.split(BLOCK_SIZE))]


class ParameterSpace:
    """The trainable parameters of a model, tied ones once, as the space in which directions live.

    On construction the parameters become views of flat buffers; names, shapes and values stay.

    Args:
        model: on its final device, with `requires_grad` set on what is to be trained.
        weight_decay: the coefficient wd of the update.
        decayed: names of the parameters to which it applies.
        inplace: undo a perturbation by subtracting it, instead of from a snapshot. That saves a copy of what
            is trained, and lets rounding change the parameters a little every step.

    Raises:
        ValueError: nothing is trainable.
    """

    def __init__(
        self, model: nn.Module, weight_decay: float = 0.0, decayed: Iterable[str] = (), inplace: bool = False
    ) -> None:
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise ValueError("the model has no trainable parameter")
        self.weight_decay = weight_decay
        self.decayed = frozenset(decayed)
        self.inplace = inplace
        self._buffers: list[_Buffer] = []
        self._noise: list[Tensor] = []
        self._noise_seed: int | None = None
        self._tiles: list[NoiseTile] = []
        self._tile_seeds: tuple[int, ...] = ()
        groups: dict[tuple[torch.device, torch.dtype], list[str]] = {}
        for name, parameter in self.parameters.items():
            groups.setdefault((parameter.device, parameter.dtype), []).append(name)
        first_block = 0
        for (device, dtype), names in groups.items():
            flat = _flatten([self.parameters[name] for name in names], device, dtype)
            self._buffers.append(_Buffer(flat, names, first_block))
            first_block += -(-flat.numel() // BLOCK_SIZE)

    @property
    def num_elements(self) -> int:
        return sum(buffer.flat.numel() for buffer in self._buffers)

    def two_point(self, seed: int, eps: float, losses: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        """`losses()` at theta + eps z and at theta - eps z; theta is back afterwards, also on an error.

        Bit for bit, unless `inplace`. The second point is the first one's mirror image, 2 theta - (theta + eps z),
        which needs z no second time and, on a floating-point grid around theta, is the rounded theta - eps z.
        """
        if self.inplace:
            return self._two_point_inplace(seed, eps, losses)
        self._save()
        try:
            self._shift(seed, eps)
            plus = losses()
            self._reflect()
            minus = losses()
        finally:
            self._restore()
        return plus, minus

    def _two_point_inplace(self, seed: int, eps: float, losses: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
        moved = eps
        self._shift(seed, moved)
        try:
            plus = losses()
            moved = -eps
            self._shift(seed, 2 * moved)
            minus = losses()
        finally:
            self._shift(seed, -moved)
        return plus, minus

    @torch.no_grad()
    def apply(self, record: StepRecord) -> None:
        """theta <- theta - lr ((1/K) sum_k b_k z_k + wd theta), in place (arXiv 2605.06505, Algorithm 1).

        The sum is formed in float32, one block at a time whatever K, and rounded to the parameters' dtype once.
        A direction whose coefficient is 0 is not drawn.
        """
        rate, count = record.learning_rate, len(record.seeds)
        if self.weight_decay:
            for name in self.decayed:
                self.parameters[name].mul_(1 - rate * self.weight_decay)
        moving = [index for index, coefficient in enumerate(record.coefficients) if coefficient]
        if not moving:
            return
        if count == 1:
            self._shift(record.seeds[0], -rate * record.coefficients[0])
            return
        blocks = [block for buffer in self._buffers for block in buffer.blocks()]
        if self._tile_seeds == record.seeds:
            noise = _of_tiles(self._tiles, blocks, moving)
        else:
            noise = drawn((record.seeds[index], *block) for block in blocks for index in moving)
        for block in blocks:
            total = torch.zeros_like(block.values, dtype=torch.float32)
            for index in moving:
                total.add_(next(noise), alpha=record.coefficients[index])
            _add(block.values, total, -rate / count)

    def tiles(self, seeds: Sequence[int]) -> Iterator[NoiseTile]:
        """All directions over all parameters, tile by tile of at most `TILE_BYTES`, or one direction's block.

        Each valid until the next is asked for. Where all fit in one tile's size they are kept until other seeds
        are asked for, and an update along them draws nothing.
        """
        if self._tile_seeds == tuple(seeds):
            yield from self._tiles
            return
        self._tiles, self._tile_seeds = [], ()
        if 4 * len(seeds) * self.num_elements <= TILE_BYTES:
            self._tiles, self._tile_seeds = list(self._drawn_tiles(seeds, kept=True)), tuple(seeds)
            yield from self._tiles
        else:
            yield from self._drawn_tiles(seeds, kept=False)

    def forget_noise(self) -> None:
        """Frees what `tiles` and `two_point` keep."""
        self._tiles, self._tile_seeds = [], ()
        self._noise, self._noise_seed = [], None

    def _drawn_tiles(self, seeds: Sequence[int], kept: bool) -> Iterator[NoiseTile]:
        for buffer in self._buffers:
            room: Tensor | None = None
            blocks = buffer.blocks()
            regions = [blocks] if buffer.flat.numel() <= CACHED_ELEMENTS else [[block] for block in blocks]
            begin = 0
            for region in regions:
                elements = sum(block.values.numel() for block in region)
                parts = self._parts(buffer, begin, begin + elements)
                count = max(1, TILE_BYTES // (4 * elements))
                if not kept and room is None:
                    room = torch.empty(min(count, len(seeds)) * elements, device=buffer.flat.device)
                for first in range(0, len(seeds), count):
                    yield NoiseTile(first, drawn_rows(seeds[first : first + count], region, room), parts)
                begin += elements

    def _parts(self, buffer: _Buffer, begin: int, end: int) -> list[tuple[str, int, int, int]]:
        """What of each parameter lies in elements begin .. end of a buffer."""
        found = []
        for name in buffer.names:
            parameter = self.parameters[name]
            offset = int(parameter.storage_offset())
            a, b = max(begin, offset), min(end, offset + parameter.numel())
            if a < b:
                found.append((name, a - offset, b - a, a - begin))
        return found

    def checksum(self) -> str:
        """A checksum of the trainable parameters' values, in hexadecimal."""
        return checksum(self.parameters.values())

    @torch.no_grad()
    def _save(self) -> None:
        for buffer in self._buffers:
            if buffer.snapshot is None:
                buffer.snapshot = torch.empty_like(buffer.flat)
            buffer.snapshot.copy_(buffer.flat)

    @torch.no_grad()
    def _restore(self) -> None:
        for buffer in self._buffers:
            if buffer.snapshot is not None:
                buffer.flat.copy_(buffer.snapshot)

    @torch.no_grad()
    def _reflect(self) -> None:
        """theta_0 + d becomes theta_0 - d, theta_0 being the snapshot."""
        for buffer in self._buffers:
            if buffer.snapshot is not None:
                buffer.flat.neg_().add_(buffer.snapshot, alpha=2)

    @torch.no_grad()
    def _shift(self, seed: int, scale: float) -> None:
        """theta <- theta + scale z; a small z is kept until another seed is asked for."""
        blocks = [block for buffer in self._buffers for block in buffer.blocks()]
        small = self.num_elements <= CACHED_ELEMENTS
        kept = self._noise if small and seed == self._noise_seed else None
        noise = iter(kept) if kept is not None else drawn((seed, *block) for block in blocks)
        if small and kept is None:
            self._noise, self._noise_seed = [block.clone() for block in noise], seed
            noise = iter(self._noise)
        for block in blocks:
            _add(block.values, next(noise), scale)


def _of_tiles(tiles: Sequence[NoiseTile], blocks: Iterable[Block], rows: Sequence[int]) -> Iterator[Tensor]:
    """What `drawn` gives for each block and direction, of tiles that hold all directions."""
    waiting = iter(tiles)
    noise, column = next(waiting).noise, 0
    for block in blocks:
        if column == noise.shape[1]:
            noise, column = next(waiting).noise, 0
        yield from (noise[row, column : column + block.values.numel()] for row in rows)
        column += block.values.numel()


def _add(values: Tensor, noise: Tensor, scale: float) -> None:
    """values <- values + scale noise, in float32 or float64, and rounded to the dtype of `values` once."""
    if values.dtype in (torch.float32, torch.float64) or values.is_cuda:
        values.add_(noise, alpha=scale)
    else:  # on a CPU, adding tensors of two dtypes in place is ten times slower than converting them
        values.copy_(values.float().add_(noise, alpha=scale))


def _flatten(members: Sequence[nn.Parameter], device: torch.device, dtype: torch.dtype) -> Tensor:
    flat = torch.empty(sum(parameter.numel() for parameter in members), device=device, dtype=dtype)
    offset = 0
    for parameter in members:
        view = flat[offset : offset + parameter.numel()].view(parameter.shape)
        view.copy_(parameter.data)
        parameter.data = view
        offset += parameter.numel()
    return flat
