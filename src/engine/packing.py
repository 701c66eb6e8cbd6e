"""Sequences of different lengths in one row, one behind the other, without padding.

The linear layers, where the time goes, then see real tokens only, and many at once. Attention runs through torch's
scaled dot product on each group of equally long sequences. That needs a model whose layers mix tokens in
transformers' attention interface and nowhere else, and which takes `position_ids`; `can_pack` finds out.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv

from src.engine.attention import NAME as PREFIX_SDPA
from src.engine.attention import attention_by, behind_prefix, prefix_of
from src.engine.segments import Spans, spans_of, wide

NAME = "packed_sdpa"
# Configuration entries by which a layer may look at less than the whole sequence.
WINDOWS = ("sliding_window", "attention_chunk_size")
# What an attention may be asked for besides a causal product, and which packing does not do.
FOREIGN = ("softcap", "position_bias", "s_aux")


class PackingUnsupported(ValueError):
    """The model's attention wants more than packed sequences can give."""


@dataclass
class Layout:
    """Where the sequences of a packed row lie.

    Attributes:
        spans: (first token, number of sequences, length of each) of each group of equally long neighbours.
        position_ids: int64 (1, T), each token's place in its own sequence.
        calls: attention calls made with this layout so far.
    """

    spans: Spans
    position_ids: Tensor
    calls: int = 0

    @classmethod
    def of(cls, lengths: NDArray[np.int64], device: torch.device) -> Layout:
        """The layout of sequences that lie in this order; few groups where equal lengths are neighbours."""
        spans = spans_of(lengths)
        begins = np.r_[0, np.cumsum(lengths)]
        positions = np.arange(begins[-1]) - np.repeat(begins[:-1], lengths)
        return cls(spans, torch.from_numpy(positions)[None].to(device))


_layout: ContextVar[Layout | None] = ContextVar("packed layout", default=None)


def _packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention inside each sequence: query (1, H, T, d), key and value (1, H_kv, T, d) to (1, T, H, d).

    One split and one concatenation, so that going backward neither fills nor adds whole rows for each group. Each
    sequence sees all of the prefix, where there is one. In half precision the products are taken in float32: there
    the kernel needs several times as long to go back through short sequences.
    """
    layout = _layout.get()
    if layout is None or attention_mask is not None or any(kwargs.get(name) is not None for name in FOREIGN):
        raise PackingUnsupported("the attention has a mask or scores of its own" if layout else "no layout is set")
    layout.calls += 1
    copies = query.shape[1] // key.shape[1]
    sizes = [count * length for _, count, length in layout.spans]
    dtype, (query, key, value) = query.dtype, (wide(tensor) for tensor in (query, key, value))
    split = (tensor[0].split(sizes, dim=1) for tensor in (query, repeat_kv(key, copies), repeat_kv(value, copies)))
    prefix, counts = prefix_of(module), [count for _, count, _ in layout.spans]
    fronts: Any = itertools.repeat(())
    if prefix is not None:
        entries = (repeat_kv(wide(side), copies) for side in prefix(sum(counts)))
        fronts = zip(*(side.split(counts) for side in entries), strict=True)
    parts = []
    for (_, count, length), front, *heads in zip(layout.spans, fronts, *split, strict=False):
        q, k, v = (head.unflatten(1, (count, length)).transpose(0, 1) for head in heads)
        q, k, v = behind_prefix(q, k, v, *front) if front else (q, k, v)
        mixed = functional.scaled_dot_product_attention(q, k, v, scale=scaling, is_causal=q.shape[2] > 1)
        parts.append(mixed[:, :, -length:].transpose(1, 2).flatten(0, 1))
    return torch.cat(parts).to(dtype)[None], None


AttentionInterface.register(NAME, _packed_attention)


@contextmanager
def packed(model: nn.Module, layout: Layout) -> Iterator[None]:
    """Inside, the model's attention treats its one row as the sequences of `layout`."""
    token = _layout.set(layout)
    try:
        with attention_by(model, NAME):
            yield
    finally:
        _layout.reset(token)


def as_now(model: nn.Module) -> AbstractContextManager[None]:
    """A context, to be entered later, in which the model's attention is what it is now."""
    layout = _layout.get()
    return nullcontext() if layout is None else packed(model, layout)


def attention_window(model: nn.Module) -> int | None:
    """How many tokens back some layer of a model sees at most; None where all see everything."""
    config = getattr(model, "config", None)
    windows = [getattr(config, name, None) for name in WINDOWS]
    return min((int(window) for window in windows if window is not None), default=None)


@torch.no_grad()
def can_pack(model: nn.Module, longest: int) -> bool:
    """Whether sequences of up to `longest` tokens may be packed on this model, without a change of its losses.

    On a CPU only: on a GPU one call a length costs more than the little padding of sorted samples. A pass over
    two short sequences must reach the attention function once in each layer, and bring no mask.
    """
    config: Any = getattr(model, "config", None)
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if next(model.parameters()).device.type != "cpu":
        return False
    if getattr(config, "_attn_implementation", None) not in ("sdpa", PREFIX_SDPA):
        return False
    if "position_ids" not in inspect.signature(base.forward).parameters:
        return False
    window = attention_window(model)
    if window is not None and window < longest:
        return False
    layout = Layout.of(np.array([1, 2]), torch.device("cpu"))
    try:
        with packed(model, layout):
            ids = torch.zeros_like(layout.position_ids)
            model(input_ids=ids, position_ids=layout.position_ids, use_cache=False)
    except PackingUnsupported:
        return False
    return layout.calls == getattr(config, "num_hidden_layers", None)
