"""What TOFU's evaluation asks of a model: teacher-forced passes, greedy generation, gradient norms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from src.engine.batching import ScoredSequence, TokenTable
from src.engine.decoding import decoded, generate_tokens
from src.engine.head import scored_logits
from src.engine.packing import can_pack
from src.utils import UserError

TOKEN_BUDGET = 2048  # tokens in one micro-batch; the scored positions' logits are held in float32
GENERATION_BUDGET = 8192  # prompt and new tokens of a batch, whose keys and values are held


@dataclass(frozen=True)
class Scored:
    """One teacher-forced answer of T tokens.

    Attributes:
        log_probs: float64 (T,), nats.
        hits: bool (T,), whether the argmax is the answer's token.
        standardised: float64 (T,), log_probs less their mean under the model's own distribution at that position,
            in its standard deviations.
    """

    log_probs: np.ndarray
    hits: np.ndarray
    standardised: np.ndarray

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood, nats a token."""
        return -float(self.log_probs.mean())


def teacher_forced(
    model: nn.Module, sequences: Sequence[ScoredSequence], token_budget: int | None = None
) -> list[Scored]:
    """Every sequence through the model once, in micro-batches sorted by length.

    Raises:
        UserError: the model gives NaN.
    """
    log_probs: list[list[np.ndarray]] = [[] for _ in sequences]
    device = next(model.parameters()).device
    model.eval()
    packs = can_pack(model, max(len(sequence.ids) for sequence in sequences))
    with torch.no_grad():
        for batch in TokenTable(sequences, device).micro_batches(token_budget or TOKEN_BUDGET, packed=packs):
            columns = _token_columns(scored_logits(model, batch), batch.targets).cpu().double().numpy()
            if np.isnan(columns).any():
                raise UserError("the model gives NaN, so it cannot be evaluated; see how it was trained")
            rows = batch.owners.cpu().numpy()
            for index in np.unique(rows):
                log_probs[index] = list(columns[:, rows == index])
    return [Scored(values[0], values[1].astype(bool), values[2]) for values in log_probs]


def _token_columns(logits: Tensor, targets: Tensor) -> Tensor:
    """float32 (3, P): the target's log-probability, whether it is the argmax, the former standardised."""
    log_p = functional.log_softmax(logits.float(), dim=-1)
    chosen = log_p.gather(1, targets[:, None])[:, 0]
    hits = log_p.argmax(dim=1) == targets
    weights = log_p.exp()
    finite = log_p.masked_fill(weights == 0, 0.0)
    mean = (weights * finite).sum(dim=1)
    variance = (weights * finite.square()).sum(dim=1) - mean.square()
    return torch.stack([chosen, hits.float(), (chosen - mean) / variance.clamp(min=1e-12).sqrt()])


def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    token_budget: int | None = None,
) -> list[str]:
    """Greedy continuations of prompts given as token ids, without special tokens, stripped.

    They end at the tokenizer's and the checkpoint's end tokens; what else its generation configuration says, about
    sampling say, does not count.
    """
    model.eval()
    device = next(model.parameters()).device
    anything: Any = model
    own = anything.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}
    stops = torch.zeros(anything.config.vocab_size, dtype=torch.bool, device=device)
    stops[sorted(ends)] = True
    tokens = generate_tokens(
        model,
        TokenTable([ScoredSequence(list(ids), len(ids)) for ids in prompts], device),
        np.arange(len(prompts)),
        max_new_tokens=max_new_tokens,
        stops=stops,
        token_budget=token_budget or GENERATION_BUDGET,
    )
    return [text.strip() for text in decoded(tokenizer, tokens)]


def gradient_norms(model: nn.Module, sequences: Sequence[ScoredSequence]) -> list[float]:
    """L2 norm over all parameters of each sequence's loss gradient; one backward pass each."""
    device = next(model.parameters()).device
    parameters = list(model.parameters())
    wanted = [parameter.requires_grad for parameter in parameters]
    norms = []
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        for sequence in sequences:
            (batch,) = TokenTable([sequence], device).micro_batches(len(sequence.ids))
            loss = functional.cross_entropy(scored_logits(model, batch).float(), batch.targets)
            gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            norms.append(float(torch.stack([g.float().norm() for g in gradients if g is not None]).norm()))
    finally:
        for parameter, flag in zip(parameters, wanted, strict=True):
            parameter.requires_grad_(flag)
    return norms
