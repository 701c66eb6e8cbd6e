"""Scores of every candidate of every sample: the passes behind the objectives, micro-batch by micro-batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from src.engine.batching import (
    Indices,
    MicroBatch,
    ScoredSequence,
    TokenTable,
    even_cuts,
    launch_tokens,
    partition,
)
from src.engine.front import FrozenFront
from src.engine.head import restricted_head, scored_logits, token_log_probs
from src.engine.packing import can_pack
from src.engine.segments import Segments, spans_of, wide

# Logits over the whole vocabulary that are held at once, in float32.
MOST_LOGITS = 1 << 27

Groups = Sequence[Sequence[ScoredSequence]]


class Watcher(Protocol):
    """Whoever wants to know, before each forward call, whose its tokens and its scored states are."""

    def announce(self, trunk: Segments, scored: Segments, vocabulary: Tensor | None = None) -> None: ...


@dataclass(frozen=True)
class Piece:
    """Whole samples that go through the model together.

    Attributes:
        samples: int64 (n,), which they are.
        batch: the scorer's own.
    """

    samples: Tensor
    batch: Any


class Scorer:
    """Scores the candidates of N samples at the model's current parameters.

    Args:
        model: a causal LM.
        groups: for each sample its candidates.
        device: of the model.
    """

    table: TokenTable
    packable = True
    recomputable = True  # whether a pass may run its layers a second time on the way back

    def __init__(self, model: nn.Module, groups: Groups, device: torch.device) -> None:
        self.model = model
        self.device = device
        self.width = max(len(group) for group in groups)
        tokens = np.zeros((len(groups), self.width), dtype=np.int64)
        for row, group in enumerate(groups):
            tokens[row, : len(group)] = [len(s.ids) - s.start for s in group]
        # int64 (samples, most candidates): scored tokens of each candidate, 0 where there is none.
        self.scored_tokens = torch.from_numpy(tokens).to(device)
        self.present = self.scored_tokens > 0
        self._packs = self.packable and can_pack(model, max(len(s.ids) for group in groups for s in group))
        self.front = FrozenFront(model)
        self._kept_front = False
        self._plans: dict[str, tuple[tuple[int, bytes | None], list[Any]]] = {}

    @property
    def num_tokens(self) -> int:
        return self.table.num_tokens

    def scores(self, token_budget: int, rows: Indices | None = None) -> Tensor:
        """float32 (samples, most candidates) on the model's device, -inf where a sample has fewer.

        `rows` are the samples, None for all N. The last call's micro-batches are kept for the next one.
        """
        return self._scores(self._planned("scores", self._make_plan, token_budget, rows), rows)

    def keep_front(self, token_budget: int) -> None:
        """One pass over all samples, behind whose frozen layers passes over any of them begin from now on."""
        if self.front.depth and not self._kept_front:
            self.scores(token_budget)
            self.front.keep_sequences(self._plans.pop("scores")[1])
            self._kept_front = True

    def _planned(
        self, kind: str, make: Callable[[int, Indices | None], list[Any]], token_budget: int, rows: Indices | None
    ) -> list[Any]:
        """`make(token_budget, rows)`, or what it gave the last time where that was asked for."""
        key = (token_budget, None if rows is None else rows.tobytes())
        if kind not in self._plans or self._plans[kind][0] != key:
            self._plans[kind] = (key, make(token_budget, rows))
        return self._plans[kind][1]

    def _make_plan(self, token_budget: int, rows: Indices | None) -> list[Any]:
        return self.micro_batches(token_budget, rows)

    def micro_batches(self, token_budget: int, rows: Indices | None = None) -> list[MicroBatch]:
        """What goes through the model together: packed where the model allows it."""
        least = launch_tokens(self.model, self.device)
        return self.table.micro_batches(token_budget, rows, packed=self._packs, least=least)

    def _scores(self, plan: list[Any], rows: Indices | None) -> Tensor:
        raise NotImplementedError

    def pieces(self, token_budget: int, rows: Indices | None = None) -> list[Piece]:
        """The samples in pieces of at most `token_budget` tokens, or of one sample; kept likewise."""
        return self._planned("pieces", self._make_pieces, token_budget, rows)

    def _make_pieces(self, token_budget: int, rows: Indices | None) -> list[Piece]:
        return [Piece(batch.rows, batch) for batch in self.micro_batches(token_budget, rows)]

    def piece_scores(self, piece: Piece, watcher: Watcher | None = None) -> Tensor:
        """float32 (n, most candidates) of a piece's samples, with gradients where those are switched on."""
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
        scores = torch.empty(self.present.shape, device=self.device)
        for batch in plan:
            scores[batch.rows] = self.piece_scores(Piece(batch.rows, batch)).float()
        return scores if rows is None else scores[torch.from_numpy(rows).to(self.device)]

    def piece_scores(self, piece: Piece, watcher: Watcher | None = None) -> Tensor:
        if watcher is not None:
            trunk, scored = piece.batch.segments(piece.samples)
            watcher.announce(trunk, scored, self.vocabulary)
        logits = wide(scored_logits(self.model, piece.batch, self.vocabulary, self.front))
        scores = logits.gather(1, self.columns[piece.samples])
        return scores.masked_fill(~self.present[piece.samples], float("-inf"))


