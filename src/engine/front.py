"""What the frozen layers in front of what is trained give, kept from pass to pass.

It is kept for each micro-batch that came along, which is all that a run over the same samples needs. A run that
draws other samples every step has it kept for each sequence (`FrozenFront.keep_sequences`), and a micro-batch's is
put together. Both are copies of the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from src.engine.batching import MicroBatch
from src.engine.layers import decoder_layers, only_head_trained

# Bytes of hidden states that are kept at most on a CPU; on a GPU a quarter of what is free.
CPU_KEPT_BYTES = 1 << 31


class FrozenFront:
    """What the layers in front of what is trained give: computed once, and kept.

    Where the head alone is trained, that is the scored states: a pass is then little more than the head's product.

    Args:
        model: with `requires_grad` set on what is trained, for good.

    Attributes:
        depth: layers in front of what is trained; 0 where something in front of the layers is trained, or anything
            else outside of them, unless that is the head alone.
        kept_bytes: of hidden states, now.
    """

    def __init__(self, model: nn.Module) -> None:
        layers = decoder_layers(model) or nn.ModuleList()
        self._entry: Any = None
        self.depth = 0
        trained = {id(p) for p in model.parameters() if p.requires_grad}
        inside = [{id(p) for p in layer.parameters()} & trained for layer in layers]
        self._behind_trunk = only_head_trained(model)
        if self._behind_trunk:
            both: Any = model
            self.depth, self._entry = len(layers), both.get_output_embeddings()
        elif trained and trained == set().union(*inside):
            self.depth = next(index for index, own in enumerate(inside) if own)
            self._entry = layers[self.depth]
        self._front = layers[: self.depth]
        self._kept: WeakKeyDictionary[MicroBatch, Tensor] = WeakKeyDictionary()
        # Of all sequences, one behind the other: (T, d); and int64 (S,), where each begins and how long it is.
        self._states: Tensor | None = None
        self._begins = self._sizes = torch.empty(0, dtype=torch.int64)

    @property
    def kept_bytes(self) -> int:
        kept = [*self._kept.values(), *([] if self._states is None else [self._states])]
        return sum(_size(hidden) for hidden in kept)

    @contextmanager
    def running(self, batch: MicroBatch) -> Iterator[None]:
        """Inside, a pass over `batch` starts behind the frozen layers, if they have seen it before."""
        if not self.depth:
            yield
            return
        kept = self._kept.get(batch) if self._states is None else self._put_together(self._states, batch)
        passed_by = () if kept is None else self._front

        def enter(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if kept is not None:
                return (kept, *args[1:])
            hidden = args[0].detach()
            if self.kept_bytes + _size(hidden) <= _most_kept(hidden.device):
                self._kept[batch] = hidden
            return None

        wrapped = [layer.__dict__.get("forward") for layer in passed_by]  # by checkpointing, or by nothing
        for layer in passed_by:
            layer.forward = _passed_by
        hook = self._entry.register_forward_pre_hook(enter)
        try:
            yield
        finally:
            hook.remove()
            for layer, forward in zip(passed_by, wrapped, strict=True):
                if forward is None:
                    del layer.forward
                else:
                    layer.forward = forward

    def keep_sequences(self, batches: Sequence[MicroBatch]) -> None:
        """Keeps what was kept of `batches`, which hold every sequence once, for each sequence instead.

        Does nothing where they did not all fit, or would not fit twice on the way.
        """
        if any(batch not in self._kept for batch in batches):
            return
        try:
            found = [(batch, *self._places(batch)) for batch in batches]
            sizes = torch.bincount(torch.cat([owner[real] for _, owner, _, real in found]))
            begins = sizes.cumsum(0) - sizes
            width = self._kept[batches[0]].shape[-1]
            states = self._kept[batches[0]].new_empty(int(sizes.sum()), width)
            for batch, owner, rank, real in found:
                states[begins[owner[real]] + rank[real]] = self._kept[batch].reshape(*real.shape, width)[real]
        except torch.cuda.OutOfMemoryError:
            return
        self._kept.clear()
        self._states, self._begins, self._sizes = states, begins, sizes

    def _put_together(self, states: Tensor, batch: MicroBatch) -> Tensor:
        """As the frozen layers would give it, with a sequence's last state in the place of what is padded."""
        owner, rank, _ = self._places(batch)
        return states[self._begins[owner] + torch.minimum(rank, self._sizes[owner] - 1)]

    def _places(self, batch: MicroBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Of each state that reaches what is trained: its sequence, its place there, and whether it is real."""
        if self._behind_trunk:
            owner = batch.owners
            _, counts = torch.unique_consecutive(owner, return_counts=True)
            rank = torch.arange(len(owner), device=owner.device)
            rank = rank - (counts.cumsum(0) - counts).repeat_interleave(counts)
        elif batch.layout is not None:
            owner = batch.rows.repeat_interleave(batch.lengths)[None]
            rank = batch.layout.position_ids
        else:
            owner = batch.rows[:, None].expand(batch.input_ids.shape)
            rank = torch.arange(batch.input_ids.shape[1], device=owner.device).expand(owner.shape)
            return owner, rank, rank < batch.lengths[:, None]
        return owner, rank, torch.ones_like(owner, dtype=torch.bool)


def _passed_by(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return hidden


def _size(hidden: Tensor) -> int:
    return hidden.numel() * hidden.element_size()


def _most_kept(device: torch.device) -> int:
    return CPU_KEPT_BYTES if device.type != "cuda" else int(torch.cuda.mem_get_info(device)[0]) // 4
