"""Greedy generation of many short answers, and minus their F1 as a per-sample loss."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from src.batching import Indices, ScoredSequence, TokenTable, partition
from src.metrics import f1_score
from src.objective_base import Objective, Samples, as_rows
from src.scoring import restricted_head
from src.utils import encode

# A step of the decoding takes one token a row, so that a CPU wants many more rows than in a forward pass.
CPU_BUDGET_FACTOR = 4
# Rows that are done leave a batch together once they are this share of it: leaving copies the others' cache.
LEAVING_SHARE = 0.2


class GenerationF1(Objective):
    """l_i = -F1 of the greedy answer to prompt i against the gold answers (arXiv 2605.06505, section 4).

    An answer ends before its first newline, at the end-of-text token, or after `max_new_tokens` tokens.

    Args:
        model, tokenizer, prompts, token_budget: as for `CandidateScoring`; the budget counts the new tokens too.
        answers: N lists of gold answers.

    Raises:
        ValueError: lengths differ, a prompt or a list of answers is empty, or a prompt and its answer are longer
            than the model's positions.
    """

    may_be_zero = True

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[str],
        answers: Sequence[Sequence[str]],
        max_new_tokens: int = 50,
        *,
        token_budget: int | None = None,
    ) -> None:
        super().__init__(model, len(prompts), token_budget)
        if token_budget is None and self.device.type != "cuda":
            self.token_budget *= CPU_BUDGET_FACTOR
        if len(prompts) != len(answers):
            raise ValueError(f"{len(prompts)} prompts, {len(answers)} answer lists: the numbers must be equal")
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {max_new_tokens}")
        self.tokenizer = tokenizer
        self.answers = [list(golds) for golds in answers]
        self.max_new_tokens = max_new_tokens
        encoded = list(encode(tokenizer, prompts))
        longest = getattr(getattr(model, "config", None), "max_position_embeddings", None)
        for index, (ids, golds) in enumerate(zip(encoded, self.answers, strict=True)):
            if not ids or not golds:
                raise ValueError(f"sample {index} has no {'gold answer' if ids else 'prompt'}")
            if longest is not None and len(ids) + max_new_tokens > longest:
                needed = f"{len(ids)} tokens and {max_new_tokens} new ones"
                raise ValueError(f"sample {index} has {needed}, the model takes {longest}")
        self._table = TokenTable([ScoredSequence(ids, len(ids)) for ids in encoded], self.device)
        self.num_tokens = self._table.num_tokens
        self._stops = stop_tokens(tokenizer, int(model.config.vocab_size)).to(self.device)  # type: ignore[union-attr, arg-type]

    def texts(self, samples: Samples | None = None) -> list[str]:
        """The answers, in sample order or in that of `samples`."""
        rows = as_rows(samples)
        chosen = np.arange(len(self)) if rows is None else rows
        tokens = self._pass(
            lambda budget: generate_tokens(
                self.model,
                self._table,
                chosen,
                max_new_tokens=self.max_new_tokens,
                stops=self._stops,
                token_budget=budget,
            )
        )
        return [text.split("\n")[0].strip() for text in decoded(self.tokenizer, tokens)]

    def losses(self, samples: Samples | None = None) -> Tensor:
        return self._spread(self._losses, as_rows(samples))

    def _losses(self, rows: Indices | None) -> Tensor:
        chosen = range(len(self)) if rows is None else rows.tolist()
        pairs = zip(self.texts(rows), chosen, strict=True)
        return torch.tensor([-f1_score(text, self.answers[row]) for text, row in pairs], dtype=torch.float32)

    def metrics(self) -> dict[str, float]:
        loss = float(self.losses().mean())
        return {"loss": loss, "f1": -loss}


@torch.no_grad()
def generate_tokens(
    model: nn.Module,
    prompts: TokenTable,
    rows: Indices,
    *,
    max_new_tokens: int,
    stops: Tensor,
    token_budget: int,
) -> Tensor:
    """Greedy continuations, sorted by length into batches: int64 (rows, max_new_tokens), -1 behind a row's end.

    Args:
        model: a causal LM in evaluation mode.
        rows: which of the prompts, in the order of the result.
        stops: bool (V,), tokens that end a row and are not part of it.
        token_budget: prompt and new tokens of a batch, padding included.
    """
    order = np.argsort(prompts.lengths[rows], kind="stable")
    cuts = partition(prompts.lengths[rows[order]] + max_new_tokens, token_budget)
    result = torch.full((len(rows), max_new_tokens), -1, device=prompts.device)
    for begin, end in itertools.pairwise(cuts):
        places = order[begin:end]
        padded, real = (
            torch.from_numpy(array).to(prompts.device) for array in _left_padded(prompts, rows[places])
        )
        put = torch.from_numpy(places).to(prompts.device)
        result[put] = greedy(model, padded, real, max_new_tokens, stops)
    return result


def _left_padded(prompts: TokenTable, rows: Indices) -> tuple[Indices, NDArray[np.bool_]]:
    """Token ids (B, L) of prompts, padded on the left, and which of them are tokens."""
    lengths = prompts.lengths[rows]
    width = int(lengths.max())
    padded = np.zeros((len(rows), width), dtype=np.int64)
    real = np.arange(width) >= width - lengths[:, None]
    padded[real] = prompts.ids[rows][np.arange(prompts.ids.shape[1]) < lengths[:, None]]
    return padded, real


def decoded(tokenizer: PreTrainedTokenizerBase, tokens: Tensor) -> list[str]:
    """The texts of `generate_tokens`' rows, without special tokens."""
    rows = tokens.cpu().numpy()
    return tokenizer.batch_decode([row[row >= 0] for row in rows], skip_special_tokens=True)


