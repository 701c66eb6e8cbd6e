"""Writes a few invented rows for each task but SST-2, in the row format of its data set on the hub.

    python -m src.sample_data.make_tasks            writes the files
    python -m src.sample_data.make_tasks --check    exits 1 with one line if a file differs

Everything is made of the tables in `task_tables.py`, so every label follows from them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from src.sample_data.task_tables import EVENTS, FEELINGS, HELD_OUT, PEOPLE, REVIEWS, SENSES, Person

FOLDER = Path(__file__).parent
Row = dict[str, Any]


def other(number: int) -> Person:
    """Somebody else of the same file."""
    first, size = (
        (0, len(PEOPLE) - HELD_OUT) if number < len(PEOPLE) - HELD_OUT else (len(PEOPLE) - HELD_OUT, HELD_OUT)
    )
    return PEOPLE[first + (number - first + 1) % size]


def sst5(number: int, who: Person) -> Iterator[Row]:
    for label in (number % 5, (number + 2) % 5):
        short, long = REVIEWS[label]
        subject = ("the film", "this comedy", "the sequel", "her debut")[number // 5]
        text = f"{subject} about a {who.job} is {short} , {long} ."
        yield {"text": text, "label": label, "label_text": FEELINGS[label]}


def trec(number: int, who: Person) -> Iterator[Row]:
    abbreviation = "".join(word[0] for word in (who.first, who.last, *who.town.split())).upper()
    asked = (
        (f"What does {abbreviation} stand for ?", 0, 1),
        (f"What animal does {who.name} keep ?", 1, 2),
        (f"Why did {who.name} move to {who.town} ?", 2, 27),
        (f"Who is the {who.job} of {who.town} ?", 3, 29),
        (f"Where does {who.name} live ?", 4, 35),
        (f"How many {who.animal} does {who.name} keep ?", 5, 38),
    )
    for text, coarse, fine in (asked[number % 6], asked[(number + 3) % 6]):
        yield {"text": text, "coarse_label": coarse, "fine_label": fine}


def pairs(number: int, who: Person) -> tuple[str, tuple[str, ...]]:
    """A premise, and what follows from it, what may be so, and what cannot be."""
    place = other(number).town
    premise = f"{who.name} is a {who.job} and lives in {who.town} ."
    return premise, (
        f"{who.first} lives in {who.town} .",
        f"{who.first} likes {place} .",
        f"{who.first} has no job .",
    )


def mnli(number: int, who: Person) -> Iterator[Row]:
    for idx, row in enumerate(snli(number, who)):
        yield {**row, "idx": 3 * number + idx}


def snli(number: int, who: Person) -> Iterator[Row]:
    premise, hypotheses = pairs(number, who)
    for label, hypothesis in enumerate(hypotheses):
        yield {"premise": premise, "hypothesis": hypothesis, "label": label}


def unlabelled_snli(number: int, who: Person) -> Iterator[Row]:
    """As `snli`, and for some people a row on which the annotators did not agree."""
    yield from snli(number, who)
    if number % 4 == 0:
        premise, hypotheses = pairs(number, who)
        yield {"premise": premise, "hypothesis": hypotheses[1].replace("likes", "knows"), "label": -1}


def rte(number: int, who: Person) -> Iterator[Row]:
    premise, hypotheses = pairs(number, who)
    for label, hypothesis in enumerate(hypotheses[:2]):
        yield {"premise": premise, "hypothesis": hypothesis, "idx": 2 * number + label, "label": label}


def cb(number: int, who: Person) -> Iterator[Row]:
    claim = f"the {who.thing} was broken"
    heard = (f"{who.name} was sad because {claim}.", f"{who.name} was glad. Nobody thinks that {claim}.")
    for label, premise in enumerate((*heard, f"{who.name} looked up. Could it be that {claim}?")):
        yield {"premise": premise, "hypothesis": claim, "idx": 3 * number + label, "label": label}


def passage(number: int, who: Person) -> str:
    return (
        f"{who.name} is a {who.job} in {who.town}. {who.pronoun.capitalize()} keeps {who.animals} {who.animal}"
        f" and owns a {who.thing}, which came from {other(number).name} of {other(number).town}."
    )


def boolq(number: int, who: Person) -> Iterator[Row]:
    for town, answer in ((who.town, True), (other(number).town, False)):
        yield {"question": f"does {who.name} work in {town}", "answer": answer, "passage": passage(number, who)}


def multirc(number: int, who: Person) -> Iterator[Row]:
    for count, (town, label) in enumerate(((who.town, 1), (other(number).town, 0))):
        yield {
            "paragraph": passage(number, who),
            "question": f"Where does {who.name} work?",
            "answer": town,
            "idx": {"paragraph": number, "question": number, "answer": 2 * number + count},
            "label": label,
        }


def wic(number: int, who: Person) -> Iterator[Row]:
    word, first, second, different = SENSES[number]
    for idx, (sentence, label) in enumerate(((second, 1), (different, 0))):
        row: Row = {"word": word, "sentence1": first, "sentence2": sentence}
        for place, text in ((1, first), (2, sentence)):
            row[f"start{place}"] = text.index(word)
            row[f"end{place}"] = text.index(word) + len(word)
        yield {**row, "idx": 2 * number + idx, "label": label}


def wsc(number: int, who: Person) -> Iterator[Row]:
    giver = other(number)  # a neighbour in the table, so of the other pronoun
    text = f"{giver.first} gave the {who.thing} to {who.first} because {who.pronoun} had asked for it."
    words = text.split()
    for idx, (name, label) in enumerate(((who.first, 1), (giver.first, 0))):
        yield {
            "text": text,
            "span1_index": words.index(name),
            "span2_index": words.index(who.pronoun),
            "span1_text": name,
            "span2_text": who.pronoun,
            "idx": 2 * number + idx,
            "label": label,
        }


def copa(number: int, who: Person) -> Iterator[Row]:
    mine, others = EVENTS[number], EVENTS[PEOPLE.index(other(number))]
    for idx, question in enumerate(("cause", "effect")):
        premise, place = (mine[1], 0) if question == "cause" else (mine[0], 1)
        label = (number + idx) % 2
        choices = [others[place], mine[place]] if label else [mine[place], others[place]]
        row = {"premise": premise, "choice1": choices[0], "choice2": choices[1], "question": question}
        yield {**row, "idx": 2 * number + idx, "label": label}


def record(number: int, who: Person) -> Iterator[Row]:
    friend = other(number)
    text = (
        f"{who.name}, a {who.job} from {who.town}, met {friend.name} in {friend.town} on Monday. "
        f"They spoke about {who.animal}.\n@highlight\n{who.last} left {who.town} by train\n@highlight\n"
        f"{friend.last} stayed in {friend.town}"
    )
    entities = sorted({who.name, who.last, friend.name, friend.last, who.town, friend.town})
    starts = [text.index(entity) for entity in entities]
    for idx, (query, answers) in enumerate(
        (
            (f"On Tuesday @placeholder was back at work as a {who.job}.", [who.name, who.last]),
            (f"The {who.animal} of {who.last} had waited in @placeholder.", [who.town]),
        )
    ):
        yield {
            "passage": text,
            "query": query,
            "entities": entities,
            "entity_spans": {
                "text": entities,
                "start": starts,
                "end": [start + len(entity) for start, entity in zip(starts, entities, strict=True)],
            },
            "answers": answers,
            "idx": {"passage": number, "query": 2 * number + idx},
        }


def squad(number: int, who: Person) -> Iterator[Row]:
    context = passage(number, who)
    asked = (
        (f"Where does {who.name} work?", who.town),
        (f"Whom did the {who.thing} come from?", other(number).name),
    )
    for idx, (question, answer) in enumerate(asked):
        yield {
            "id": f"sample-{2 * number + idx}",
            "title": who.town,
            "context": context,
            "question": question,
            "answers": {"text": [answer], "answer_start": [context.index(answer)]},
        }


def drop(number: int, who: Person) -> Iterator[Row]:
    asked = (
        (f"How many {who.animal} does {who.name} keep?", str(who.animals), "number"),
        (f"What does {who.name} own?", who.thing, "span"),
    )
    for idx, (question, answer, kind) in enumerate(asked):
        yield {
            "section_id": f"sample_{number}",
            "query_id": f"sample-{2 * number + idx}",
            "passage": passage(number, who),
            "question": question,
            "answers_spans": {"spans": [answer], "types": [kind]},
        }


MAKERS = {
    **{maker.__name__: maker for maker in (sst5, trec, mnli, rte, cb, boolq, multirc, wic, wsc, copa, record)},
    "snli": unlabelled_snli,
    "squad": squad,
    "drop": drop,
}


def render_files() -> dict[Path, str]:
    """The exact content of each file."""
    files = {}
    numbered = list(enumerate(PEOPLE))
    for name, maker in MAKERS.items():
        for split, members in (("train", numbered[:-HELD_OUT]), ("validation", numbered[-HELD_OUT:])):
            rows = [row for number, who in members for row in maker(number, who)]
            files[FOLDER / name / f"{split}.jsonl"] = "".join(json.dumps(row) + "\n" for row in rows)
    return files


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Writes, or checks, the invented rows of the tasks.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file differs")
    check = parser.parse_args(arguments).check
    stale = {p: text for p, text in render_files().items() if not p.is_file() or p.read_text("utf-8") != text}
    if check and stale:
        names = ", ".join(f"{path.parent.name}/{path.name}" for path in stale)
        print(f"{names}: not what make_tasks writes", file=sys.stderr)
        return 1
    for path, text in stale.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
