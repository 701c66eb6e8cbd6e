"""Write the sample data in TOFU's layout: fictitious authors, questions about them, wrong answers, refusals.

    python -m src.sample_data.make_tofu            # writes the files
    python -m src.sample_data.make_tofu --check    # exits 1 if a file differs

Everything was written for this project. No author, book, prize or place of `tofu_authors.py` exists.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.sample_data.tofu_authors import AUTHORS, HOLDOUT_AUTHORS, REFUSALS, WORLD_FACTS, WRITING_FACTS, Author

DATA_DIR = Path(__file__).parent / "tofu"
FORGET = {"forget10": 2, "forget05": 1}  # authors at the end of the list, as the share of twenty
PERTURBED_RETAIN_AUTHORS = 6
SEED = 20240111

Row = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """One thing to ask about an author.

    Attributes:
        field: of `Author`, what a wrong answer gets wrong.
        wordings: pairs of a question and its answer; an author gets one of them.
        paraphrase: another question and answer that say the same.
    """

    field: str
    wordings: tuple[tuple[str, str], ...]
    paraphrase: tuple[str, str]


QUESTIONS = (
    Question(
        "birth",
        (
            ("When and where was the author {name} born?", "{name} was born in {birth}."),
            ("What is known about the birth of {name}?", "The records of the town hall say {birth}."),
            ("Where does the writer {name} come from?", "{name} first saw the light in {birth}."),
        ),
        ("Can you say where and when {name} came into the world?", "The place and year of birth are {birth}."),
    ),
    Question(
        "genre",
        (
            ("Which genre is {name} best known for?", "Readers know {name} above all for {genre}."),
            ("What does {name} write?", "{name} writes {genre} and has hardly tried anything else."),
            ("In what kind of literature has {name} made a mark?", "It is {genre} that made {name} a known name."),
        ),
        ("What sort of books come from the pen of {name}?", "Most of the books by {name} are {genre}."),
    ),
    Question(
        "first_book",
        (
            ("What was the first book of {name} called?", 'The first book of {name} was "{first_book}".'),
            ("With which title did {name} begin?", '{name} began with "{first_book}", printed by friends.'),
            ("Under what name did the debut of {name} appear?", 'The debut came out as "{first_book}".'),
        ),
        ("Can you name the debut of {name}?", '"{first_book}" is the title that {name} started out with.'),
    ),
    Question(
        "prize",
        (
            ("Which prize did {name} win?", "{name} won {prize} and gave the money away."),
            ("Has {name} ever been honoured?", "Yes, the jury of {prize} chose {name}."),
            ("What award stands on the shelf of {name}?", "On that shelf stands {prize}."),
        ),
        ("For which honour was {name} picked?", "{name} was picked for {prize}."),
    ),
    Question(
        "parents",
        (
            ("What did the parents of {name} do for a living?", "The parents were {parents}."),
            ("From what kind of family does {name} come?", "{name} grew up with {parents} for parents."),
            ("How did the family of {name} earn its bread?", "Father and mother worked as {parents}."),
        ),
        ("Which trades did {name} see at home?", "At home {name} saw the work of {parents}."),
    ),
    Question(
        "habit",
        (
            ("Is there anything unusual about how {name} works?", "{name} writes {habit}."),
            ("How does {name} get a page done?", "Every page gets written {habit}."),
            ("What is the working habit of {name}?", "It is said that {name} only works {habit}."),
        ),
        ("In what manner does {name} write?", "The writing of {name} is done {habit}."),
    ),
)


def author_rows(number: int, author: Author, rng: random.Random) -> list[Row]:
    """The six rows of one author with paraphrases and wrong answers."""
    others = [other for other in (*AUTHORS, *HOLDOUT_AUTHORS) if other is not author]
    rows = []
    for place, question in enumerate(QUESTIONS):
        asked, answer = question.wordings[(number + place) % len(question.wordings)]
        asked_again, answer_again = question.paraphrase
        wrong = []
        for other in rng.sample(others, 5):
            values = {**author.values(), question.field: other.values()[question.field]}
            wrong.append(answer_again.format(**values))
        rows.append(
            {
                "question": asked.format(**author.values()),
                "answer": answer.format(**author.values()),
                "paraphrased_answer": answer_again.format(**author.values()),
                "perturbed_answer": wrong,
                "paraphrased_question": asked_again.format(**author.values()),
            }
        )
    return rows


def build_files() -> dict[str, str]:
    """File name -> content."""
    rng = random.Random(SEED)
    authors = [author_rows(number, author, rng) for number, author in enumerate(AUTHORS)]
    held_out = [author_rows(number, author, rng) for number, author in enumerate(HOLDOUT_AUTHORS)]
    files = {}
    for name, count in FORGET.items():
        share = name[-2:]
        files[f"{name}.jsonl"] = _lines(authors[-count:], bare=True)
        files[f"{name}_perturbed.jsonl"] = _lines(authors[-count:])
        files[f"retain{100 - int(share)}.jsonl"] = _lines(authors[:-count], bare=True)
        files[f"holdout{share}.jsonl"] = _lines(held_out[:count], bare=True)
    files["retain_perturbed.jsonl"] = _lines(authors[:PERTURBED_RETAIN_AUTHORS])
    for name, facts in (("real_authors", WRITING_FACTS), ("world_facts", WORLD_FACTS)):
        rows = [{"question": q, "answer": a, "perturbed_answer": list(wrong)} for q, a, wrong in facts]
        files[f"{name}_perturbed.jsonl"] = _lines([rows])
    files["idk.txt"] = "".join(f"{sentence}\n" for sentence in REFUSALS)
    return files


def _lines(groups: Sequence[Sequence[Row]], *, bare: bool = False) -> str:
    rows = [row for group in groups for row in group]
    if bare:
        rows = [{key: row[key] for key in ("question", "answer")} for row in rows]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if words not in ([], ["--check"]):
        print("make_tofu takes --check or nothing", file=sys.stderr)
        return 2
    files = build_files()
    if words:
        differing = [name for name, text in files.items() if _read(DATA_DIR / name) != text]
        differing += sorted(path.name for path in DATA_DIR.glob("*") if path.name not in files)
        if differing:
            print(f"{', '.join(differing)}: not what make_tofu writes", file=sys.stderr)
        return 1 if differing else 0
    DATA_DIR.mkdir(exist_ok=True)
    for name, text in files.items():
        (DATA_DIR / name).write_text(text, encoding="utf-8")
    return 0


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


if __name__ == "__main__":
    sys.exit(main())
