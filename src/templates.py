"""How a row of a data set becomes text: one small class a task.

The prompts are those of MeZO (arXiv 2305.17333, appendix) and PACZero (arXiv 2605.06505), with one correction:
TREC's words follow the hub's class names, where the sources give descriptions and entities each other's word.

A continuation begins with its own separator, so that prompt + continuation is the whole text: a space in most
tasks, nothing behind a prompt that ends with a line break.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

Row = Mapping[str, Any]


def text(row: Row, name: str) -> str:
    """The row's text called `name`; `ValueError` where it is no text."""
    value = row[name]
    if not isinstance(value, str):
        raise ValueError(f"field '{name}' holds {type(value).__name__}, not text")
    return value


def texts(values: Any, name: str) -> list[str]:
    """`values` as a list of texts; `ValueError` where it is none."""
    if isinstance(values, str) or not isinstance(values, Sequence) or not all(isinstance(v, str) for v in values):
        raise ValueError(f"field '{name}' is no list of texts")
    return list(values)


class Template:
    """Words for classes. Subclasses say what a row's prompt is; others than classification override more.

    Attributes:
        words: the continuations, in the order of the labels.
        classes: the hub's names of the labels, in the order of their numbers; empty where it names none.
        label: the row's field that holds the label.
        calibration: the prompt with nothing of the row, for SFC (arXiv 2104.08315); None where that is undefined.
    """

    words: ClassVar[tuple[str, ...]] = ()
    classes: ClassVar[tuple[str, ...]] = ()
    label: ClassVar[str] = "label"
    calibration: ClassVar[str | None] = ""

    def prompt(self, row: Row) -> str:
        raise NotImplementedError

    def continuations(self, row: Row) -> Sequence[str]:
        """What is scored behind the prompt, each with its separator."""
        return self.words

    def right(self, row: Row) -> Sequence[int]:
        """Which continuations are right; training aims at the first."""
        label = row[self.label]
        if type(label) is not int or not 0 <= label < len(self.words):
            raise ValueError(f"{self.label} {label!r} is none of 0 to {len(self.words) - 1}")
        return [label]

    def answers(self, row: Row) -> Sequence[str]:
        """Gold answers to compare free text with; none for what chooses among continuations."""
        return ()

    def sfc_prompt(self, row: Row) -> str | None:
        return self.calibration


class SST2(Template):
    words = (" terrible", " great")
    classes = ("negative", "positive")
    calibration = "It was"

    def prompt(self, row: Row) -> str:
        return f"{text(row, 'sentence').strip()} It was"


class SST5(Template):
    """Labels from 0, very negative, to 4, very positive."""

    words = (" terrible", " bad", " okay", " good", " great")
    calibration = "It was"

    def prompt(self, row: Row) -> str:
        return f"{text(row, 'text').strip()} It was"


class TREC(Template):
    words = (" Abbreviation", " Entity", " Description", " Human", " Location", " Number")
    classes = ("ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM")
    label = "coarse_label"
    calibration = "The answer type is"

    def prompt(self, row: Row) -> str:
        return f"{text(row, 'text')} The answer type is"


class NLI(Template):
    """MNLI and SNLI."""

    words = (" Yes", " Maybe", " No")
    classes = ("entailment", "neutral", "contradiction")
    calibration = "The answer is"

    def prompt(self, row: Row) -> str:
        return f"{text(row, 'premise')} {text(row, 'hypothesis')} The answer is"


class RTE(Template):
    words = ("Yes", "No")
    classes = ("entailment", "not_entailment")

    def prompt(self, row: Row) -> str:
        claim = text(row, "hypothesis")
        return f'{text(row, "premise")}\nDoes this mean that "{claim}" is true? Yes or No?\n'


class CB(Template):
    words = ("Yes", "No", "Maybe")
    classes = ("entailment", "contradiction", "neutral")

    def prompt(self, row: Row) -> str:
        claim = text(row, "hypothesis")
        return f'Suppose {text(row, "premise")} Can we infer that "{claim}"? Yes, No, or Maybe?\n'


class BoolQ(Template):
    words = ("Yes", "No")

    def prompt(self, row: Row) -> str:
        question = text(row, "question")
        mark = "" if question.endswith("?") else "?"
        return f"{text(row, 'passage')} {question[:1].upper()}{question[1:]}{mark}\n"

    def right(self, row: Row) -> Sequence[int]:
        if not isinstance(row["answer"], bool):
            raise ValueError(f"answer {row['answer']!r} is neither true nor false")
        return [0 if row["answer"] else 1]