class SequenceScorer(Scorer):
    """Mean log-probability of each candidate's tokens; every candidate is a sequence of its own."""

    def __init__(self, model: nn.Module, groups: Groups, device: torch.device) -> None:
        super().__init__(model, groups, device)
        flat = [sequence for group in groups for sequence in group]
        self.table = TokenTable(flat, device)
        counts = np.array([len(group) for group in groups])
        self.owner = np.repeat(np.arange(len(groups)), counts)
        present = self.present.cpu().numpy()
        members = np.where(present, (np.cumsum(counts) - counts)[:, None] + np.arange(self.width), 0)
        self._members = torch.from_numpy(members).to(device)  # each sample's sequences, 0 where there is none
        self.lengths = self.scored_tokens[self.present].float()
        self._most_tokens = tokens_for_logits(model, self.num_tokens, int(self.scored_tokens.sum()))

    def _make_plan(self, token_budget: int, rows: Indices | None) -> list[MicroBatch]:
        token_budget = min(token_budget, self._most_tokens)
        chosen = None if rows is None else np.flatnonzero(np.isin(self.owner, rows))
        return self.micro_batches(token_budget, chosen)

    @torch.no_grad()
    def _scores(self, plan: list[MicroBatch], rows: Indices | None) -> Tensor:
        totals = torch.zeros_like(self.lengths)
        for batch in plan:
            logits = scored_logits(self.model, batch, front=self.front)
            totals.index_add_(0, batch.owners, token_log_probs(logits, batch.targets).float())
        chosen = slice(None) if rows is None else torch.from_numpy(rows).to(self.device)
        return self._table(totals, chosen)

    def _table(self, totals: Tensor, samples: Tensor | slice) -> Tensor:
        """Scores (n, most candidates) of samples, of the summed log-probabilities of all sequences."""
        scores = (totals / self.lengths)[self._members[samples]]
        return scores.masked_fill(~self.present[samples], float("-inf"))

    def _make_pieces(self, token_budget: int, rows: Indices | None) -> list[Piece]:
        """A sample's candidates stay together: its loss needs the scores of all."""
        if self._packs:
            tokens = np.bincount(self.owner, self.table.lengths).astype(np.int64)
        else:  # each is padded to the longest
            tokens = np.zeros(len(self.present), dtype=np.int64)
            np.maximum.at(tokens, self.owner, self.table.lengths)
            tokens *= self.width
        chosen = np.arange(len(tokens)) if rows is None else rows
        chosen = chosen[np.argsort(tokens[chosen], kind="stable")]
        budget, least = min(token_budget, self._most_tokens), launch_tokens(self.model, self.device)
        sizes = tokens[chosen]
        cuts = even_cuts(sizes, budget) if self._packs else partition(sizes, budget, least)
        found = []
        for begin, end in itertools.pairwise(cuts):
            samples = chosen[begin:end]
            members = np.flatnonzero(np.isin(self.owner, samples))
            batch = self.table.cut(members[np.argsort(self.table.lengths[members], kind="stable")], self._packs)
            found.append(Piece(torch.from_numpy(samples).to(self.device), batch))
        return found

    def piece_scores(self, piece: Piece, watcher: Watcher | None = None) -> Tensor:
        batch = piece.batch
        if watcher is not None:
            watcher.announce(*batch.segments(piece.samples, self.owner))
        tokens = token_log_probs(scored_logits(self.model, batch, front=self.front), batch.targets)
        totals = tokens.new_zeros(len(self.lengths)).index_add(0, batch.owners, tokens)
        return self._table(totals, piece.samples)


