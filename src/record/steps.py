"""The public transcript's format: a header, one line a step, a closing line, chained as in `chain.py`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from src.record.chain import Record, RecordError, RecordFile, RecordWriter, load_records

FORMAT = 3


@dataclass(frozen=True)
class StepRecord:
    """One step as it is published: all that an update depends on besides the parameters.

    Attributes:
        step: 0, 1, 2, ...
        seeds: of the step's K directions.
        coefficients: the K released values, -1.0 or 1.0 under a private mechanism.
        learning_rate: of this step.
    """

    step: int
    seeds: tuple[int, ...]
    coefficients: tuple[float, ...]
    learning_rate: float

    def __post_init__(self) -> None:
        if not self.seeds or len(self.seeds) != len(self.coefficients):
            counts = f"{len(self.seeds)} seeds and {len(self.coefficients)} coefficients"
            raise ValueError(f"step {self.step} has {counts}")


@dataclass(frozen=True)
class Transcript:
    """A transcript as read.

    Attributes:
        path: of the file.
        head: the header.
        steps: the records, in order.
        end: the closing line, None where the run has not ended.
        content: the file behind it.
    """

    path: Path
    head: Record
    steps: list[StepRecord]
    end: Record | None
    content: RecordFile

    def check_finished(self) -> None:
        """Raises `RecordError` where the closing line is missing."""
        if self.end is None:
            raise RecordError(
                f"{self.path} has no closing line: lines are missing or the run has not ended;"
                " --unfinished takes it as it is"
            )


class TranscriptWriter:
    """Creates a transcript; every step is on disk before `append` returns.

    Args:
        path: must not exist.
        head: from `header`.

    Raises:
        UserError: `path` exists.
    """

    def __init__(self, path: Path, head: Record) -> None:
        self._writer = RecordWriter(path, head)
        self.num_steps = 0

    @classmethod
    def resume(cls, past: Transcript) -> TranscriptWriter:
        """Goes on after the last complete line."""
        writer = cls.__new__(cls)
        writer._writer = RecordWriter.resume(past.content)
        writer.num_steps = len(past.steps)
        return writer

    @property
    def chain(self) -> str:
        return self._writer.chain

    def append(self, record: StepRecord) -> None:
        """`RecordError` where it is not the next step."""
        if record.step != self.num_steps:
            raise RecordError(f"step {record.step} is recorded where step {self.num_steps} belongs")
        self._writer.append(
            {
                "step": record.step,
                "seeds": list(record.seeds),
                "coefficients": list(record.coefficients),
                "learning_rate": record.learning_rate,
            }
        )
        self.num_steps += 1

    def end(self, trainable_checksum: str | None) -> None:
        """The closing line: the number of steps, and what the trainable parameters are after them."""
        self._writer.append({"end": self.num_steps, "trainable_checksum": trainable_checksum})

    def close(self) -> None:
        self._writer.close()


def load(path: str | Path) -> Transcript:
    """A transcript, its last line perhaps incomplete (`content.tail`); `RecordError` where it does not hold."""
    content = load_records(path)
    if not content.records:
        raise RecordError(f"{path} has no complete line")
    head, *lines = content.records
    if head.get("format") != FORMAT:
        raise RecordError(f"{path} is no transcript of format {FORMAT}, but {head.get('format')}")
    end = lines.pop() if lines and "end" in lines[-1] else None
    steps = [_step(path, number, line) for number, line in enumerate(lines)]
    if end is not None and end["end"] != len(steps):
        raise RecordError(f"{path} closes after {end['end']} steps but has {len(steps)}")
    return Transcript(Path(path), head, steps, end, content)


def load_complete(path: str | Path) -> Transcript:
    """As `load`; an incomplete last line is refused."""
    transcript = load(path)
    if transcript.content.tail:
        raise RecordError(f"{path}: the last line is incomplete; resuming the run completes it")
    return transcript


def read(path: str | Path) -> tuple[Record, list[StepRecord]]:
    """Header and step records; raises `RecordError` where the file does not hold."""
    transcript = load_complete(path)
    return transcript.head, transcript.steps


def check_same(past: Transcript, head: Record) -> None:
    """Raises `RecordError` naming what a run to be resumed has otherwise than the new `head` says."""
    head = json.loads(json.dumps(head))
    for where, left, right in (("", past.head, head), ("public ", past.head["public"], head["public"])):
        for name in sorted({*left, *right}):
            if name != "public" and left.get(name) != right.get(name):
                values = f": was {left.get(name)!r}, is {right.get(name)!r}"
                shown = values if len(values) < 200 else ""
                raise RecordError(f"{past.path} is of another run: {where}{name} differs{shown}")


def _step(path: str | Path, number: int, line: Record) -> StepRecord:
    try:
        record = StepRecord(line["step"], tuple(line["seeds"]), tuple(line["coefficients"]), line["learning_rate"])
    except (KeyError, TypeError, ValueError) as error:
        raise RecordError(f"{path} line {number + 2} is not a step") from error
    if record.step != number:
        raise RecordError(f"{path} line {number + 2} is step {record.step} where step {number} belongs")
    return record
