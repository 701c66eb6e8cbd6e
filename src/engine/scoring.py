"""Scores of every candidate of every sample: the passes behind the objectives, micro-batch by micro-batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from src.engine.batching import Indices, MicroBatch, ScoredSequence, TokenTable
from src.engine.heads import KeptStates, RowsHead, candidate_logits
from src.engine.packing import can_pack, packed

# Logits over the whole vocabulary that are held at once, in float32.
MOST_LOGITS = 1 << 27

Groups = Sequence[Sequence[ScoredSequence]]


class Scorer:
    """Scores the candidates of N samples at the model's current parameters.

    Args:
        model: a causal LM.
        groups: for each sample its candidates.
        device: of the model.
    """

    table: TokenTable
    packable = True

    def __init__(self, model: nn.Module, groups: Groups, device: torch.device) -> None:
        self.model = model
        self.device = device
        self.width = max(len(group) for group in groups)
        counts = np.array([len(group) for group in groups])
        self.present = torch.from_numpy(np.arange(self.width) < counts[:, None]).to(device)
        self._packs = self.packable and can_pack(model, max(len(s.ids) for group in groups for s in group))
        self._plan: tuple[tuple[int, bytes | None], list[Any]] | None = None
        self._logits = KeptStates(model, scored_logits)

    @property
    def num_tokens(self) -> int:
        return self.table.num_tokens

    def scores(self, token_budget: int, rows: Indices | None = None) -> Tensor:
        """float32 (samples, most candidates) on the model's device, -inf where a sample has fewer.

        `rows` are the samples, None for all N. The last call's micro-batches are kept for the next one.
        """
        key = (token_budget, None if rows is None else rows.tobytes())
        if self._plan is None or self._plan[0] != key:
            self._plan = (key, self._make_plan(token_budget, rows))
        return self._scores(self._plan[1], rows)

    def _make_plan(self, token_budget: int, rows: Indices | None) -> list[Any]:
        return self.micro_batches(token_budget, rows)

    def micro_batches(self, token_budget: int, rows: Indices | None = None) -> list[MicroBatch]:
        """What goes through the model together: packed where the model allows it."""
        return self.table.micro_batches(token_budget, rows, packed=self._packs)

    def _scores(self, plan: list[Any], rows: Indices | None) -> Tensor:
        raise NotImplementedError


class NextTokenScorer(Scorer):
    """Scores of one-token candidates that share their prompt's pass.

    The scores are logits at the prompt's last position. They differ from log-probabilities by one constant
    a sample, which cancels in the cross-entropy over the candidates, so the head needs no other row.
    """

    def __init__(self, model: nn.Module, groups: Groups, device: torch.device) -> None:
        super().__init__(model, groups, device)
        self.table = TokenTable([group[0] for group in groups], device, drop_last=True)
        tokens = sorted({s.ids[-1] for group in groups for s in group})
        column = {token: index for index, token in enumerate(tokens)}
        self.vocabulary = torch.tensor(tokens, device=device)
        filled = [[column[s.ids[-1]] for s in g] + [0] * (self.width - len(g)) for g in groups]
        self.columns = torch.tensor(filled, device=device)

    @torch.no_grad()
    def _scores(self, plan: list[MicroBatch], rows: Indices | None) -> Tensor:
        logits = torch.empty(len(self.columns), len(self.vocabulary), device=self.device)
        for batch in plan:
            logits[batch.rows] = self._logits(batch, self.vocabulary).float()
        scores = logits.gather(1, self.columns).masked_fill(~self.present, float("-inf"))
        return scores if rows is None else scores[torch.from_numpy(rows).to(self.device)]


class SequenceScorer(Scorer):
    """Mean log-probability of each candidate's tokens; every candidate is a sequence of its own."""

    def __init__(self, model: nn.Module, groups: Groups, device: torch.device) -> None:
        super().__init__(model, groups, device)
        flat = [sequence for group in groups for sequence in group]
        self.table = TokenTable(flat, device)
        self.owner = np.repeat(np.arange(len(groups)), [len(group) for group in groups])
        lengths = [float(len(s.ids) - s.start) for s in flat]
        self.lengths = torch.tensor(lengths, device=device)
        # As many tokens as are scored, on average, in MOST_LOGITS logits.
        vocabulary = int(getattr(getattr(model, "config", None), "vocab_size", 1))
        self._most_tokens = max(1, int(MOST_LOGITS / vocabulary * self.num_tokens / sum(lengths)))

    def _make_plan(self, token_budget: int, rows: Indices | None) -> list[MicroBatch]:
        token_budget = min(token_budget, self._most_tokens)
        chosen = None if rows is None else np.flatnonzero(np.isin(self.owner, rows))
        return self.micro_batches(token_budget, chosen)

    @torch.no_grad()
    def _scores(self, plan: list[MicroBatch], rows: Indices | None) -> Tensor:
        totals = torch.zeros_like(self.lengths)
        for batch in plan:
            logits = self._logits(batch)
            totals.index_add_(0, batch.owners, token_log_probs(logits, batch.targets))
        scores = torch.full(self.present.shape, float("-inf"), device=self.device)
        scores.masked_scatter_(self.present, totals / self.lengths)
        return scores if rows is None else scores[torch.from_numpy(rows).to(self.device)]


