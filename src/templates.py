"""How a row of a data set becomes text: one class a task, the prompts of MeZO (arXiv 2305.17333, appendix)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class SST2Template:
    """Sentiment as a continuation: "{sentence} It was" followed by "terrible" or "great"."""

    candidates = ("terrible", "great")

    def prompt(self, row: Mapping[str, Any]) -> str:
        return f"{row['sentence'].strip()} It was"

    def label(self, row: Mapping[str, Any]) -> int:
        """Index of the right candidate: 0 for a negative sentence, 1 for a positive one."""
        return int(row["label"])


class SQuADTemplate:
    """A question about a paragraph, with the answer as free text after "Answer:"."""

    def prompt(self, row: Mapping[str, Any]) -> str:
        question = row["question"].strip()
        return f"Title: {row['title']}\nContext: {row['context']}\nQuestion: {question}\nAnswer:"

    def answers(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        """All gold answers in the row's order, repetitions once."""
        texts = (text.strip() for text in row["answers"]["text"])
        return tuple(dict.fromkeys(text for text in texts if text))
