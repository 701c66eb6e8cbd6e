"""The decoder's layers: where they are, keeping what the frozen first ones give, running them a second time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from src.engine.batching import MicroBatch
from src.engine.packing import as_now
from src.utils import UserError

# Bytes of hidden states that are kept at most on a CPU; on a GPU a quarter of what is free.
CPU_KEPT_BYTES = 1 << 31


def decoder_layers(model: nn.Module) -> nn.ModuleList | None:
    """The list of a causal LM's layers, first to last: as many modules as its configuration has layers."""
    count = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == count)
    return next(lists, None)


@contextmanager
def checkpointed(model: nn.Module, on: bool) -> Iterator[None]:
    """Inside, where `on`, a pass keeps each layer's input only, and runs the layer again on the way back."""
    layers = decoder_layers(model) if on else nn.ModuleList()
    if layers is None:
        raise UserError(f"one sample does not fit in memory, and {type(model).__name__} has no list of layers")
    for layer in layers:
        layer.forward = partial(
            checkpoint, layer.forward, use_reentrant=False, context_fn=lambda: (nullcontext(), as_now(model))
        )
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def only_head_trained(model: nn.Module) -> bool:
    """Whether all that is trained belongs to the language-model head and to nothing in front of it."""
    both: Any = model
    own = {id(p) for p in both.get_output_embeddings().parameters()}
    own -= {id(p) for p in both.get_input_embeddings().parameters()}
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    return bool(trained) and trained <= own


class FrozenFront:
    """What the layers in front of what is trained give: computed once for each micro-batch, and kept.

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
        if only_head_trained(model):
            both: Any = model
            self.depth, self._entry = len(layers), both.get_output_embeddings()
        elif trained and trained == set().union(*inside):
            self.depth = next(index for index, own in enumerate(inside) if own)
            self._entry = layers[self.depth]
        self._front = layers[: self.depth]
        self._kept: WeakKeyDictionary[MicroBatch, Tensor] = WeakKeyDictionary()

    @property
    def kept_bytes(self) -> int:
        return sum(hidden.numel() * hidden.element_size() for hidden in self._kept.values())

    @contextmanager
    def running(self, batch: MicroBatch) -> Iterator[None]:
        """Inside, a pass over `batch` starts behind the frozen layers, if they have seen it before."""
        if not self.depth:
            yield
            return
        kept = self._kept.get(batch)
        passed_by = () if kept is None else self._front

        def enter(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if kept is not None:
                return (kept, *args[1:])
            hidden = args[0].detach()
            if self.kept_bytes + hidden.numel() * hidden.element_size() <= _most_kept(hidden.device):
                self._kept[batch] = hidden
            return None

        for layer in passed_by:
            layer.forward = _passed_by
        hook = self._entry.register_forward_pre_hook(enter)
        try:
            yield
        finally:
            hook.remove()
            for layer in passed_by:
                del layer.forward


def _passed_by(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return hidden


def _most_kept(device: torch.device) -> int:
    return CPU_KEPT_BYTES if device.type != "cuda" else int(torch.cuda.mem_get_info(device)[0]) // 4
