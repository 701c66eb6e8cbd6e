"""Logits without the layers, where nothing but the language-model head is trained; a head of which few rows are.

Final hidden states then do not depend on what is trained. They are computed once for each scored position and
kept, and every further evaluation is a matrix product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from src.engine.batching import MicroBatch

# Of the largest logit: a pass without the layers may differ by rounding, not by an operation that it lacks.
TOLERANCE = 0.02


class RowsHead(nn.Module):
    """A head of which some tokens' rows are parameters of their own, in the place of the frozen matrix's.

    Args:
        head: its weight (V, d) and bias stay where they are, tied to the embedding or not.
        tokens: int64 (R,), whose rows these are. They start as the head's.
    """

    def __init__(self, head: nn.Linear, tokens: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = head.weight, head.bias
        self.tokens: Tensor
        self.register_buffer("tokens", tokens, persistent=False)
        self.rows = nn.Linear(head.in_features, len(tokens), bias=False, device="meta")
        self.rows.weight = nn.Parameter(head.weight.detach()[tokens].clone())

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of hidden states (..., d)."""
        logits = functional.linear(hidden, self.weight, self.bias)
        logits[..., self.tokens] = self.trained(hidden)
        return logits

    def trained(self, hidden: Tensor) -> Tensor:
        """Logits (..., R) of the rows that are parameters of their own."""
        bias = 0 if self.bias is None else self.bias[self.tokens]
        return self.rows(hidden) + bias


def candidate_logits(head: nn.Linear | RowsHead, hidden: Tensor, vocabulary: Tensor) -> Tensor:
    """Logits (P, len(vocabulary)) of hidden states (P, d), from the head's rows of `vocabulary` only."""
    bias = None if head.bias is None else head.bias[vocabulary]
    logits = functional.linear(hidden, head.weight[vocabulary], bias)
    if isinstance(head, RowsHead):
        own = vocabulary[:, None] == head.tokens
        logits = torch.where(own.any(1), head.trained(hidden)[..., own.int().argmax(1)], logits)
    return logits


def only_head_trained(model: nn.Module) -> bool:
    """Whether all that is trained is the head's, and no use of it is the input embedding's."""
    both: Any = model
    own = {id(p) for p in both.get_output_embeddings().parameters()}
    own -= {id(p) for p in both.get_input_embeddings().parameters()}
    trained = [id(p) for p in model.parameters() if p.requires_grad]
    return bool(trained) and own.issuperset(trained)


class KeptStates:
    """Scored logits of micro-batches that come again: through the layers once, where only the head is trained.

    The states of a micro-batch live as long as it does, and until a frozen parameter is written to. It is called
    as `run` is.

    Args:
        model: a causal LM.
        run: from (model, micro-batch, vocabulary or None) to logits (P, V) by whole passes.
    """

    def __init__(self, model: nn.Module, run: Callable[[nn.Module, MicroBatch, Tensor | None], Tensor]) -> None:
        self.model, self._run = model, run
        self._batches: WeakKeyDictionary[MicroBatch, tuple[MicroBatch, Tensor]] = WeakKeyDictionary()
        self._frozen: Sequence[tuple[int, int]] = ()
        self._faithful = True

    def __call__(self, batch: MicroBatch, vocabulary: Tensor | None = None) -> Tensor:
        if not self._faithful or not only_head_trained(self.model):
            return self._run(self.model, batch, vocabulary)
        frozen = [(p.data_ptr(), p._version) for p in self.model.parameters() if not p.requires_grad]
        if frozen != self._frozen:
            self._batches.clear()
            self._frozen = frozen
        if batch in self._batches:
            return self._without_layers(batch, vocabulary)
        with _heads_input(self.model) as seen:
            logits = self._run(self.model, batch, vocabulary)
        states = seen[0][batch.positions[0], batch.positions[1]][None]
        columns = torch.arange(states.shape[1], device=states.device)
        places = torch.stack([torch.zeros_like(columns), columns])
        self._batches[batch] = replace(batch, positions=places, layout=None), states
        self._check(self._without_layers(batch, vocabulary), logits)
        return logits

    def _without_layers(self, batch: MicroBatch, vocabulary: Tensor | None) -> Tensor:
        kept, states = self._batches[batch]
        with _layers_giving(self.model, states):
            return self._run(self.model, kept, vocabulary)

    def _check(self, short: Tensor, whole: Tensor) -> None:
        """Once and for all whole passes, where the model does more between its layers and its head."""
        if short.shape != whole.shape or (short - whole).abs().max() > TOLERANCE * whole.abs().max():
            self._batches.clear()
            self._faithful = False


@contextmanager
def _heads_input(model: Any) -> Iterator[list[Tensor]]:
    """Inside, the hidden states that come to the head are put into the list."""
    seen: list[Tensor] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        yield seen
    finally:
        hook.remove()


@contextmanager
def _layers_giving(model: Any, states: Tensor) -> Iterator[None]:
    """Inside, the model's layers compute nothing and give `states` (1, P, d)."""
    layers = model.get_decoder()
    before = layers.__dict__.get("forward")
    layers.forward = lambda *args, **kwargs: BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=states)
    try:
        yield
    finally:
        if before is None:
            del layers.forward
        else:
            layers.forward = before
