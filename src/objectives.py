"""Per-sample losses of a whole batch, without gradients: the forward engine of zeroth-order training.

An objective tokenises once, keeps its micro-batches on the model's device and evaluates every sample at the
model's current parameters on each call. The language-model head runs on the scored positions only, and for
one-token candidates on the candidates' rows only. Candidates of one sample share their prompt's pass.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from src.engine.batching import Indices, MicroBatch, ScoredSequence
from src.engine.encoding import Window, joined
from src.engine.front import FrozenFront
from src.engine.generation import GenerationF1
from src.engine.layers import only_head_trained
from src.engine.objective import Objective, Samples, as_rows
from src.engine.packing import attention_window
from src.engine.scoring import BranchScorer, NextTokenScorer, Piece, Scorer, SequenceScorer, Watcher
from src.metrics import accuracy

__all__ = ["AnswerLikelihood", "CandidateScoring", "GenerationF1", "Objective"]


class _Scored(Objective):
    """An objective whose losses are a function of scores, which have derivatives."""

    _scorer: Scorer

    @property
    def recomputable(self) -> bool:
        return self._scorer.recomputable

    @property
    def front(self) -> FrozenFront:
        """What is kept of the frozen layers in front."""
        return self._scorer.front

    def pieces(self, token_budget: int, rows: Indices | None = None) -> list[Piece]:
        return self._scorer.pieces(token_budget, rows)

    def keep_front(self) -> None:
        self._pass(self._scorer.keep_front)


class CandidateScoring(_Scored):
    """Cross-entropy of the right candidate over the candidates' scores (arXiv 2605.06505, section 4).

    A candidate follows its prompt after one space; its tokens are the joined text's beyond the prompt's
    own. Its score is the mean log-probability of its tokens. Equal candidates have equal scores.

    Args:
        model: a causal LM, wrapped by peft or not.
        tokenizer: of that model.
        prompts: N texts.
        candidates: N lists of at least one continuation each.
        labels: N indices of the right candidates, which the loss aims at.
        token_budget: padded tokens in one micro-batch; None for the device's default.
        right: all indices that count as right in the accuracy, N collections; None for `labels` alone.
        separator: between prompt and candidate; "" where candidates carry their own.
        before: N texts in front of the prompts, such as demonstrations.
        window: how many tokens a sample may have; None for the model's positions, with cuts on the left.
        calibration: the same candidates behind other prompts, and the row there of each sample. Predictions, not
            losses, then compare sums of log-probabilities minus the calibration's (arXiv 2104.08315).

    Raises:
        ValueError: lengths differ, a list is empty, a label is out of range, a candidate has no token, or a
            sample does not fit the window.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[str],
        candidates: Sequence[Sequence[str]],
        labels: Sequence[int],
        *,
        token_budget: int | None = None,
        right: Sequence[Collection[int]] | None = None,
        separator: str = " ",
        before: Sequence[str] | None = None,
        window: Window | None = None,
        calibration: tuple[CandidateScoring, Sequence[int]] | None = None,
    ) -> None:
        super().__init__(model, len(prompts), token_budget)
        if not len(prompts) == len(candidates) == len(labels):
            counts = f"{len(prompts)} prompts, {len(candidates)} candidate lists, {len(labels)} labels"
            raise ValueError(f"{counts}: the numbers must be equal")
        for index, (options, label) in enumerate(zip(candidates, labels, strict=True)):
            if not 0 <= label < len(options):
                raise ValueError(f"sample {index}: label {label} is outside its {len(options)} candidates")
        window = window or Window(model, tokenizer)
        groups = joined(tokenizer, window, prompts, candidates, separator=separator, before=before)
        self.labels = torch.tensor(list(labels), dtype=torch.int64)
        self.right = [[label] for label in labels] if right is None else [sorted(found) for found in right]
        self._scorer = _scorer(model, groups, self.device)
        self._first = _first_of_equals(candidates, self._scorer.width)
        self._calibration = calibration
        self.num_tokens = self._scorer.num_tokens

    def _scores(self, rows: Indices | None = None) -> Tensor:
        """float32 (N, most candidates), -inf where a sample has fewer, on the CPU."""
        scores = self.spread(lambda some: self._pass(lambda budget: self._scorer.scores(budget, some)), rows)
        if self._first is None:
            return scores
        return scores.gather(1, self._first if rows is None else self._first[torch.from_numpy(rows)])

    def losses(self, samples: Samples | None = None) -> Tensor:
        rows = as_rows(samples)
        labels = self.labels if rows is None else self.labels[torch.from_numpy(rows)]
        return functional.cross_entropy(self._scores(rows), labels, reduction="none")

    def piece_losses(self, piece: Piece, watcher: Watcher) -> Tensor:
        labels = self.labels[piece.samples.cpu()].to(self.device)
        return functional.cross_entropy(self._scorer.piece_scores(piece, watcher), labels, reduction="none")

    def micro_batches(self) -> list[MicroBatch]:
        """What goes through the model together in a pass over all samples; prompts where candidates share them."""
        return self._scorer.micro_batches(self.token_budget)

    def sums(self, scores: Tensor) -> Tensor:
        """`scores`, (N, most candidates), as sums over tokens; up to a constant a sample if all have one."""
        return torch.where(scores.isinf(), scores, scores * self._scorer.scored_tokens.cpu())

    def predictions(self) -> Tensor:
        """int64 (N,), the best-scored candidate of each sample, the first among equals."""
        return self._best(self._scores())

    def _best(self, scores: Tensor) -> Tensor:
        if self._calibration is not None:
            other, rows = self._calibration
            known = other.sums(other._scores())[list(rows)]
            scores = torch.where(scores.isinf(), scores, self.sums(scores) - known)
        return scores.argmax(dim=1)

    def metrics(self) -> dict[str, float]:
        scores = self._scores()
        loss = functional.cross_entropy(scores, self.labels)
        return {"loss": float(loss), "accuracy": accuracy(self._best(scores), self.right)}


