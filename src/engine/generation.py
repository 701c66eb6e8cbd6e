"""Minus the F1 of greedily generated answers as a per-sample loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from src.engine.batching import Indices, ScoredSequence, TokenTable
from src.engine.decoding import GREEDY, Decoding, decoded, generate_tokens, library_tokens, stop_tokens
from src.engine.encoding import Window
from src.engine.objective import Objective, Samples, as_rows
from src.metrics import f1_score
from src.utils import encode

# A step of the decoding takes one token a row, so that a CPU wants many more rows than in a forward pass.
CPU_BUDGET_FACTOR = 4


class GenerationF1(Objective):
    """l_i = -F1 of the greedy answer to prompt i against the gold answers (arXiv 2605.06505, section 4).

    An answer ends before its first newline, at the end-of-text token, or after `max_new_tokens` tokens.

    Args:
        model, tokenizer, prompts, token_budget: as for `CandidateScoring`; the budget counts the new tokens too.
        answers: N lists of gold answers.
        window: how many tokens a prompt may have; None for the model's positions, with room for the answer.
        decoding: other than greedy is for evaluation: its losses are a matter of chance, or slow.

    Raises:
        ValueError: lengths differ, a prompt or a list of answers is empty, or a prompt does not fit the window.
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
        window: Window | None = None,
        decoding: Decoding = GREEDY,
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
        self.decoding = decoding
        window = window or Window(model, tokenizer, reserved=max_new_tokens)
        sequences = []
        for index, (ids, golds) in enumerate(zip(encode(tokenizer, prompts), self.answers, strict=True)):
            if not ids or not golds:
                raise ValueError(f"sample {index} has no {'gold answer' if ids else 'prompt'}")
            sequences.append(ScoredSequence(ids, len(ids)))
        self._table = TokenTable([window.cut(i, s) for i, s in enumerate(sequences)], self.device)
        window.warn(sum(window.too_long(s.ids) for s in sequences), len(sequences))
        self.num_tokens = self._table.num_tokens
        vocabulary = int(model.config.vocab_size)  # type: ignore[union-attr, arg-type]
        self._stops = stop_tokens(tokenizer, vocabulary, decoding.eos_token).to(self.device)

    def texts(self, samples: Samples | None = None) -> list[str]:
        """The answers, in sample order or in that of `samples`."""
        rows = as_rows(samples)
        chosen = np.arange(len(self)) if rows is None else rows
        answers = decoded(self.tokenizer, self._pass(lambda budget: self._generate(chosen, budget)))
        if self.decoding.eos_token == "\n":
            answers = [text.split("\n")[0] for text in answers]
        return [text.strip() for text in answers]

    def _generate(self, rows: Indices, budget: int) -> Tensor:
        limits: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "stops": self._stops}
        if self.decoding.greedy:
            return generate_tokens(self.model, self._table, rows, token_budget=budget, **limits)
        prompts = [self._table.ids[row, : self._table.ends[row]].tolist() for row in rows]
        return library_tokens(self.model, prompts, self.decoding, **limits)

    def losses(self, samples: Samples | None = None) -> Tensor:
        return self.spread(self._losses, as_rows(samples))

    def _losses(self, rows: Indices | None) -> Tensor:
        chosen = range(len(self)) if rows is None else rows.tolist()
        pairs = zip(self.texts(rows), chosen, strict=True)
        return torch.tensor([-f1_score(text, self.answers[row]) for text, row in pairs], dtype=torch.float32)

    def metrics(self) -> dict[str, float]:
        loss = float(self.losses().mean())
        return {"loss": loss, "f1": -loss}