def stop_tokens(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> Tensor:
    """bool (V,): the end-of-text token and every token whose text holds a newline."""
    count = min(vocab_size, len(tokenizer))
    stops = torch.zeros(vocab_size, dtype=torch.bool)
    texts = tokenizer.batch_decode([[index] for index in range(count)])
    stops[:count] = torch.tensor(["\n" in text for text in texts])
    if tokenizer.eos_token_id is not None:
        stops[tokenizer.eos_token_id] = True
    return stops


@torch.no_grad()
def greedy(model: nn.Module, prompts: Tensor, real: Tensor, max_new_tokens: int, stops: Tensor) -> Tensor:
    """The likeliest next token, again and again.

    Args:
        model: a causal LM in evaluation mode.
        prompts: int64 (B, L), padded on the left.
        real: bool (B, L), which of them are tokens.
        max_new_tokens: at most so many.
        stops: bool (V,), tokens that end a row and are not part of it.

    Returns:
        int64 (B, max_new_tokens), -1 behind a row's end.
    """
    device = prompts.device
    result = torch.full((len(prompts), max_new_tokens), -1, device=device)
    rows = torch.arange(len(prompts), device=device)
    mask, tokens, cache = real.long(), prompts, None
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    alive = torch.ones(len(prompts), dtype=torch.bool, device=device)
    for step in range(max_new_tokens):
        last = torch.stack([torch.arange(len(rows), device=device), torch.full_like(rows, tokens.shape[1] - 1)])
        with restricted_head(model, last):
            output = model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )
        cache = output.past_key_values
        following = output.logits.argmax(-1)
        alive = alive & ~stops[following]
        result[rows[alive], step] = following[alive]
        left = int(alive.sum())
        if left == 0:
            break
        tokens, positions = following[:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        if left <= (1 - LEAVING_SHARE) * len(rows):
            keep = alive.nonzero()[:, 0]
            cache.batch_select_indices(keep)
            rows, alive, tokens, positions, mask = (
                tensor[keep] for tensor in (rows, alive, tokens, positions, mask)
            )
    return result
