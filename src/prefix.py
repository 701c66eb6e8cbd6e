"""Prefix tuning: keys and values in front of every layer's attention are trained, nothing else (arXiv 2101.00190).

As in MeZO (arXiv 2305.17333) there is no reparameterisation, and the prefix starts as the keys and values of real
tokens. The positions of a sequence's own tokens are what they are without it. How a layer attends to its prefix is
in `src/engine/attention.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import InitVar, dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from src.engine.attention import NAME, Prefix, keys_and_values
from src.tracks import TrackSettings, check_untracked, freeze, mark
from src.utils import UserError


@dataclass(frozen=True)
class PrefixSettings(TrackSettings):
    """What is needed to put the same initial prefix into the same base model again.

    Attributes:
        num_prefix: m, entries of each layer.
        init_by_real_act: start from what the base model makes of `tokens`; else from standard normal values.
        seed: of the draw, of tokens or of values.
        tokens: the m token ids; None until `add_prefix` has drawn them from the whole vocabulary.
        no_reparam: the sources' name for training the prefix itself; a prefix made by perceptrons is refused.
    """

    name: ClassVar[str] = "prefix"
    num_prefix: int = 5
    init_by_real_act: bool = True
    seed: int = 0
    tokens: tuple[int, ...] | None = None
    no_reparam: InitVar[bool] = True

    def __post_init__(self, no_reparam: bool) -> None:
        if self.num_prefix < 1:
            raise UserError(f"num_prefix must be at least 1, got {self.num_prefix}")
        if not no_reparam:
            raise UserError("the prefix is trained itself: reparameterisation (no_reparam False) is not supported")
        if self.tokens is not None and len(self.tokens) != self.num_prefix:
            raise UserError(f"a prefix of {self.num_prefix} entries starts from as many tokens, not {self.tokens}")


def add_prefix(model: PreTrainedModel, settings: PrefixSettings = PrefixSettings()) -> PreTrainedModel:
    """Freeze `model` and put a prefix in front of each layer's keys and values, on its device and in its dtype.

    The model is changed in place and returned; `model.track` holds the settings with the tokens that were drawn.

    Raises:
        UserError: the model has a track, some layer of it does not come by the library's SDPA attention, or it has
            fewer positions than the prefix has entries.
    """
    check_untracked(model)
    settings = _drawn(settings, int(model.config.vocab_size))
    calls = _calls(model, settings)
    freeze(model)
    generator = torch.Generator().manual_seed(settings.seed)
    for module, keys, values in calls:
        if not settings.init_by_real_act:
            keys, values = (_normal(tensor, generator) for tensor in (keys, values))
        module.prefix = Prefix(
            *(tensor[0].clone(memory_format=torch.contiguous_format) for tensor in (keys, values))
        )
    model.config._attn_implementation = NAME
    return mark(model, settings)


def _drawn(settings: PrefixSettings, vocabulary: int) -> PrefixSettings:
    """The settings with token ids, uniform over the vocabulary where there are none yet."""
    if settings.tokens is not None or not settings.init_by_real_act:
        return settings
    ids = np.random.default_rng(settings.seed).integers(vocabulary, size=settings.num_prefix)
    return replace(settings, tokens=tuple(int(token) for token in ids))


def _calls(model: PreTrainedModel, settings: PrefixSettings) -> list[tuple[nn.Module, Tensor, Tensor]]:
    """Each layer's attention with its (1, H_kv, m, d) keys and values of the tokens, all of them of one kind."""
    config: Any = model.config
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and settings.num_prefix > longest:
        raise UserError(f"the model takes {longest} tokens, fewer than num_prefix {settings.num_prefix}")
    if config._attn_implementation != "sdpa":
        raise UserError(f"prefix tuning needs the sdpa attention, the model has {config._attn_implementation}")
    tokens = settings.tokens or (0,) * settings.num_prefix
    with _one_thread():
        calls = keys_and_values(model, torch.tensor([tokens], device=model.device))
    counts = len(calls), len({module for module, _, _ in calls})
    if counts != (config.num_hidden_layers, config.num_hidden_layers):
        raise UserError(f"prefix tuning does not reach every layer of model type '{config.model_type}'")
    return calls


@contextmanager
def _one_thread() -> Iterator[None]:
    """Inside, a CPU's sums do not depend on how many threads share them: a replay must find the same start."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator).to(like)