class AnswerLikelihood(_Scored):
    """Mean negative log-likelihood of the answer's tokens after its prompt and one space.

    Args:
        model, tokenizer, prompts, token_budget, separator, window: as for `CandidateScoring`.
        answers: N texts.
        whole: take the mean over all tokens of prompt and answer but the first.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[str],
        answers: Sequence[str],
        *,
        token_budget: int | None = None,
        separator: str = " ",
        window: Window | None = None,
        whole: bool = False,
    ) -> None:
        super().__init__(model, len(prompts), token_budget)
        if len(prompts) != len(answers):
            raise ValueError(f"{len(prompts)} prompts, {len(answers)} answers: the numbers must be equal")
        window = window or Window(model, tokenizer)
        groups = joined(tokenizer, window, prompts, [[answer] for answer in answers], separator=separator)
        if whole:
            groups = [[ScoredSequence(sequence.ids, 1) for sequence in group] for group in groups]
        self._scorer = SequenceScorer(model, groups, self.device)
        self.num_tokens = self._scorer.num_tokens

    def micro_batches(self) -> list[MicroBatch]:
        """What goes through the model together in a pass over all samples."""
        return self._scorer.micro_batches(self.token_budget)

    def losses(self, samples: Samples | None = None) -> Tensor:
        return -self.spread(
            lambda some: self._pass(lambda budget: self._scorer.scores(budget, some))[:, 0], as_rows(samples)
        )

    def piece_losses(self, piece: Piece, watcher: Watcher) -> Tensor:
        return -self._scorer.piece_scores(piece, watcher)[:, 0]


def _scorer(model: nn.Module, groups: Sequence[Sequence[ScoredSequence]], device: torch.device) -> Scorer:
    """The cheapest scorer that fits all samples."""
    if not all(_share_prompt(group) for group in groups):
        return SequenceScorer(model, groups, device)
    if all(len(s.ids) == s.start + 1 for group in groups for s in group):
        return NextTokenScorer(model, groups, device)
    # A window counts what pads a shorter prompt's cache; and candidates as whole sequences have states that can be
    # kept where only the head is trained.
    window = attention_window(model)
    prompt, tail = (
        max(length(s) for group in groups for s in group)
        for length in (lambda s: s.start, lambda s: len(s.ids) - s.start)
    )
    whole = only_head_trained(model) or (window is not None and window < prompt + tail)
    return (SequenceScorer if whole else BranchScorer)(model, groups, device)


def _share_prompt(group: Sequence[ScoredSequence]) -> bool:
    """Whether the candidates follow the very same tokens, so that one pass over those serves them all."""
    context = group[0].ids[: group[0].start]
    return all(s.ids[: s.start] == context for s in group)


def _first_of_equals(candidates: Sequence[Sequence[str]], width: int) -> Tensor | None:
    """int64 (N, width): for each candidate the first one with its text; None where all texts differ.

    Rounding may give equal candidates of a micro-batch different scores, and the first of them is the right one.
    """
    if all(len(set(options)) == len(options) for options in candidates):
        return None
    first = torch.arange(width).repeat(len(candidates), 1)
    for row, options in enumerate(candidates):
        first[row, : len(options)] = torch.tensor([options.index(option) for option in options])
    return first
