"""What a run unlearns and keeps, and how forget and retain rows come together in a micro-batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from src.tofu.prompts import collate

Item = Mapping[str, Any]


@dataclass(frozen=True)
class UnlearnData:
    """What a run unlearns and what it keeps.

    Attributes:
        forget: rows of `src.tofu.prompts.encode_rows`; each has a "refusal" where the method needs one.
        retain: likewise; empty only where the method does not look at it.
        collator: puts rows of one kind into padded tensors.
    """

    forget: Sequence[Item]
    retain: Sequence[Item]
    collator: Callable[[Sequence[Item]], dict[str, Tensor]] = field(default=collate)


class PairedRows(Dataset[dict[str, Item]]):
    """Forget rows, each with a retain row drawn anew at every access by a generator of their own.

    Of several processes each gets every size-th batch of `batch` rows. Its draws are those that the rows of these
    batches would get in one process.
    """

    def __init__(self, data: UnlearnData, seed: int, *, batch: int = 1, place: tuple[int, int] = (0, 1)) -> None:
        self.data = data
        self.generator = torch.Generator().manual_seed(seed)
        self._batch, (self._rank, self._size) = batch, place
        self._accesses = self._drawn = 0

    def __len__(self) -> int:
        return len(self.data.forget)

    def __getitem__(self, index: int) -> dict[str, Item]:
        forget = self.data.forget[index]
        item = {"forget": forget}
        if "refusal" in forget:
            item["refusal"] = forget["refusal"]
        if self.data.retain:
            item["retain"] = self.data.retain[self._draw()]
        return item

    def _draw(self) -> int:
        batch, position = divmod(self._accesses, self._batch)
        self._accesses += 1
        end = (batch * self._size + self._rank) * self._batch + position + 1
        values = torch.zeros(1, dtype=torch.int64)
        while self._drawn < end:
            values = torch.randint(len(self.data.retain), (1,), generator=self.generator)
            self._drawn += 1
        return int(values)


def collate_pairs(
    items: Sequence[Mapping[str, Item]], collator: Callable[[Sequence[Item]], dict[str, Tensor]]
) -> dict[str, dict[str, Tensor]]:
    """{"forget": tensors, "retain": tensors, ...} of items that all have the same kinds of rows."""
    return {kind: collator([item[kind] for item in items]) for kind in items[0]}
