"""One example as texts, and what its evaluation depends on besides the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn
from transformers import PreTrainedTokenizerBase

from src.engine.decoding import GREEDY, Decoding
from src.engine.encoding import Window

# Between demonstrations, and between them and what is asked.
SEPARATOR = "\n\n"


@dataclass(frozen=True)
class Sample:
    """One example. The text with continuation c is `prompt + c`.

    Attributes:
        prompt: the text before the answer.
        continuations: what is scored behind it, separators included; for free text the first gold answer alone.
        right: indices of the right continuations.
        label: the one of them that training aims at.
        answers: gold answers of free text; empty where continuations are chosen among.
        sfc_prompt: the prompt without anything of the row; None where that is undefined.
    """

    prompt: str
    continuations: tuple[str, ...]
    right: frozenset[int]
    label: int = 0
    answers: tuple[str, ...] = ()
    sfc_prompt: str | None = None

    @property
    def demonstration(self) -> str:
        """The whole text with the right continuation, as it stands before other samples."""
        return (self.prompt + self.continuations[self.label]).strip()


@dataclass(frozen=True)
class Limits:
    """How much goes through the model.

    Attributes:
        token_budget: padded tokens of a micro-batch at most, None for the device's default.
        max_new_tokens: tokens of a generated answer at most.
        max_length: tokens of a sample at most, those of a generated answer included; the model may take fewer.
        truncate: longer samples lose their beginning; else they are refused.
    """

    token_budget: int | None = None
    max_new_tokens: int = 50
    max_length: int = 2048
    truncate: bool = True

    def window(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, reserved: int = 0) -> Window:
        return Window(model, tokenizer, self.max_length, truncate=self.truncate, reserved=reserved)


@dataclass(frozen=True)
class Scoring:
    """How samples are evaluated.

    Attributes:
        demonstrations: a text in front of each sample, None for none.
        calibration: "" for none, "sfc" for the SFC prompt alone, "icl_sfc" for it behind the demonstrations.
        decoding: of generated answers.
    """

    demonstrations: Sequence[str] | None = None
    calibration: str = ""
    decoding: Decoding = GREEDY

    def of(self, count: int) -> Scoring:
        """That of the first `count` samples."""
        return replace(self, demonstrations=self.demonstrations and self.demonstrations[:count])


DEFAULT_LIMITS, PLAIN = Limits(), Scoring()


def demonstrations(samples: Sequence[Sample]) -> str:
    """What stands in front of a sample: other samples with their right continuations, in order."""
    return "".join(sample.demonstration + SEPARATOR for sample in samples)
