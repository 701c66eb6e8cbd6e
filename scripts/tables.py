"""Tables in Markdown, and where their figures come from."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

Figures = dict[str, Any]


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, with the line break at its end."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def measured_on(sources: Sequence[Figures]) -> str:
    """The machines, dates and versions of what a table shows."""
    found = []
    for figures in sources:
        versions = figures["versions"]
        libraries = f"torch {versions['torch']}, transformers {versions['transformers']}"
        found.append(f"{figures['device']}, {figures['threads']} threads, {figures['date']}, {libraries}")
    return "\n" + ".\n".join(dict.fromkeys(found)) + ".\n" if found else ""


def mean_and_spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over draws, and how many there are."""
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread} % (of {len(values)})"


def duration(seconds: float, digits: int = 2) -> str:
    """In seconds, in milliseconds below a tenth of one."""
    return f"{seconds:.{digits}f} s" if seconds >= 0.1 else f"{1000 * seconds:.1f} ms"


def accuracy(values: Sequence[float]) -> str:
    """Mean and standard deviation of shares."""
    return f"{100 * statistics.mean(values):.1f} ± {100 * statistics.stdev(values):.1f} %"
