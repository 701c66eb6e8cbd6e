"""SDPA attention in which every sequence also sees the entries of a prefix, and nothing else changes.

A layer's prefix stands in front of the keys and values of each sequence (arXiv 2101.00190). It is in no cache
and in no mask of the model, so the tokens' positions are what they are without it, in a whole pass and in one
that goes on from a cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "prefix_sdpa"
_WATCHED = "watched_sdpa"


class Prefix(nn.Module):
    """One layer's prefix of m entries, one copy for all sequences.

    Args:
        keys, values: (H_kv, m, d); the keys as they are compared with queries, rotated where the model rotates.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values = nn.Parameter(keys), nn.Parameter(values)

    def forward(self, sequences: int) -> tuple[Tensor, Tensor]:
        """Keys and values, (sequences, H_kv, m, d) each, as each sequence uses them: views of the one copy.

        Every use comes through here, so the gradient at a forward hook's outputs is that of each sequence's use.
        """
        return self.keys.expand(sequences, -1, -1, -1), self.values.expand(sequences, -1, -1, -1)


def prefix_of(module: nn.Module) -> Prefix | None:
    """The prefix of a layer's attention, if it has one."""
    found = getattr(module, "prefix", None)
    return found if isinstance(found, Prefix) else None


def behind_prefix(
    query: Tensor, key: Tensor, value: Tensor, prefix_keys: Tensor, prefix_values: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of a longer sequence, (B, heads, m + L, d) each.

    As many empty queries stand in front as there are entries. What they see is dropped; they make causal attention
    behind a prefix a square one, which the fast kernels do without a mask.
    """
    keys, values = torch.cat([prefix_keys, key], dim=2), torch.cat([prefix_values, value], dim=2)
    return functional.pad(query, (0, 0, prefix_keys.shape[2], 0)), keys, values


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """The library's SDPA attention; where `module` has a `Prefix`, over [prefix; sequence].

    Args:
        query: (B, H, L, d).
        key, value: (B, H_kv, C + L, d), C of them from a cache.
        attention_mask: (B, 1, L, C + L), bool or added; None for causal attention.

    Returns:
        (B, L, H, d), and None in the place of the attention's weights.
    """
    prefix = prefix_of(module)
    if prefix is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    longer, key, value = behind_prefix(query, key, value, *prefix(len(query)))
    size = longer.shape[2] - query.shape[2]
    if attention_mask is not None:
        seen = True if attention_mask.dtype == torch.bool else 0.0
        attention_mask = functional.pad(attention_mask, (size, 0), value=seen)
    elif query.shape[2] > 1:
        return sdpa_attention_forward(module, longer, key, value, None, **kwargs)[0][:, size:], None
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


_calls: ContextVar[list[tuple[nn.Module, Tensor, Tensor]]] = ContextVar("attention calls")


def _watched_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    _calls.get().append((module, key, value))
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


for _name, _function in ((NAME, attention), (_WATCHED, _watched_attention)):
    AttentionInterface.register(_name, _function)
    AttentionMaskInterface.register(_name, sdpa_mask)


@contextmanager
def attention_by(model: nn.Module, name: str) -> Iterator[None]:
    """Inside, the model's layers use the attention function that is registered as `name`."""
    config: Any = model.config
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


@torch.no_grad()
def keys_and_values(model: nn.Module, ids: Tensor) -> list[tuple[nn.Module, Tensor, Tensor]]:
    """What the tokens `ids` (1, m), alone in the model, give to each call of its attention, in the calls' order.

    Returns:
        For each call the module that made it, and (1, H_kv, m, d) keys and values, as a cache would hold them.
        Layers that do not come by the library's attention interface are missing.
    """
    token = _calls.set([])
    try:
        with attention_by(model, _WATCHED):
            model(input_ids=ids, use_cache=False)
        return _calls.get()
    finally:
        _calls.reset(token)
