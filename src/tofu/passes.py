"""What TOFU's evaluation asks of a model: teacher-forced passes, greedy generation, gradient norms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from src.engine.batching import ScoredSequence, TokenTable, launch_tokens
from src.engine.decoding import decoded, generate_tokens
from src.engine.head import scored_logits
from src.engine.packing import can_pack
from src.utils import UserError

TOKEN_BUDGET = 2048  # tokens in one micro-batch; the scored positions' logits are held in float32
# Prompt and new tokens of a batch, whose keys and values are held; a GPU takes as long for few rows as for many.
GENERATION_BUDGET, CUDA_GENERATION_BUDGET = 8192, 32768
GENERATED_AT_ONCE = 128  # prompts between two reports of progress


@dataclass(frozen=True)
class Scored:
    """One teacher-forced answer of T scored tokens, the last of which ends the sequence.

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
    model: nn.Module,
    sequences: Sequence[ScoredSequence],
    token_budget: int | None = None,
    *,
    done: Callable[[int], object] = int,
) -> list[Scored]:
    """Every sequence through the model once, in micro-batches sorted by length.

    Args:
        done: called with the number of sequences of each finished micro-batch.

    Raises:
        UserError: the model gives NaN.
    """
    log_probs: list[list[np.ndarray]] = [[] for _ in sequences]
    device = next(model.parameters()).device
    model.eval()
    packs = can_pack(model, max(len(sequence.ids) for sequence in sequences))
    budget, least = token_budget or TOKEN_BUDGET, launch_tokens(model, device)
    with torch.no_grad():
        for batch in TokenTable(sequences, device).micro_batches(budget, packed=packs, least=least):
            columns = _token_columns(scored_logits(model, batch), batch.targets).cpu().double().numpy()
            if np.isnan(columns).any():
                raise UserError("the model gives NaN, so it cannot be evaluated; see how it was trained")
            rows = batch.owners.cpu().numpy()
            for index in np.unique(rows):
                log_probs[index] = list(columns[:, rows == index])
            done(len(batch.rows))
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
    return torch.stack([chosen, hits.float(), (chosen - mean) / variance.clamp(min=1e-6).sqrt()])


def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    token_budget: int | None = None,
    done: Callable[[int], object] = int,
) -> list[str]:
    """Greedy continuations of prompts given as token ids, without special tokens, stripped.

    `done` is called with the number of prompts of each part of them that is finished.

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
    budget = CUDA_GENERATION_BUDGET if device.type == "cuda" else GENERATION_BUDGET
    # In parts, so that a long evaluation tells how far it is; a part fills batches of rows of like length.
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    texts = [""] * len(prompts)
    for begin in range(0, len(order), GENERATED_AT_ONCE):
        part = order[begin : begin + GENERATED_AT_ONCE]
        tokens = generate_tokens(
            model,
            TokenTable([ScoredSequence(list(prompts[i]), len(prompts[i])) for i in part], device),
            np.arange(len(part)),
            max_new_tokens=max_new_tokens,
            stops=stops,
            token_budget=token_budget or budget,
        )
        for index, text in zip(part, decoded(tokenizer, tokens), strict=True):
            texts[index] = text.strip()
        done(len(part))
    return texts


def gradient_norms(
    model: nn.Module, sequences: Sequence[ScoredSequence], *, done: Callable[[int], object] = int
) -> list[float]:
    """Mean over the parameter tensors of the L2 norm of each sequence's loss gradient; one backward pass each.

    The loss is the mean NLL of the scored tokens but the last, which ends the sequence (arXiv 2402.17012, as in
    open-unlearning); 0 for a sequence that has no other.
    """
    device = next(model.parameters()).device
    parameters = list(model.parameters())
    wanted = [parameter.requires_grad for parameter in parameters]
    norms = []
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        for sequence in sequences:
            norms.append(_gradient_norm(model, parameters, sequence, device))
            done(1)
    finally:
        for parameter, flag in zip(parameters, wanted, strict=True):
            parameter.requires_grad_(flag)
    return norms


def _gradient_norm(
    model: nn.Module, parameters: Sequence[Tensor], sequence: ScoredSequence, device: torch.device
) -> float:
    if len(sequence.ids) - sequence.start < 2:
        return 0.0
    body = ScoredSequence(sequence.ids[:-1], sequence.start)
    (batch,) = TokenTable([body], device).micro_batches(len(body.ids))
    loss = functional.cross_entropy(scored_logits(model, batch).float(), batch.targets)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return float(torch.stack([g.float().norm() for g in gradients if g is not None]).mean())
