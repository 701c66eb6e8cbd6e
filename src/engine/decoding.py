"""Greedy generation of many short answers from prompts of different lengths.

Prompts that begin alike, as questions about one paragraph or behind one system prompt do, share the pass over what
they have in common. Batches are of rows of like length and as large as the budget allows, since each takes as many
steps as its longest answer; rows that are done leave early.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from src.engine.batching import Indices, TokenTable, even_cuts
from src.engine.head import restricted_head
from src.engine.packing import attention_window

# Rows that are done leave a batch together once they are this share of it: leaving copies the others' cache.
LEAVING_SHARE = 0.1
# Prompts share a pass where at least so many tokens are the same, and a group shrinks by at most this share.
LEAST_SHARED, KEPT_SHARE = 16, 0.8


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
    """Greedy continuations: int64 (rows, max_new_tokens), -1 behind a row's end.

    Args:
        model: a causal LM in evaluation mode.
        rows: which of the prompts, in the order of the result.
        stops: bool (V,), tokens that end a row and are not part of it.
        token_budget: prompt and new tokens of a batch, about.
    """
    lengths = prompts.lengths[rows]
    groups, shared = shared_beginnings(prompts.ids[rows], lengths)
    window = attention_window(model)
    if window is not None and window < 2 * int(lengths.max()) + max_new_tokens:
        groups, shared = np.arange(len(rows)), np.zeros(len(rows), dtype=np.int64)
    longest = np.zeros(len(rows), dtype=np.int64)
    np.maximum.at(longest, groups, lengths)
    order = np.lexsort((lengths, groups, longest[groups]))
    result = torch.full((len(rows), max_new_tokens), -1, device=prompts.device)
    for begin, end in itertools.pairwise(even_cuts(lengths[order] + max_new_tokens, token_budget)):
        places = order[begin:end]
        put = torch.from_numpy(places).to(prompts.device)
        batch = _Batch(prompts, rows[places], groups[places], shared[places])
        result[put] = batch.continued(model, max_new_tokens, stops)
    return result


def shared_beginnings(ids: Indices, lengths: Indices) -> tuple[Indices, Indices]:
    """Groups of rows that begin alike.

    Args:
        ids: int64 (B, L), padded on the right.
        lengths: int64 (B,), tokens of each row.

    Returns:
        int64 (B,), the group of each row, and int64 (B,), how many first tokens it shares with its group: fewer
        than it has, 0 for a row on its own.
    """
    order = np.lexsort(ids.T[::-1])
    groups, shared = np.empty(len(ids), dtype=np.int64), np.zeros(len(ids), dtype=np.int64)
    first, common = 0, 0
    for place in range(1, len(order) + 1):
        alike = 0
        if place < len(order):
            before, here = order[place - 1], order[place]
            differs = np.append(ids[before] != ids[here], True)
            alike = min(int(differs.argmax()), int(lengths[before]) - 1, int(lengths[here]) - 1)
        if alike >= LEAST_SHARED and alike >= KEPT_SHARE * common:
            common = alike if place - first == 1 else min(common, alike)
            continue
        members = order[first:place]
        groups[members], shared[members] = first, common if len(members) > 1 else 0
        first, common = place, 0
    return groups, shared


class _Batch:
    """Prompts as what they share with others of their group, once a group, and the rest of each."""

    def __init__(self, prompts: TokenTable, rows: Indices, groups: Indices, shared: Indices) -> None:
        ids, lengths = prompts.ids[rows], prompts.lengths[rows]
        _, firsts, owners, counts = np.unique(groups, return_index=True, return_inverse=True, return_counts=True)
        if not np.any((counts[owners] > 1) & (shared > 0)):
            shared = np.zeros_like(shared)
        else:  # a row on its own keeps one token for the second pass, which is as wide as the longest rest
            shared = np.where(shared > 0, shared, lengths - 1)
        device = prompts.device
        self.shared = torch.from_numpy(shared).to(device)
        self.owners = torch.from_numpy(owners).to(device)
        none = np.zeros(len(firsts), dtype=np.int64)
        self.beginnings, self.beginnings_real = _left_padded(ids[firsts], none, shared[firsts], device)
        self.rests, self.rests_real = _left_padded(ids, shared, lengths, device)

    def continued(self, model: nn.Module, max_new_tokens: int, stops: Tensor) -> Tensor:
        """int64 (B, max_new_tokens): the likeliest next token, again and again; -1 behind a row's end."""
        mask, cache = self.rests_real.long(), None
        positions = self.shared[:, None] + mask.cumsum(1) - 1
        if self.beginnings.shape[1]:
            cache = self._begin(model)
            mask = torch.cat([self.beginnings_real[self.owners].long(), mask], dim=1)
        return _greedy(model, self.rests, mask, positions.clamp(min=0), cache, max_new_tokens, stops)

    def _begin(self, model: nn.Module) -> Any:
        """Keys and values of the shared beginnings, repeated for the rows that have them."""
        mask = self.beginnings_real.long()
        nothing = torch.zeros(2, 0, dtype=torch.int64, device=mask.device)
        with restricted_head(model, nothing):
            output = model(
                input_ids=self.beginnings,
                attention_mask=mask,
                position_ids=(mask.cumsum(1) - 1).clamp(min=0),
                use_cache=True,
            )
        output.past_key_values.batch_select_indices(self.owners)
        return output.past_key_values


def _left_padded(ids: Indices, begins: Indices, ends: Indices, device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens begin..end of each row, int64 (B, L) padded on the left, and bool (B, L): what is a token."""
    counts = ends - begins
    width = int(counts.max())
    padded = np.zeros((len(ids), width), dtype=np.int64)
    real: NDArray[np.bool_] = np.arange(width) >= width - counts[:, None]
    columns = np.arange(ids.shape[1])
    padded[real] = ids[(columns >= begins[:, None]) & (columns < ends[:, None])]
    return torch.from_numpy(padded).to(device), torch.from_numpy(real).to(device)


def _greedy(
    model: nn.Module,
    tokens: Tensor,
    mask: Tensor,
    positions: Tensor,
    cache: Any,
    max_new_tokens: int,
    stops: Tensor,
) -> Tensor:
    """int64 (B, max_new_tokens), -1 behind a row's end.

    Args:
        tokens, positions: int64 (B, L), what comes first, padded on the left.
        mask: int64 (B, C + L), 1 where a token is, of the C in the cache too.
        cache: of the library, or None.
    """
    device = tokens.device
    result = torch.full((len(tokens), max_new_tokens), -1, device=device)
    rows = torch.arange(len(tokens), device=device)
    alive = torch.ones(len(tokens), dtype=torch.bool, device=device)
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
