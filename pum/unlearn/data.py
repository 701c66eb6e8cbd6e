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
        forget: rows of `src.tofu.prompts.encode_rows`; each has "refusals" where the method needs one.
        retain: likewise; empty only where the method does not look at it.
        collator: puts rows of one kind into padded tensors.
    """

    forget: Sequence[Item]
    retain: Sequence[Item]
    collator: Callable[[Sequence[Item]], dict[str, Tensor]] = field(default=collate)


class PairedRows(Dataset[dict[str, Item]]):
    """Forget rows, each with a retain row and a refusal drawn anew at every access by a generator of their own.


    Of several processes each gets every size-th batch of `batch` rows. Its draws are those that the rows of these
    batches would get in one process.
    """

    def __init__(self, data: UnlearnData, seed: int, *, batch: int = 1, place: tuple[int, int] = (0, 1)) -> None:
        self.data = data
        self.generator = torch.Generator().manual_seed(seed)
        self._batch, (self._rank, self._size) = batch, place
        self._accesses = self._rows = 0
        self._draws = any("refusals" in row for row in data.forget) + bool(data.retain)  # of each row

    def __len__(self) -> int:
        return len(self.data.forget)

    def __getitem__(self, index: int) -> dict[str, Item]:
        self._pass_over()
        forget = self.data.forget[index]
        item = {"forget": forget}
        if "refusals" in forget:
            item["refusal"] = self._draw(forget["refusals"])
        if self.data.retain:
            item["retain"] = self._draw(self.data.retain)
        return item

    def _pass_over(self) -> None:
        """Make the draws of the rows that other processes get before this one's next."""
        batch, position = divmod(self._accesses, self._batch)
        self._accesses += 1
        row = (batch * self._size + self._rank) * self._batch + position
        for _ in range((row - self._rows) * self._draws):
            torch.randint(2, (1,), generator=self.generator)  # moves it on as any other draw of one number does
        self._rows = row + 1

    def _draw(self, rows: Sequence[Item]) -> Item:
        return rows[int(torch.randint(len(rows), (1,), generator=self.generator))]


def collate_pairs(
    items: Sequence[Mapping[str, Item]], collator: Callable[[Sequence[Item]], dict[str, Tensor]]
) -> dict[str, dict[str, Tensor]]:
    """{"forget": tensors, "retain": tensors, ...} of items that all have the same kinds of rows."""
    return {kind: collator([item[kind] for item in items]) for kind in items[0]}
