"""How a question and its answer become tokens: by a chat template, or as "Question: ...\\nAnswer: ..."."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from src.engine.batching import ScoredSequence
from src.tofu.rows import Row
from src.utils import UserError, encode, prompt_prefix

IGNORED = -100  # a label that is no target, as in transformers


@dataclass(frozen=True)
class ChatFormat:
    """Settings of chat templates; a tokenizer without one writes "Question: ...\\nAnswer: ...".

    The date is fixed because Llama's template writes today's otherwise; it is the one open-unlearning's published
    models were trained with.
    """

    system_prompt: str | None = None
    date_string: str = "10 Apr 2025"

    def messages(self, question: str) -> list[dict[str, str]]:
        system = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        return [*system, {"role": "user", "content": question}]


PLAIN = ChatFormat()


def encode_answers(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    chat: ChatFormat = PLAIN,
    *,
    max_length: int | None = None,
) -> list[ScoredSequence]:
    """Token ids of each (question, answer), of which the answer's are scored.

    The answer ends with exactly one end-of-sequence token, which is scored too, as in open-unlearning. What a
    chat template writes after that token (a line break, in some) is left out.
    """
    prompts = [_prompt_text(tokenizer, question, chat) for question, _ in pairs]
    if tokenizer.chat_template:
        texts = [
            _chat_text(tokenizer, prompt, question, answer, chat)
            for prompt, (question, answer) in zip(prompts, pairs, strict=True)
        ]
        encoded = iter(tokenizer(texts, add_special_tokens=False)["input_ids"])
    else:
        texts = [f"{prompt} {answer}" for prompt, (_, answer) in zip(prompts, pairs, strict=True)]
        encoded = encode(tokenizer, texts)
    starts = [len(ids) for ids in _prompt_ids(tokenizer, prompts)]
    result = []
    for start, ids, (question, _) in zip(starts, encoded, pairs, strict=True):
        sequence = ScoredSequence(_end(tokenizer, ids, start), start)
        if len(sequence.ids) <= start or start < 1:
            raise UserError(f"the tokenizer finds no token in the answer to {question!r}, or none in the question")
        _check_length(sequence.ids, max_length)
        result.append(sequence)
    return result


def encode_texts(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, max_length: int | None = None
) -> list[ScoredSequence]:
    """Token ids of plain texts with an end-of-sequence token; all but the first are scored."""
    result = []
    for ids in encode(tokenizer, texts):
        start = max(len(prompt_prefix(tokenizer)), 1)
        sequence = ScoredSequence(_end(tokenizer, ids, start), start)
        if len(sequence.ids) <= start:
            raise UserError("a text has no token that another one predicts")
        _check_length(sequence.ids, max_length)
        result.append(sequence)
    return result


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, questions: Sequence[str], chat: ChatFormat = PLAIN
) -> list[list[int]]:
    """Token ids of each question, up to where the answer begins."""
    return _prompt_ids(tokenizer, [_prompt_text(tokenizer, question, chat) for question in questions])


def _prompt_text(tokenizer: PreTrainedTokenizerBase, question: str, chat: ChatFormat) -> str:
    if not tokenizer.chat_template:
        return f"Question: {question}\nAnswer:"
    return str(
        tokenizer.apply_chat_template(
            chat.messages(question), tokenize=False, add_generation_prompt=True, date_string=chat.date_string
        )
    )


def _chat_text(
    tokenizer: PreTrainedTokenizerBase, prompt: str, question: str, answer: str, chat: ChatFormat
) -> str:
    messages = [*chat.messages(question), {"role": "assistant", "content": answer}]
    text = str(tokenizer.apply_chat_template(messages, tokenize=False, date_string=chat.date_string))
    # Some templates write a finished turn in another way than one that is being asked for.
    return text if text.startswith(prompt) else prompt + answer


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    if tokenizer.chat_template:
        return [list(ids) for ids in tokenizer(list(prompts), add_special_tokens=False)["input_ids"]]
    return list(encode(tokenizer, prompts))


def _end(tokenizer: PreTrainedTokenizerBase, ids: list[int], start: int) -> list[int]:
    """`ids` up to the first end-of-sequence token at or after `start`, which is added where there is none."""
    eos = tokenizer.eos_token_id
    if eos is None:
        return list(ids)
    answer = list(ids[start:])
    if eos in answer:
        answer = answer[: answer.index(eos)]
    return [*ids[:start], *answer, eos] if answer else list(ids[:start])


def _check_length(ids: list[int], max_length: int | None) -> None:
    if max_length is not None and len(ids) > max_length:
        raise UserError(f"a row has {len(ids)} tokens, the model takes {max_length}")


def encode_rows(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    chat: ChatFormat = PLAIN,
    *,
    max_length: int | None = None,
    refusal_texts: Sequence[str] | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Training rows: `input_ids` and `labels`, and the same under "refusal" where refusals are given.

    Args:
        rows: all with question and answer, or all with text.
        refusal_texts: each question gets one of them, drawn by a generator of its own from `seed`. Text rows,
            which ask nothing, get none.
    """
    result = [_labelled(s) for s in row_sequences(tokenizer, rows, chat, max_length=max_length)]
    if refusal_texts and rows and "question" in rows[0]:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(len(refusal_texts), (len(rows),), generator=generator).tolist()
        refused = [(row["question"], refusal_texts[index]) for row, index in zip(rows, drawn, strict=True)]
        encoded = encode_answers(tokenizer, refused, chat, max_length=max_length)
        for item, sequence in zip(result, encoded, strict=True):
            item["refusal"] = _labelled(sequence)
    return result


def row_sequences(
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    chat: ChatFormat = PLAIN,
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


def _labelled(sequence: ScoredSequence) -> dict[str, Any]:
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