class BranchScorer(Scorer):
    """Mean log-probability of candidates of several tokens that branch from one pass over their prompt.

    The prompt's keys and values are computed once a sample and repeated for its candidates.
    """

    packable = False  # the cache needs a row a sample

    def __init__(self, model: nn.Module, groups: Groups, device: torch.device) -> None:
        super().__init__(model, groups, device)
        # A prompt alone: its last state scores the candidates' first tokens.
        prompts = [ScoredSequence([*g[0].ids[: g[0].start], 0], g[0].start) for g in groups]
        self.table = TokenTable(prompts, device, drop_last=True)
        longest = max(len(s.ids) - s.start for group in groups for s in group)
        self.tails = np.zeros((len(groups), self.width, longest), dtype=np.int64)
        self.tail_lengths = np.zeros((len(groups), self.width), dtype=np.int64)
        for row, group in enumerate(groups):
            for column, sequence in enumerate(group):
                tail = sequence.ids[sequence.start :]
                self.tails[row, column, : len(tail)] = tail
                self.tail_lengths[row, column] = len(tail)
        self._num_tokens = self.table.num_tokens + int(np.maximum(self.tail_lengths - 1, 0).sum())

    @property
    def num_tokens(self) -> int:
        return self._num_tokens

    def _make_plan(self, token_budget: int, rows: Indices | None) -> list[tuple[MicroBatch, Tensor, Tensor]]:
        # Candidates' copies of the prompt's keys and values count towards the budget.
        share = max(1, token_budget // self.width)
        plan = []
        for batch in self.micro_batches(share, rows):
            chosen = batch.rows.cpu().numpy()
            tails = torch.from_numpy(self.tails[chosen]).to(self.device)
            plan.append((batch, tails, torch.from_numpy(self.tail_lengths[chosen]).to(self.device)))
        return plan

    @torch.no_grad()
    def _scores(self, plan: list[tuple[MicroBatch, Tensor, Tensor]], rows: Indices | None) -> Tensor:
        scores = torch.full(self.present.shape, float("-inf"), device=self.device)
        for batch, tails, tail_lengths in plan:
            scores[batch.rows] = self._branch(batch, tails, tail_lengths)
        return scores if rows is None else scores[torch.from_numpy(rows).to(self.device)]

    def _branch(self, batch: MicroBatch, tails: Tensor, tail_lengths: Tensor) -> Tensor:
        """Scores (B, most candidates): the prompts' pass, then one over all candidates but their last tokens."""
        samples, width, longest = tails.shape
        with restricted_head(self.model, batch.positions):
            output = self.model(input_ids=batch.input_ids, use_cache=True)
        first = output.logits.float().log_softmax(-1)
        totals = first.gather(1, tails[:, :, 0])
        if longest > 1:
            cache = output.past_key_values
            cache.batch_repeat_interleave(width)
            lengths = batch.lengths.repeat_interleave(width)
            flat = tails.flatten(0, 1)
            prompt_mask = torch.arange(batch.input_ids.shape[1], device=self.device) < lengths[:, None]
            steps = torch.arange(longest - 1, device=self.device)
            tail_mask = torch.ones(len(flat), longest - 1, dtype=torch.bool, device=self.device)
            logits = self.model(
                input_ids=flat[:, :-1],
                attention_mask=torch.cat([prompt_mask, tail_mask], dim=1).long(),
                position_ids=lengths[:, None] + steps,
                past_key_values=cache,
                use_cache=True,
            ).logits
            token_scores = token_log_probs(logits.flatten(0, 1), flat[:, 1:].flatten()).view(len(flat), -1)
            real = steps + 1 < tail_lengths.flatten()[:, None]
            totals = totals + (token_scores * real).sum(1).view(samples, width)
        return (totals / tail_lengths).masked_fill(tail_lengths == 0, float("-inf"))


def token_log_probs(logits: Tensor, targets: Tensor) -> Tensor:
    """float32 (P,): log-probabilities of `targets` (P,) under `logits` (P, V)."""
    return -functional.cross_entropy(logits.float(), targets, reduction="none")


def scored_logits(model: nn.Module, batch: MicroBatch, vocabulary: Tensor | None = None) -> Tensor:
    """Logits (P, V) at the scored positions, in the model's dtype; V counts `vocabulary` where given.

    The model's own forward runs, so whatever it does after its head (scaling, soft caps) is done here too.
    """
    layout = batch.layout
    with restricted_head(model, batch.positions, vocabulary):
        if layout is None:
            return model(input_ids=batch.input_ids, use_cache=False).logits
        with packed(model, layout):
            return model(input_ids=batch.input_ids, position_ids=layout.position_ids, use_cache=False).logits


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
