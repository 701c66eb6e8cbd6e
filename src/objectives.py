"""Per-sample losses of a whole batch, without gradients: the forward engine of zeroth-order training.

An objective tokenises once, keeps its micro-batches on the model's device and evaluates every sample at the
model's current parameters on each call. The language-model head runs on the scored positions only, and for
one-token candidates on the candidates' rows only. Candidates of one sample share their prompt's pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from src.engine.batching import Indices, MicroBatch, ScoredSequence
from src.engine.generation import GenerationF1
from src.engine.layers import only_head_trained
from src.engine.objective import Objective, Samples, as_rows
from src.engine.scoring import BranchScorer, NextTokenScorer, Piece, Scorer, SequenceScorer, Watcher
from src.utils import encode

__all__ = ["AnswerLikelihood", "CandidateScoring", "GenerationF1", "Objective"]


class CandidateScoring(Objective):
    """Cross-entropy of the right candidate over the candidates' scores (arXiv 2605.06505, section 4).

    A candidate follows its prompt after one space; its tokens are the joined text's beyond the prompt's
    own. Its score is the mean log-probability of its tokens.

    Args:
        model: a causal LM, wrapped by peft or not.
        tokenizer: of that model.
        prompts: N texts.
        candidates: N lists of at least one continuation each.
        labels: N indices of the right candidates.
        token_budget: padded tokens in one micro-batch; None for the device's default.

    Raises:
        ValueError: lengths differ, a list is empty, a label is out of range, a candidate has no token, or a
            sample is longer than the model's positions.
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
    ) -> None:
        super().__init__(model, len(prompts), token_budget)
        if not len(prompts) == len(candidates) == len(labels):
            counts = f"{len(prompts)} prompts, {len(candidates)} candidate lists, {len(labels)} labels"
            raise ValueError(f"{counts}: the numbers must be equal")
        for index, (options, label) in enumerate(zip(candidates, labels, strict=True)):
            if not 0 <= label < len(options):
                raise ValueError(f"sample {index}: label {label} is outside its {len(options)} candidates")
        groups = joined(model, tokenizer, prompts, candidates)
        self.labels = torch.tensor(list(labels), dtype=torch.int64)
        kind: type[Scorer] = SequenceScorer
        if all(_share_prompt(group) for group in groups):
            one_token = all(len(s.ids) == s.start + 1 for group in groups for s in group)
            # Candidates as whole sequences have states that can be kept where only the head is trained.
            several = SequenceScorer if only_head_trained(model) else BranchScorer
            kind = NextTokenScorer if one_token else several
        self._scorer = kind(model, groups, self.device)
        self.num_tokens = self._scorer.num_tokens

    def _scores(self, rows: Indices | None = None) -> Tensor:
        """float32 (N, most candidates), -inf where a sample has fewer, on the CPU."""
        return self._spread(lambda some: self._pass(lambda budget: self._scorer.scores(budget, some)), rows)

    def losses(self, samples: Samples | None = None) -> Tensor:
        rows = as_rows(samples)
        labels = self.labels if rows is None else self.labels[torch.from_numpy(rows)]
        return functional.cross_entropy(self._scores(rows), labels, reduction="none")

    @property
    def recomputable(self) -> bool:
        return self._scorer.recomputable

    def pieces(self, token_budget: int, rows: Indices | None = None) -> list[Piece]:
        return self._scorer.pieces(token_budget, rows)

    def piece_losses(self, piece: Piece, watcher: Watcher) -> Tensor:
        labels = self.labels[piece.samples.cpu()].to(self.device)
        return functional.cross_entropy(self._scorer.piece_scores(piece, watcher), labels, reduction="none")

    def micro_batches(self) -> list[MicroBatch]:
        """What goes through the model together in a pass over all samples; prompts where candidates share them."""
        return self._scorer.micro_batches(self.token_budget)

    def predictions(self) -> Tensor:
        """int64 (N,), the best-scored candidate of each sample, the first among equals."""
        return self._scores().argmax(dim=1)

    def metrics(self) -> dict[str, float]:
        scores = self._scores()
        loss = functional.cross_entropy(scores, self.labels)
        hits = scores.argmax(dim=1) == self.labels
        return {"loss": float(loss), "accuracy": float(hits.float().mean())}


class AnswerLikelihood(Objective):
    """Mean negative log-likelihood of the answer's tokens after its prompt and one space.

    Args:
        model, tokenizer, prompts, token_budget: as for `CandidateScoring`.
        answers: N texts.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[str],
        answers: Sequence[str],
        *,
        token_budget: int | None = None,
    ) -> None:
        super().__init__(model, len(prompts), token_budget)
        if len(prompts) != len(answers):
            raise ValueError(f"{len(prompts)} prompts, {len(answers)} answers: the numbers must be equal")
        groups = joined(model, tokenizer, prompts, [[answer] for answer in answers])
        self._scorer = SequenceScorer(model, groups, self.device)
        self.num_tokens = self._scorer.num_tokens

    def losses(self, samples: Samples | None = None) -> Tensor:
        return -self._spread(
            lambda some: self._pass(lambda budget: self._scorer.scores(budget, some))[:, 0], as_rows(samples)
        )

    @property
    def recomputable(self) -> bool:
        return self._scorer.recomputable

    def pieces(self, token_budget: int, rows: Indices | None = None) -> list[Piece]:
        return self._scorer.pieces(token_budget, rows)

    def piece_losses(self, piece: Piece, watcher: Watcher) -> Tensor:
        return -self._scorer.piece_scores(piece, watcher)[:, 0]


def joined(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    candidates: Sequence[Sequence[str]],
) -> list[list[ScoredSequence]]:
    """Each prompt with each of its candidates behind it, the candidate's tokens to be scored."""
    longest = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    starts = [len(ids) for ids in encode(tokenizer, prompts)]
    texts = [
        f"{prompt} {option}" for prompt, options in zip(prompts, candidates, strict=True) for option in options
    ]
    encoded = encode(tokenizer, texts)
    result = []
    for index, (start, options) in enumerate(zip(starts, candidates, strict=True)):
        if start < 1:
            raise ValueError(f"sample {index}: the prompt has no token, so nothing predicts its continuation")
        group = [ScoredSequence(next(encoded), start) for _ in options]
        for option, sequence in zip(options, group, strict=True):
            if len(sequence.ids) <= start:
                raise ValueError(f"sample {index}: candidate {option!r} adds no token to its prompt")
            if longest is not None and len(sequence.ids) > longest:
                raise ValueError(f"sample {index} has {len(sequence.ids)} tokens, the model takes {longest}")
        result.append(group)
    return result


def _share_prompt(group: Sequence[ScoredSequence]) -> bool:
    """Whether the candidates follow the very same tokens, so that one pass over those serves them all."""
    context = group[0].ids[: group[0].start]
    return all(s.ids[: s.start] == context for s in group)
