"""Head tuning: the language-model head is trained, nothing else.

It is the name of the sources' file, which is OPT's model with a frozen decoder; here it is any model whose head is
a linear layer. The sources train the embedding that is also the head, through both of its uses (`untied=False`).
By default the head is a matrix of its own, so that the layers need to run once only (`src/engine/layers.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.engine.head import RowsHead
from src.tracks import TrackSettings, check_untracked, freeze, mark
from src.utils import UserError, encode

ROWS = ("candidates", "all")


@dataclass(frozen=True)
class HeadSettings(TrackSettings):
    """What is needed to free the same part of the same base model's head again.

    Attributes:
        untied: train a copy of the embedding where the two are tied; else both uses of it change.
        rows: "candidates" trains the rows of `tokens`, "all" the whole matrix. Under sign releases every trained
            row moves by about the learning rate in each step, also where no loss depends on it.
        tokens: ids, sorted. They are published, so they must be the task's and not the data's.
    """

    name: ClassVar[str] = "head"
    untied: bool = True
    rows: str = "candidates"
    tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.rows not in ROWS:
            raise UserError(f"unknown head rows '{self.rows}': use {' or '.join(ROWS)}")
        if self.rows == "candidates" and not self.untied:
            raise UserError("the candidates' rows are no part of the embedding: untie it, or train all rows")
        if (self.rows == "candidates") != bool(self.tokens):
            raise UserError("rows 'candidates' needs the candidates' tokens, and rows 'all' takes none")
        if list(self.tokens) != sorted(set(self.tokens)):
            raise UserError(f"the candidates' tokens must be sorted and different, got {self.tokens}")


def candidate_tokens(
    tokenizer: PreTrainedTokenizerBase, prompt: str, continuations: Sequence[str]
) -> tuple[int, ...]:
    """Ids of all tokens of a task's candidates, as they are behind its prompts.

    Args:
        prompt: ends as the task's prompts do, e.g. one without an input.
        continuations: the candidates, each with its separator in front.
    """
    (start,) = (len(ids) for ids in encode(tokenizer, [prompt]))
    whole = encode(tokenizer, [prompt + continuation for continuation in continuations])
    return tuple(sorted({token for ids in whole for token in ids[start:]}))


def add_head(model: PreTrainedModel, settings: HeadSettings) -> PreTrainedModel:
    """Freeze `model` but for its head, or some rows of it, which start as they are.

    The model is changed in place and returned.

    Raises:
        UserError: the model has a track, its head is no linear layer, a token is not in its vocabulary, or it is
            to be trained tied and is not.
    """
    check_untracked(model)
    head: Any = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        raise UserError(f"head tuning needs a linear head, model type '{model.config.model_type}' has none")
    tied = head.weight is model.get_input_embeddings().weight
    if not settings.untied and not tied:
        raise UserError("the model's head is not tied to its embedding, so it cannot be trained as both")
    if settings.tokens and not 0 <= settings.tokens[0] <= settings.tokens[-1] < head.out_features:
        raise UserError(f"the head has {head.out_features} rows, so none for some token of {settings.tokens}")
    freeze(model)
    if settings.rows == "candidates":
        model.set_output_embeddings(RowsHead(head, torch.tensor(settings.tokens, device=head.weight.device)))
    elif settings.untied and tied:
        head.weight = nn.Parameter(head.weight.detach().clone())
        model.config.tie_word_embeddings = False
    else:
        head.weight.requires_grad_()
    return mark(model, settings)
