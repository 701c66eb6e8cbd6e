"""How questions and answers become tokens, and which of these are scored; the prompts are `src/tofu/chat.py`'s."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from src.engine.batching import ScoredSequence
from src.tofu.chat import ChatFormat, chat_format
from src.tofu.rows import Row
from src.utils import UserError, encode, prompt_prefix

IGNORED = -100  # a label that is no target, as in transformers


def encode_answers(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    chat: ChatFormat | None = None,
    *,
    max_length: int | None = None,
) -> list[ScoredSequence]:
    """Token ids of each (question, answer), of which those behind the prompt's are scored, as in open-unlearning.

    These are the answer's, what a template writes behind it, and an end-of-sequence token where the text does not
    end with one. The prompt's tokens are counted on its own text: where it ends with a space that the tokenizer
    joins with the answer's first word, that word's token is not scored.

    Args:
        chat: default: the format of the tokenizer's family.
    """
    chat = chat or chat_format(tokenizer)
    prompts = {question: chat.prompt(tokenizer, question) for question, _ in pairs}
    starts = dict(zip(prompts, map(len, _encoded(tokenizer, list(prompts.values()), chat)), strict=True))
    texts = [chat.exchange(tokenizer, question, answer, prompts[question]) for question, answer in pairs]
    result = []
    for ids, (question, answer) in zip(_encoded(tokenizer, texts, chat), pairs, strict=True):
        sequence = ScoredSequence(_ended(tokenizer, ids), starts[question])
        if not answer.strip() or sequence.start < 1 or len(sequence.ids) <= sequence.start:
            raise UserError(f"the tokenizer finds no token in the answer to {question!r}, or none in the question")
        _check_length(sequence.ids, max_length)
        result.append(sequence)
    return result


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[str],
    chat: ChatFormat | None = None,
    *,
    joins: bool = False,
) -> list[list[int]]:
    """Token ids of each question, up to where the answer begins.

    Args:
        joins: leave out the space at the end of a plain prompt, which many tokenizers join with the answer's first
            word: behind that space alone a model has never seen an answer. open-unlearning keeps it.
    """
    chat = chat or chat_format(tokenizer)
    prompts = [chat.prompt(tokenizer, question) for question in questions]
    if joins and chat.tags is not None:
        prompts = [prompt.rstrip(" ") for prompt in prompts]
    return _encoded(tokenizer, prompts, chat)


def _encoded(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], chat: ChatFormat) -> list[list[int]]:
    if not texts:
        return []
    if chat.tags is None:  # the template writes the first token itself
        return [list(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]
    return list(encode(tokenizer, texts))


def _ended(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[int]:
    eos = tokenizer.eos_token_id
    return ids if eos is None or ids[-1:] == [eos] else [*ids, eos]


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, max_length: int | None = None
) -> list[ScoredSequence]:
    """Token ids of plain texts with an end-of-sequence token; all but the first are scored."""
    result = []
    for ids in encode(tokenizer, texts):
        start = max(len(prompt_prefix(tokenizer)), 1)
        sequence = ScoredSequence(_ended(tokenizer, ids), start)
        if len(ids) <= start:
            raise UserError("a text has no token that another one predicts")
        _check_length(sequence.ids, max_length)
        result.append(sequence)
    return result


def _check_length(ids: list[int], max_length: int | None) -> None:
    if max_length is not None and len(ids) > max_length:
        raise UserError(f"a row has {len(ids)} tokens, the model takes {max_length}")


class Refusals(Sequence[dict[str, Any]]):
    """One question with each of the refusals, encoded where it is asked for: a run draws few of them."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        question: str,
        texts: Sequence[str],
        chat: ChatFormat,
        max_length: int | None,
    ) -> None:
        self._encode = lambda text: encode_answers(tokenizer, [(question, text)], chat, max_length=max_length)[0]
        self._texts = texts

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: Any) -> Any:
        return labelled(self._encode(self._texts[index]))


def encode_rows(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    chat: ChatFormat | None = None,
    *,
    max_length: int | None = None,
    refusal_texts: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Training rows: `input_ids` and `labels`, and "refusals", a sequence of such rows, where texts are given.

    Args:
        rows: all with question and answer, or all with text; text rows, which ask nothing, get no refusals.
        chat: default: the format of the tokenizer's family.
    """
    chat = chat or chat_format(tokenizer)
    result = [labelled(s) for s in row_sequences(tokenizer, rows, chat, max_length=max_length)]
    if refusal_texts and rows and "question" in rows[0]:
        for item, row in zip(result, rows, strict=True):
            item["refusals"] = Refusals(tokenizer, row["question"], refusal_texts, chat, max_length)
    return result


def row_sequences(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    chat: ChatFormat | None = None,
    *,
    max_length: int | None = None,
) -> list[ScoredSequence]:
    """Token ids of rows that all have question and answer, or all text."""
    if not rows:
        return []
    if "text" in rows[0]:
        return encode_texts(tokenizer, [row["text"] for row in rows], max_length=max_length)
    pairs = [(row["question"], row["answer"]) for row in rows]
    return encode_answers(tokenizer, pairs, chat, max_length=max_length)


def labelled(sequence: ScoredSequence) -> dict[str, Any]:
    """A training row of a scored sequence: the labels are its scored tokens."""
    return {"input_ids": sequence.ids, "labels": [IGNORED] * sequence.start + sequence.ids[sequence.start :]}


def collate(items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """`input_ids`, `attention_mask` and `labels`, int64 (B, L), padded on the right."""
    width = max(len(item["input_ids"]) for item in items)
    batch = {
        "input_ids": torch.zeros(len(items), width, dtype=torch.int64),
        "attention_mask": torch.zeros(len(items), width, dtype=torch.int64),
        "labels": torch.full((len(items), width), IGNORED, dtype=torch.int64),
    }
    for row, item in enumerate(items):
        length = len(item["input_ids"])
        batch["input_ids"][row, :length] = torch.tensor(item["input_ids"])
        batch["attention_mask"][row, :length] = 1
        batch["labels"][row, :length] = torch.tensor(item["labels"])
    return batch
