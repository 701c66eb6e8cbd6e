"""Texts as token ids: a prompt with each of its continuations behind it, and what is cut where that is too long.

A continuation's tokens are the last ones of the whole text, as many as the text has more than its prompt alone.
What is too long loses tokens on the left: what the tokenizer puts before every text stays, and the end (MeZO).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedTokenizerBase

from src.engine.batching import ScoredSequence
from src.utils import encode, prompt_prefix


class Window:
    """How many tokens of a text a model sees, and what becomes of longer ones.

    Args:
        model, tokenizer: whose texts they are.
        max_length: tokens at most, None for the model's positions alone.
        truncate: cut longer texts on the left; else they are refused.
        reserved: tokens that stay free for an answer.

    Raises:
        ValueError: nothing is left beside the reserved tokens.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int | None = None,
        *,
        truncate: bool = True,
        reserved: int = 0,
    ) -> None:
        positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
        limits = [limit for limit in (positions, max_length) if limit is not None]
        self.limit = min(limits) - reserved if limits else None
        self.reserved = reserved
        self.kept = len(prompt_prefix(tokenizer))
        self.truncate = truncate
        if self.limit is not None and self.limit <= self.kept:
            raise ValueError(f"{min(limits)} tokens leave no room for a prompt and {reserved} new ones")

    def too_long(self, ids: Sequence[int]) -> bool:
        return self.limit is not None and len(ids) > self.limit

    def cut(self, index: int, sequence: ScoredSequence) -> ScoredSequence:
        """The sequence without what is too much on its left, its scored tokens whole.

        Raises:
            ValueError: it is too long and not to be cut, or nothing of its prompt would be left; `index` is named.
        """
        if not self.too_long(sequence.ids):
            return sequence
        assert self.limit is not None
        excess = len(sequence.ids) - self.limit
        if not self.truncate:
            new = f" and {self.reserved} new ones" if self.reserved else ""
            total = self.limit + self.reserved
            raise ValueError(f"sample {index} has {len(sequence.ids)} tokens{new}, the model takes {total}")
        if sequence.start - excess <= self.kept:
            scored = len(sequence.ids) - sequence.start
            raise ValueError(f"sample {index} is only continuation: {scored} tokens of {self.limit}")
        ids = sequence.ids[: self.kept] + sequence.ids[self.kept + excess :]
        return ScoredSequence(ids, sequence.start - excess)

    def warn(self, cut: int, total: int) -> None:
        """Says how many samples were cut, if any."""
        if cut:
            message = f"{cut} of {total} samples are longer than {self.limit} tokens and lose their beginning"
            warnings.warn(message, stacklevel=3)


def joined(
    tokenizer: PreTrainedTokenizerBase,
    window: Window,
    prompts: Sequence[str],
    candidates: Sequence[Sequence[str]],
    *,
    separator: str = " ",
    before: Sequence[str] | None = None,
) -> list[list[ScoredSequence]]:
    """Each prompt with each of its candidates behind it, the candidate's tokens to be scored.

    Args:
        separator: between prompt and candidate.
        before: a text in front of each prompt; what a candidate adds is counted without it.

    Raises:
        ValueError: a prompt or a candidate has no token, or a sample does not fit the window.
    """
    starts = [len(ids) for ids in encode(tokenizer, prompts)]
    pairs = [(i, prompts[i] + separator + option) for i, options in enumerate(candidates) for option in options]
    encoded = list(encode(tokenizer, [text for _, text in pairs]))
    whole = encoded if before is None else encode(tokenizer, [before[i] + text for i, text in pairs])
    groups: list[list[ScoredSequence]] = [[] for _ in prompts]
    cut = set()
    for (index, _), alone, ids in zip(pairs, encoded, whole, strict=True):
        added = len(alone) - starts[index]
        if len(ids) <= added:
            raise ValueError(f"sample {index}: the prompt has no token, so nothing predicts its continuation")
        if added < 1:
            option = candidates[index][len(groups[index])]
            raise ValueError(f"sample {index}: candidate {option!r} adds no token to its prompt")
        if window.too_long(ids):
            cut.add(index)
        groups[index].append(window.cut(index, ScoredSequence(ids, len(ids) - added)))
    window.warn(len(cut), len(prompts))
    return groups
