"""How a question is put to a model: one format for each model family, told by its tokenizer's chat template.

Published TOFU numbers hang on these choices. They are open-unlearning's (its `configs/model/*.yaml`): which
families get a system prompt, the date that Llama-3's template is given, and that Llama-2-chat and models without a
template are asked in plain text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from src.utils import UserError, one_line

SYSTEM_PROMPT = "You are a helpful assistant."
# Llama-3's template would write today's date; open-unlearning's published models were trained with this one.
DATE_STRING = "10 Apr 2025"


@dataclass(frozen=True)
class Family:
    """A model family.

    Attributes:
        marks: texts that its chat template holds, and no other family's all of.
        system_prompt: the message that comes first; None for none.
        tags: what stands before and behind the question where the template is not used.
    """

    name: str
    marks: tuple[str, ...] = ()
    system_prompt: str | None = None
    tags: tuple[str, str] | None = None


FAMILIES = (
    Family("Llama-3", ("<|start_header_id|>",), SYSTEM_PROMPT),
    Family("Llama-2-chat", ("[INST]", "<<SYS>>"), tags=("[INST] ", " [/INST]")),
    Family("Qwen2.5", ("<|im_start|>", "You are Qwen"), SYSTEM_PROMPT),
    Family("Phi-3.5", ("<|system|>", "<|end|>"), SYSTEM_PROMPT),
    Family("Zephyr", ("<|system|>", "<|user|>", "eos_token"), SYSTEM_PROMPT),
    Family("Gemma", ("<start_of_turn>",)),
)
NO_TEMPLATE = Family("no template", tags=("Question: ", "\nAnswer: "))
OTHER = Family("its own template")


@dataclass(frozen=True)
class ChatFormat:
    """How one tokenizer's questions are put; made by `chat_format`.

    Attributes:
        family: name, for the record.
        tags: what stands before and behind the question; None: the tokenizer's chat template writes it.
        system_prompt: first message of the template; None for none.
        date_string: what the template writes as today's date; None where it writes none.
    """

    family: str
    tags: tuple[str, str] | None
    system_prompt: str | None = None
    date_string: str | None = None

    def prompt(self, tokenizer: PreTrainedTokenizerBase, question: str) -> str:
        """The text up to where the answer begins."""
        if self.tags is not None:
            return self.tags[0] + question + self.tags[1]
        return self._applied(tokenizer, self._messages(question), add_generation_prompt=True)

    def exchange(self, tokenizer: PreTrainedTokenizerBase, question: str, answer: str, prompt: str) -> str:
        """The question's `prompt` and the answer; a template writes the end of the answer's turn behind it."""
        if self.tags is not None:
            return prompt + answer
        text = self._applied(tokenizer, [*self._messages(question), {"role": "assistant", "content": answer}])
        # Some templates write a finished turn in another way than one that is being asked for.
        return text if text.startswith(prompt) else prompt + answer

    def record(self) -> dict[str, Any]:
        """What a log keeps of it."""
        return {"family": self.family, "system_prompt": self.system_prompt, "date_string": self.date_string}

    def __str__(self) -> str:
        parts = [f"prompts of {self.family}" if self.tags is None else f"plain prompts ({self.family})"]
        if self.tags is None:
            parts.append(f'system prompt "{self.system_prompt}"' if self.system_prompt else "no system prompt")
        if self.date_string:
            parts.append(f"date {self.date_string}")
        return ", ".join(parts)

    def _messages(self, question: str) -> list[dict[str, str]]:
        system = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        return [*system, {"role": "user", "content": question}]

    def _applied(self, tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], **settings: Any) -> str:
        if self.date_string is not None:
            settings["date_string"] = self.date_string
        try:
            return str(tokenizer.apply_chat_template(messages, tokenize=False, **settings))
        except TemplateError as error:
            raise UserError(f"the chat template refuses the prompt: {one_line(error)}") from error


def chat_format(
    tokenizer: PreTrainedTokenizerBase, system_prompt: str | None = None, date_string: str = DATE_STRING
) -> ChatFormat:
    """The format of the family that the tokenizer's chat template belongs to.

    Args:
        system_prompt: in the place of the family's own; "" for none.

    Raises:
        UserError: a system prompt is given where no template takes one.
    """
    template = str(tokenizer.chat_template or "")
    family = NO_TEMPLATE
    if template:
        family = next((one for one in FAMILIES if all(mark in template for mark in one.marks)), OTHER)
    if family.tags is not None:
        if system_prompt:
            raise UserError(f"a system prompt is given, but this model is asked in plain text ({family.name})")
        return ChatFormat(family.name, family.tags)
    system = family.system_prompt if system_prompt is None else system_prompt or None
    return ChatFormat(family.name, None, system, date_string if "date_string" in template else None)