class BranchScorer(Scorer):
    """Mean log-probability of candidates of several tokens that branch from one pass over their prompt.

    The prompt's keys and values are computed once a sample and repeated for its candidates.
    """

    packable = False  # the cache needs a row a sample
    recomputable = False  # and is another one by then

    def keep_front(self, token_budget: int) -> None:
        """Does nothing: its passes keep no front."""

    def __init__(self, model: nn.Module, groups: Groups, device: torch.device) -> None:
        super().__init__(model, groups, device)
        # A prompt alone: its last state scores the candidates' first tokens.
        prompts = [ScoredSequence([*g[0].ids[: g[0].start], 0], g[0].start) for g in groups]
        self.table = TokenTable(prompts, device, drop_last=True)
        self.tail_lengths = self.scored_tokens.cpu().numpy()
        self.tails = np.zeros((*self.tail_lengths.shape, self.tail_lengths.max()), dtype=np.int64)
        for row, group in enumerate(groups):
            for column, sequence in enumerate(group):
                self.tails[row, column, : len(sequence.ids) - sequence.start] = sequence.ids[sequence.start :]
        self._num_tokens = self.table.num_tokens + int(np.maximum(self.tail_lengths - 1, 0).sum())
        self._most_tokens = tokens_for_logits(model, self.table.num_tokens, int(self.tail_lengths.sum()))

    @property
    def num_tokens(self) -> int:
        return self._num_tokens

    def _make_plan(self, token_budget: int, rows: Indices | None) -> list[tuple[MicroBatch, Tensor, Tensor]]:
        """Micro-batches of prompts, each with tails (B, most candidates, longest) and their lengths."""
        # Candidates' copies of the prompt's keys and values count towards the budget.
        share = max(1, min(token_budget // self.width, self._most_tokens))
        plan = []
        for batch in self.micro_batches(share, rows):
            chosen = batch.rows.cpu().numpy()
            lengths = self.tail_lengths[chosen]
            width, longest = int((lengths > 0).sum(1).max()), int(lengths.max())
            tails = torch.from_numpy(self.tails[chosen, :width, :longest]).to(self.device)
            plan.append((batch, tails, torch.from_numpy(lengths[:, :width]).to(self.device)))
        return plan

    @torch.no_grad()
    def _scores(self, plan: list[tuple[MicroBatch, Tensor, Tensor]], rows: Indices | None) -> Tensor:
        scores = torch.full(self.present.shape, float("-inf"), device=self.device)
        for batch, *tails in plan:
            found = self.piece_scores(Piece(batch.rows, (batch, *tails)))
            scores[batch.rows, : found.shape[1]] = found.float()
        return scores if rows is None else scores[torch.from_numpy(rows).to(self.device)]

    def _make_pieces(self, token_budget: int, rows: Indices | None) -> list[Piece]:
        return [Piece(parts[0].rows, parts) for parts in self._make_plan(token_budget, rows)]

    def piece_scores(self, piece: Piece, watcher: Watcher | None = None) -> Tensor:
        """The prompts' pass, then one over all candidates but their last tokens."""
        batch, tails, tail_lengths = piece.batch
        samples, width, longest = tails.shape
        slots = torch.arange(samples, device=self.device)
        if watcher is not None:
            watcher.announce(*batch.segments(piece.samples))
        with restricted_head(self.model, batch.positions):
            output = self.model(input_ids=batch.input_ids, use_cache=True)
        first = wide(output.logits).log_softmax(-1)
        totals = first.gather(1, tails[:, :, 0])
        if longest > 1:
            cache = output.past_key_values
            cache.batch_repeat_interleave(width)
            lengths = batch.lengths.repeat_interleave(width)
            flat = tails.flatten(0, 1)
            prompt_mask = torch.arange(batch.input_ids.shape[1], device=self.device) < lengths[:, None]
            steps = torch.arange(longest - 1, device=self.device)
            tail_mask = torch.ones(len(flat), longest - 1, dtype=torch.bool, device=self.device)
            rows, columns = (steps + 1 < tail_lengths.flatten()[:, None]).nonzero().T
            if watcher is not None:
                of_tail = slots.repeat_interleave(width)
                tails_with, counts = torch.unique_consecutive(rows, return_counts=True)
                scored = Segments(spans_of(counts.cpu().numpy()), of_tail[tails_with], samples)
                watcher.announce(Segments.rows(flat[:, :-1].shape, of_tail, samples), scored)
            with restricted_head(self.model, torch.stack([rows, columns])):
                logits = self.model(
                    input_ids=flat[:, :-1],
                    attention_mask=torch.cat([prompt_mask, tail_mask], dim=1).long(),
                    position_ids=lengths[:, None] + steps,
                    past_key_values=cache,
                    use_cache=True,
                ).logits
            following = totals.new_zeros(len(flat), longest - 1)
            following[rows, columns] = token_log_probs(logits, flat[rows, columns + 1])
            totals = totals + following.sum(1).view(samples, width)
        return (totals / tail_lengths.clamp(min=1)).masked_fill(tail_lengths == 0, float("-inf"))


def tokens_for_logits(model: nn.Module, tokens: int, scored: int) -> int:
    """Tokens whose scored ones, on average `scored` of `tokens`, have `MOST_LOGITS` logits together."""
    vocabulary = int(getattr(getattr(model, "config", None), "vocab_size", 1))
    return max(1, int(MOST_LOGITS / vocabulary * tokens / scored))
