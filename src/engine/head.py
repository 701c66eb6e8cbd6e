"""The language-model head on the scored states only, one with a few rows of its own, and log-probabilities."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from src.engine.batching import MicroBatch
from src.engine.front import FrozenFront
from src.engine.packing import packed
from src.engine.segments import wide


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
        return logits.index_copy(-1, self.tokens, self.trained(hidden))

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


def token_log_probs(logits: Tensor, targets: Tensor) -> Tensor:
    """float32 (P,), float64 where `logits` are: log-probabilities of `targets` (P,) under `logits` (P, V)."""
    return -functional.cross_entropy(wide(logits), targets, reduction="none")


def scored_logits(
    model: nn.Module, batch: MicroBatch, vocabulary: Tensor | None = None, front: FrozenFront | None = None
) -> Tensor:
    """Logits (P, V) at the scored positions, in the model's dtype; V counts `vocabulary` where given.

    The model's own forward runs, so whatever it does after its head (scaling, soft caps) is done here too.
    """
    layout = batch.layout
    kept = nullcontext() if front is None else front.running(batch)
    with restricted_head(model, batch.positions, vocabulary), kept:
        if layout is None:
            return model(input_ids=batch.input_ids, use_cache=False).logits
        with packed(model, layout):
            return model(input_ids=batch.input_ids, position_ids=layout.position_ids, use_cache=False).logits


@torch.no_grad()
def head_inputs(model: nn.Module, batch: MicroBatch) -> Tensor:
    """What the head sees at the scored positions, (P, hidden), in the model's dtype."""
    seen: list[Tensor] = []
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    hook = head.register_forward_hook(lambda _module, args, _output: seen.append(args[0]))
    try:
        scored_logits(model, batch, torch.zeros(1, dtype=torch.int64, device=batch.positions.device))
    finally:
        hook.remove()
    return seen[0]


@contextmanager
def restricted_head(model: nn.Module, positions: Tensor, vocabulary: Tensor | None = None) -> Iterator[None]:
    """Inside, the head sees the hidden states at `positions` (2, P) only, and scores `vocabulary` (V,) only."""
    head: Any = model.get_output_embeddings()  # type: ignore[operator]

    def select(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = args[0]
        rows, columns = positions
        return (hidden[rows, columns], *args[1:])

    hooks = [head.register_forward_pre_hook(select)]
    if vocabulary is not None and type(head) in (nn.Linear, RowsHead):
        head.forward = partial(candidate_logits, head, vocabulary=vocabulary)
    elif vocabulary is not None:
        hooks.append(head.register_forward_hook(lambda _m, _a, output: output[:, vocabulary]))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        head.__dict__.pop("forward", None)
