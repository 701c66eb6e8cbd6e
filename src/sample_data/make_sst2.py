"""Writes the invented movie-review sentences in `sst2/train.jsonl` and `sst2/validation.jsonl`.

    python -m src.sample_data.make_sst2            writes both files
    python -m src.sample_data.make_sst2 --check    exits 1 with one line if a file differs

Each class has its own hand-written sentences and its own hand-written fragments; the sentence patterns and
the grammatical subjects are shared, so that neither gives the label away.
"""

import argparse
import json
import random
import re
import string
import sys
from collections.abc import Iterator
from pathlib import Path

from src.sample_data.sst2_class_text import ClassText
from src.sample_data.sst2_negative import NEGATIVE_TEXT
from src.sample_data.sst2_positive import POSITIVE_TEXT

DATA_DIR = Path(__file__).parent / "sst2"
SEED = 20260
ROWS_PER_CLASS = {"train": 180, "validation": 40}
MIN_WORDS, MAX_WORDS = 3, 25
MAX_ATTEMPTS = 1000

SUBJECTS = (
    "the film",
    "this film",
    "the movie",
    "this movie",
    "the picture",
    "this adaptation",
    "the whole production",
    "this little film",
    "the director's second feature",
    "this late-night curiosity",
)

# A slot name followed by a digit draws a further fragment from the same slot.
PATTERNS = (
    "{verdict}",
    "{verdict} that {does}",
    "{verdict} in which {aspect}",
    "{verdict} that {does}, although {admission}",
    "{opening} {verdict}",
    "{subject} {does}",
    "{subject} {does}, and {feeling}",
    "{subject} {does}, and {aspect}",
    "{concession}, {subject} {does}",
    "{concession}, {subject} is {understated}",
    "{admission}, but {aspect}",
    "{admission}, yet {subject} {does}",
    "{admission}; still, {feeling}",
    "{aspect}, and {aspect2}",
    "{aspect}, {aspect2} and {aspect3}",
    "{aspect}, and {audience}",
    "{verdict}, and {audience}",
    "{subject} is {adjective}, {adjective2} and {adjective3}",
    "{subject} is {adjective}, and {feeling}",
    "{subject} is {understated}, and {aspect}",
    "{emphasis} {aspect}",
    "{subject} {does}, and {audience}",
)


def shuffled(items: tuple[str, ...] | list[str], rng: random.Random) -> list[str]:
    """Returns the items in random order.

    Sorts on `rng.random()`, the only draw whose sequence Python promises to keep between versions.
    """
    keyed = [(rng.random(), item) for item in items]
    return [item for _, item in sorted(keyed)]


def deal_forever(items: tuple[str, ...], rng: random.Random) -> Iterator[str]:
    """Yields every item once in random order before any item comes again."""
    while True:
        yield from shuffled(items, rng)


def repeats_a_content_word(sentence: str) -> bool:
    """Whether two words of four or more letters share their first five letters ("patient", "patience")."""
    function_words = {"that", "with", "from", "this", "when", "than", "even", "there", "have", "will"}
    stems = [word[:5] for word in re.findall(r"[a-z]{4,}", sentence) if word not in function_words]
    return len(stems) != len(set(stems))


def compose(text: ClassText, count: int, rng: random.Random) -> list[str]:
    """Returns `count` different sentences composed from the class's fragments, the patterns taken in turn.

    Raises:
        RuntimeError: `MAX_ATTEMPTS` draws for one pattern gave no new sentence, so too many are asked for.
    """
    slots = {**text.fragments, "subject": SUBJECTS}
    decks = {slot: deal_forever(fragments, rng) for slot, fragments in slots.items()}
    patterns = deal_forever(PATTERNS, rng)
    sentences: dict[str, None] = {}
    while len(sentences) < count:
        pattern = next(patterns)
        fields = [field for _, field, _, _ in string.Formatter().parse(pattern) if field]
        for _ in range(MAX_ATTEMPTS):
            sentence = pattern.format(**{field: next(decks[field.rstrip("0123456789")]) for field in fields})
            fits = MIN_WORDS <= len(sentence.split()) <= MAX_WORDS
            if fits and sentence not in sentences and not repeats_a_content_word(sentence):
                sentences[sentence] = None
                break
        else:
            raise RuntimeError(f"no new sentence for {pattern!r} after {len(sentences)} of {count}")
    return list(sentences)


def build_splits() -> dict[str, list[tuple[str, int]]]:
    """Returns the (sentence, label) rows of each split, in file order."""
    rng = random.Random(SEED)
    labels: dict[str, int] = {}
    sentences_of_split: dict[str, list[str]] = {split: [] for split in ROWS_PER_CLASS}
    for text in (NEGATIVE_TEXT, POSITIVE_TEXT):
        composed = compose(text, sum(ROWS_PER_CLASS.values()) - len(text.sentences), rng)
        pool = shuffled([*text.sentences, *composed], rng)
        labels.update(dict.fromkeys(pool, text.label))
        start = 0
        for split, count in ROWS_PER_CLASS.items():
            sentences_of_split[split] += pool[start : start + count]
            start += count
    return {
        split: [(sentence, labels[sentence]) for sentence in shuffled(sentences, rng)]
        for split, sentences in sentences_of_split.items()
    }


def render_files() -> dict[Path, bytes]:
    """Returns the exact content of each data file."""
    files = {}
    for split, rows in build_splits().items():
        lines = [
            json.dumps({"idx": idx, "sentence": sentence, "label": label})
            for idx, (sentence, label) in enumerate(rows)
        ]
        files[DATA_DIR / f"{split}.jsonl"] = ("\n".join(lines) + "\n").encode("ascii")
    return files


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Writes, or checks, the invented SST-2-like sample data.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file differs")
    check = parser.parse_args(arguments).check
    files = render_files()
    if check:
        found = {path: path.read_bytes() if path.is_file() else None for path in files}
        stale = [path.name for path, content in files.items() if found[path] != content]
        if stale:
            print(f"{', '.join(stale)}: not what make_sst2 writes", file=sys.stderr)
            return 1
        return 0
    DATA_DIR.mkdir(exist_ok=True)
    for path, content in files.items():
        path.write_bytes(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
