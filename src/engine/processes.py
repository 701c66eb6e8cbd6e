"""Several processes of one run, started by `accelerate launch`: each evaluates a share of the samples.

All hold the same parameters, each on its device, and apply the same records. The first one decides and writes: it
alone makes releases, keeps the private record and publishes; the others learn what it decided. What they exchange
in a step is one loss a sample and the step's coefficients. All of them belong to the private side. In one process
everything here is a plain call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed

from src.utils import UserError

ResultT = TypeVar("ResultT")


def place() -> tuple[int, int]:
    """This process's number and how many there are: (0, 1) outside a distributed run."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def is_first() -> bool:
    """Whether this is the process that decides and writes."""
    return place()[0] == 0


def on_first(work: Callable[[], ResultT]) -> ResultT:
    """`work()` of the first process, as every process's result; all must call this, the others run nothing.

    Raises:
        UserError: what `work` raised in the first process, in every process.
    """
    rank, size = place()
    if size == 1:
        return work()
    outcome: list[tuple[ResultT | None, str | None]] = [(None, None)]
    failure: BaseException | None = None
    if rank == 0:
        try:
            outcome = [(work(), None)]
        except Exception as error:  # the others must not wait for what does not come
            failure = error
            outcome = [(None, f"the first process stopped: {error}")]
    distributed.broadcast_object_list(outcome, src=0)
    if failure is not None:
        raise failure
    result, message = outcome[0]
    if message is not None:
        raise UserError(message)
    return result  # type: ignore[return-value]


def spread(
    evaluate: Callable[[NDArray[np.int64]], Tensor], rows: NDArray[np.int64], device: torch.device
) -> Tensor:
    """`evaluate(rows)`, of which each process does every size-th row: float32 (rows, ...) on the CPU, in order.

    Args:
        evaluate: one result a row, each a function of its row alone.
        rows: the same in every process.
        device: that the processes exchange tensors on.
    """
    rank, size = place()
    if size == 1:
        return evaluate(rows).cpu()
    if len(rows) < size:
        return evaluate(rows).to("cpu", torch.float32)
    mine = evaluate(rows[rank::size]).to(device, torch.float32)
    shape = (-(-len(rows) // size), *mine.shape[1:])
    padded = torch.zeros(shape, device=device)
    padded[: len(mine)] = mine
    parts = [torch.empty(shape, device=device) for _ in range(size)]
    distributed.all_gather(parts, padded)
    result = torch.empty(len(rows), *mine.shape[1:])
    for index, part in enumerate(parts):
        result[index::size] = part[: len(rows[index::size])].cpu()
    return result


def average_(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor, in place, by its mean over the processes, which all give the same shapes in one order.

    Sums are taken in float32 at least. In one process nothing is done.
    """
    _, size = place()
    if size == 1:
        return
    for tensor in tensors:
        total = tensor.to(torch.promote_types(tensor.dtype, torch.float32), copy=True)
        distributed.all_reduce(total)
        tensor.copy_(total.div_(size))


def check_equal(what: str, value: str) -> None:
    """Raises `UserError` in every process where they do not all hold the same `value`."""
    _, size = place()
    if size == 1:
        return
    values: list[str | None] = [None] * size
    distributed.all_gather_object(values, value)
    if len(set(values)) > 1:
        raise UserError(f"the processes hold different {what}: use devices of one kind, or one process")
