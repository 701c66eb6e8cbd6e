"""A reply of LoRA adapters, as the difference that they make."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from pum.tensors import Layout, TensorFile
from src.utils import UserError

PREFIX = "base_model.model."  # peft's


class LoraDifference(Mapping[str, Tensor]):
    """alpha/r B A for each weight (out, in) that has adapters A (r, in) and B (out, r), else 0: float32.

    Names are peft's, `[base_model.model.]<module>.lora_A.weight`. Each tensor is computed when it is asked for.

    Raises:
        UserError: an adapter lacks its other half or fits no weight of `layout`, or alpha is not above 0.
    """

    def __init__(self, file: TensorFile, layout: Layout, alpha: float, model: nn.Module) -> None:
        if any(isinstance(module, Conv1D) for module in model.modules()):
            raise UserError(
                f"{file.path}: the model's weights are transposed; return the difference, not adapters"
            )
        if not 0 < alpha < float("inf"):
            raise UserError(f"{file.path}: lora_alpha must be above 0 and finite, got {alpha}")
        self._file, self._layout, self._alpha = file, layout, alpha
        self._pairs: dict[str, tuple[str, str]] = {}
        halves = {name.replace(".lora_B.", ".lora_A.") for name in file}
        for first in sorted(halves):
            second = first.replace(".lora_A.", ".lora_B.")
            weight = first.removeprefix(PREFIX).replace(".lora_A.", ".")
            if first == second or first not in file or second not in file or weight not in layout:
                raise UserError(f"{file.path}: {first} is no adapter of the model, or lacks its other half")
            (rank, wide), (high, other) = (_sides(file, name) for name in (first, second))
            if rank != other or (high, wide) != tuple(layout[weight].shape) or not rank:
                raise UserError(f"{file.path}: {first} does not fit {weight}")
            self._pairs[weight] = first, second

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._pairs:
            return torch.zeros(self._layout[name].shape)
        first, second = (self._file[half].float() for half in self._pairs[name])
        return (second @ first).mul_(self._alpha / len(first))

    def __iter__(self) -> Iterator[str]:
        return iter(self._layout)

    def __len__(self) -> int:
        return len(self._layout)


def _sides(file: TensorFile, name: str) -> tuple[int, int]:
    shape = file.layout[name].shape
    return (shape[0], shape[1]) if len(shape) == 2 else (0, -1)
