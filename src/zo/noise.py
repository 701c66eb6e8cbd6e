"""The noise of directions: standard normal blocks, each a pure function of (seed, block number, device type).

Block j of the trainable parameters' buffers (`BLOCK_SIZE` elements) is drawn in float32 by a generator that is
seeded with seed + j, so that a direction is never held whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK_SIZE = 1 << 22
MOST_DRAWERS = 8  # threads that draw noise on a CPU, a block of 16 MiB each


class Block(NamedTuple):
    """Part of a buffer whose noise is drawn at once: its number, and the values as a view."""

    number: int
    values: Tensor


def drawn(jobs: Iterable[tuple[int, int, Tensor]]) -> Iterator[Tensor]:
    """The noise of each (seed, block number, block) in order, each valid until the next is asked for.

    On a CPU, threads draw some blocks ahead, into a few buffers that are used again and again.
    """
    pending: deque[tuple[Tensor, Future[Tensor]]] = deque()
    free: list[Tensor] = []
    for seed, number, values in jobs:
        if values.is_cuda:
            yield _fill(torch.empty(values.numel(), device=values.device), seed, number)
            continue
        buffer = free.pop() if free else torch.empty(BLOCK_SIZE, device=values.device)
        pending.append((buffer, _pool().submit(_fill, buffer[: values.numel()], seed, number)))
        if len(pending) > _num_drawers():
            buffer, noise = pending.popleft()
            yield noise.result()
            free.append(buffer)
    while pending:
        yield pending.popleft()[1].result()


def drawn_rows(seeds: Sequence[int], blocks: Sequence[Block], room: Tensor | None = None) -> Tensor:
    """Several directions over some neighbouring blocks at once: float32 (D, m), the blocks one after the other.

    In `room` where it is given: float32, at least D m numbers. Fresh memory costs more than the noise in it.
    """
    sizes = [block.values.numel() for block in blocks]
    if room is None:
        room = torch.empty(len(seeds) * sum(sizes), device=blocks[0].values.device)
    rows = room[: len(seeds) * sum(sizes)].view(len(seeds), -1)
    jobs = [
        (part, seed, block.number)
        for row, seed in zip(rows, seeds, strict=True)
        for part, block in zip(row.split(sizes), blocks, strict=True)
    ]
    if rows.is_cuda:
        for job in jobs:
            _fill(*job)
    else:
        list(_pool().map(_fill, *zip(*jobs, strict=True)))
    return rows


def _num_drawers() -> int:
    return min(torch.get_num_threads(), MOST_DRAWERS)


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_num_drawers(), thread_name_prefix="directions")


def _fill(noise: Tensor, seed: int, number: int) -> Tensor:
    """Standard normal numbers, in place."""
    return noise.normal_(generator=torch.Generator(noise.device).manual_seed(seed + number))
