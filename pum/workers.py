"""Several processes of one PUM run, each of which trains copies of its own.

`accelerate launch` starts them as one training job, in which a `Trainer` would share its batches among them. Here
each one trains alone: `join` takes the launcher's variables away, before a library reads them, and leaves each
process its own device. All that the processes exchange is files and, through the launcher's store, short messages
that say what is there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

from torch import distributed

from src.utils import UserError, one_line

LAUNCHED = ("WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
LONGEST_WAIT = timedelta(days=30)  # for another process's copy; the launcher ends us where the other has died

ResultT = TypeVar("ResultT")


class Workers:
    """This process among those of its run; `Workers()` is the only one.

    Attributes:
        rank, size: its number and how many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1, store: Any = None) -> None:
        self.rank, self.size, self._store = rank, size, store

    @property
    def is_first(self) -> bool:
        """Whether this is the process that decides and merges."""
        return self.rank == 0

    def tell(self, key: str, work: Callable[[], ResultT]) -> ResultT:
        """`work()`, whose result (JSON), or failure, `wait(key)` gives to the other processes.

        The process that fails is the one that says so on the screen, whatever its number; those that wait for it
        are silent.
        """
        try:
            result = work()
        except BaseException as error:
            if self._store is not None:
                os.environ["RANK"] = "0"
            self._set(key, {"failed": one_line(error)})
            raise
        self._set(key, {"result": result})
        return result

    def wait(self, key: str) -> Any:
        """What `tell(key, ...)` was given by the process that says it; `UserError` where that failed."""
        message = json.loads(self._store.get(key))
        if "failed" in message:
            os.environ["RANK"] = "1"
            raise UserError(message["failed"])
        return message["result"]

    def wait_for(self, key: str) -> None:
        """Wait for what each other process tells under `key` and its number."""
        for rank in range(self.size):
            if rank != self.rank:
                self.wait(f"{key} {rank}")

    def on_first(self, key: str, work: Callable[[], ResultT]) -> ResultT:
        """`work()` of the first process, in every process."""
        return self.tell(key, work) if self.is_first else self.wait(key)

    def _set(self, key: str, message: dict[str, Any]) -> None:
        if self._store is not None:
            self._store.set(key, json.dumps(message))


def join() -> Workers:
    """The processes that a launcher has started, if it has; call it before any argument of a trainer is made."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Workers()
    store, rank, size = next(distributed.rendezvous("env://", timeout=LONGEST_WAIT))
    local = int(os.environ.get("LOCAL_RANK", "0"))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[local] if visible else str(local)
    for name in LAUNCHED:
        os.environ.pop(name, None)
    return Workers(rank, size, store)
