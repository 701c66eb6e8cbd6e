"""The decoder's layers: where they are, and running them a second time instead of keeping what they computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from src.utils import UserError


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The list of a causal LM's layers, first to last.

    Raises:
        UserError: the model has no list of as many modules as its configuration has layers.
    """
    count = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise UserError(f"no list of {count} layers was found in {type(model).__name__}")


@contextmanager
def checkpointed(model: nn.Module, on: bool) -> Iterator[None]:
    """Inside, where `on`, a pass keeps each layer's input only, and runs the layer again on the way back."""
    layers = list(decoder_layers(model)) if on else []
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
