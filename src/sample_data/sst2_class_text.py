"""What a class of the invented movie reviews is made of."""

from dataclasses import dataclass

NEGATIVE, POSITIVE = 0, 1


@dataclass(frozen=True)
class ClassText:
    """Hand-written text of one class: whole sentences, and the fragments for each slot of `PATTERNS`."""

    label: int
    sentences: tuple[str, ...]
    fragments: dict[str, tuple[str, ...]]
