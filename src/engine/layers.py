"""The decoder's layers: where they are, what of a model is trained behind them, running them a second time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from src.engine.packing import as_now
from src.utils import UserError


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
            layer.__dict__.pop("forward", None)


def only_head_trained(model: nn.Module) -> bool:
    """Whether all that is trained belongs to the language-model head and to nothing in front of it."""
    both: Any = model
    own = {id(p) for p in both.get_output_embeddings().parameters()}
    own -= {id(p) for p in both.get_input_embeddings().parameters()}
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    return bool(trained) and trained <= own
