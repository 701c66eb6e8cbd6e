"""Does forgetting outlast rounding? Weights rounded to 8 and 4 bits, as a model is when it is served cheaply.

An update smaller than half a quantization step is undone by the rounding (arXiv 2410.16454). Rounded is what
weight-only quantization rounds: the linear layers inside the model, not the embeddings, the norms or the head.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


def levels(weight: Tensor, bits: int, *, out: int = 0) -> tuple[Tensor, Tensor]:
    """Symmetric rounding, one scale for each output channel: level (float32, whole, |.| < 2^(bits-1)) and step.

    Args:
        weight: two-dimensional, close to level times step.
        out: the dimension of the output channels.
    """
    step = weight.float().abs().amax(dim=1 - out, keepdim=True) / (2 ** (bits - 1) - 1)
    step = torch.where(step == 0, 1.0, step)
    return (weight.float() / step).round(), step


def linear_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor, int]]:
    """Name, weight and dimension of the output channels of each linear layer but the head."""
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if module is not head and isinstance(module, nn.Linear | Conv1D):
            weight: Tensor = module.weight
            yield name, weight, int(isinstance(module, Conv1D))


@torch.no_grad()
def quantize_(model: PreTrainedModel, bits: int) -> None:
    """Round the model's linear weights in place."""
    for _, weight, out in linear_weights(model):
        level, step = levels(weight, bits, out=out)
        weight.copy_(level * step)


@torch.no_grad()
def undone_share(model: PreTrainedModel, before: PreTrainedModel, bits: int) -> float:
    """Of the linear weights that differ from those before unlearning, the share that rounds to the same level."""
    changed = undone = 0
    others = {name: weight for name, weight, _ in linear_weights(before)}
    for name, weight, out in linear_weights(model):
        other = others[name]
        moved = weight != other
        same = levels(weight, bits, out=out)[0] == levels(other, bits, out=out)[0]
        changed += int(moved.sum())
        undone += int((moved & same).sum())
    return undone / changed if changed else 0.0
