"""Digests of what an objective computes its losses from, and of weights, to notice that either is another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

# How a pass is carried out is no data: where, in which pieces (on a GPU budgets follow its free memory), and what
# an earlier pass has left.
_EXECUTION = {
    *("token_budget", "derivative_budget", "recompute", "device"),
    *("front", "_kept_front", "_plans", "_packs", "_most_tokens"),
}
_PLAIN = (str, bytes, int, float, bool, complex, type(None), torch.dtype)


def data_fingerprint(objective: Any) -> str:
    """SHA-256 in hexadecimal over the tensors, arrays, numbers and texts that an objective holds.

    Two objectives of one class over the same samples, with the same tokens, have the same one, wherever and in
    whatever micro-batches they are evaluated. The model and the tokenizer play no part, nor does what is neither a
    container nor data.
    """
    digest = hashlib.sha256()
    _add(digest, objective, set())
    return digest.hexdigest()


def checksum(tensors: Iterable[Tensor]) -> str:
    """A checksum over the tensors' values and order: it tells a wrong base model or a changed weight.

    It is no cryptographic digest.
    """
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)}{torch.hash_tensor(tensor.detach()).item()}".encode())
    return digest.hexdigest()


def frozen_checksum(model: nn.Module) -> str:
    """`checksum` of the parameters that are not trained."""
    return checksum(p for p in model.parameters() if not p.requires_grad)


def _add(digest: Any, value: Any, seen: set[int]) -> None:
    if isinstance(value, _PLAIN):
        digest.update(f"{type(value).__name__}:{value!r};".encode())
        return
    if isinstance(value, torch.Tensor | np.ndarray):
        array = (
            value.detach().cpu().contiguous() if isinstance(value, torch.Tensor) else np.ascontiguousarray(value)
        )
        digest.update(f"{array.dtype}{tuple(array.shape)};".encode())
        digest.update(_bytes(array))
        return
    if isinstance(value, nn.Module | PreTrainedTokenizerBase) or callable(value) or id(value) in seen:
        return
    seen.add(id(value))
    digest.update(f"{type(value).__name__}(".encode())
    for part in _parts(value):
        _add(digest, part, seen)
    digest.update(b")")


def _parts(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [part for pair in value.items() for part in pair]
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, set | frozenset):
        return sorted(value, key=repr)
    if is_dataclass(value):
        return [part for field in fields(value) for part in (field.name, getattr(value, field.name))]
    if not hasattr(value, "__dict__"):
        return []
    return [part for pair in sorted(vars(value).items()) if pair[0] not in _EXECUTION for part in pair]


def _bytes(array: torch.Tensor | np.ndarray) -> bytes:
    if isinstance(array, np.ndarray):
        return array.tobytes()
    return array.flatten().view(torch.uint8).numpy().tobytes() if array.numel() else b""