class MultiRC(Template):
    """One question with one proposed answer."""

    words = ("No", "Yes")
    classes = ("False", "True")

    def prompt(self, row: Row) -> str:
        return (
            f"{text(row, 'paragraph')}\nQuestion: {text(row, 'question')}\n"
            f'I found this answer "{text(row, "answer")}". Is that correct? Yes or No?\n'
        )


class WIC(Template):
    words = ("No", "Yes")
    classes = ("False", "True")

    def prompt(self, row: Row) -> str:
        return (
            f'Does the word "{text(row, "word")}" have the same meaning in these two sentences? Yes, No?\n'
            f"{text(row, 'sentence1')}\n{text(row, 'sentence2')}\n"
        )


class WSC(Template):
    words = ("No", "Yes")
    classes = ("False", "True")

    def prompt(self, row: Row) -> str:
        pronoun, name = text(row, "span2_text").lower(), text(row, "span1_text")
        return (
            f"{text(row, 'text')}\nIn the previous sentence,"
            f' does the pronoun "{pronoun}" refer to {name}? Yes or No?\n'
        )


class Copa(Template):
    """Two sentences, one of which is the premise's cause or its effect."""

    words = ("choice1", "choice2")  # of the row
    classes = ("choice1", "choice2")

    def prompt(self, row: Row) -> str:
        return f"{text(row, 'premise').rstrip().removesuffix('.')} {self.sfc_prompt(row)}"

    def continuations(self, row: Row) -> Sequence[str]:
        return [f" {_in_lower_case(text(row, name))}" for name in self.words]

    def sfc_prompt(self, row: Row) -> str:
        question = row["question"]
        if question not in ("effect", "cause"):
            raise ValueError(f"question {question!r} is neither 'cause' nor 'effect'")
        return "so" if question == "effect" else "because"


def _in_lower_case(sentence: str) -> str:
    """The first word in lower case, unless it is "I"."""
    first, space, rest = sentence.partition(" ")
    return (first if first == "I" else first.lower()) + space + rest


class ReCoRD(Template):
    """Which of a passage's entities belongs into a sentence about it; several may be right."""

    calibration = "-"

    def prompt(self, row: Row) -> str:
        return text(row, "passage").replace("@highlight\n", "- ") + "\n-"

    def continuations(self, row: Row) -> Sequence[str]:
        query = text(row, "query")
        if "@placeholder" not in query:
            raise ValueError("the query has no @placeholder")
        return [" " + query.replace("@placeholder", entity) for entity in texts(row["entities"], "entities")]

    def right(self, row: Row) -> Sequence[int]:
        entities = texts(row["entities"], "entities")
        found = [entities.index(answer) for answer in texts(row["answers"], "answers") if answer in entities]
        if not found:
            raise ValueError("no answer is among the entities")
        return found


class FreeText(Template):
    """A question with gold answers. The line break behind the answer teaches a model to stop."""

    calibration = None

    def continuations(self, row: Row) -> Sequence[str]:
        return [f" {self.answers(row)[0]}\n"]

    def right(self, row: Row) -> Sequence[int]:
        return [0]

    def golds(self, row: Row) -> list[str]:
        raise NotImplementedError

    def answers(self, row: Row) -> Sequence[str]:
        """All gold answers in the row's order, repetitions once."""
        golds = (gold.strip() for gold in self.golds(row))
        found = tuple(dict.fromkeys(gold for gold in golds if gold))
        if not found:
            raise ValueError(f"question {row.get('id', row['question'])!r} has no answer")
        return found


class SQuAD(FreeText):
    def prompt(self, row: Row) -> str:
        question = text(row, "question").strip()
        return f"Title: {text(row, 'title')}\nContext: {text(row, 'context')}\nQuestion: {question}\nAnswer:"

    def golds(self, row: Row) -> list[str]:
        return texts(row["answers"]["text"], "answers.text")


class DROP(FreeText):
    """The spans of an answer count as alternatives, which is not DROP's own metric."""

    def prompt(self, row: Row) -> str:
        return f"Passage: {text(row, 'passage')}\nQuestion: {text(row, 'question').strip()}\nAnswer:"

    def golds(self, row: Row) -> list[str]:
        return texts(row["answers_spans"]["spans"], "answers_spans.spans")
