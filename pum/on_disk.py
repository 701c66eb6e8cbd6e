"""The server's theta on disk while copies are trained, so that it takes no memory beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from pum.tensors import TensorFile


class StoredParameters(Mapping[str, Tensor]):
    """A model's parameters in a file; each is read when it is asked for, onto the model's device."""

    def __init__(self, path: Path, model: nn.Module) -> None:
        self._file = TensorFile(path)
        self._devices = {name: parameter.device for name, parameter in model.named_parameters()}

    def __getitem__(self, name: str) -> Tensor:
        return self._file[name].to(self._devices[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._devices)

    def __len__(self) -> int:
        return len(self._devices)


@contextmanager
def parameters_on_disk(model: nn.Module, path: Path) -> Iterator[StoredParameters]:
    """Let go of the memory of `model`'s parameters, of which `path` is a copy; at the end, read them again.

    In between they have shape, dtype and device, but one value; what they are is in what this gives. They come
    back after an error, too. A tensor that shares a parameter's memory (`detach()`) keeps it.

    Raises:
        UserError: the file cannot be read; the parameters are then as they were.
    """
    stored = StoredParameters(path, model)
    try:
        for parameter in model.parameters():
            parameter.data = torch.zeros((), dtype=parameter.dtype, device=parameter.device).expand(
                parameter.shape
            )
        yield stored
    finally:
        for name, parameter in model.named_parameters():
            parameter.data = stored[name]
