"""The public record of a run: a header, one line a step, and a closing line. The model is a function of it.

python -m src.transcript replay --model M --transcript T --out DIR
python -m src.transcript verify --model M --transcript T --checkpoint DIR
"""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from peft import PeftModel
from torch import nn

from src.lora import LoraSettings, add_lora
from src.records import Record, RecordError, RecordFile, RecordWriter, load_records
from src.utils import run_cli, versions
from src.zo import BLOCK_SIZE, ParameterSpace, StepRecord, checksum, frozen_checksum

FORMAT = 2
ModelT = TypeVar("ModelT", bound=nn.Module)


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


def header(model: nn.Module, space: ParameterSpace, public: Record) -> Record:
    """The first line of a transcript: all that a replay needs besides the base model, and `public`.

    Args:
        model: at the parameters the run starts from.
        space: of that model.
        public: further facts, e.g. the base model's name and the run's settings; all of it is published.
    """
    settings = getattr(model, "lora_settings", None)
    return {
        "format": FORMAT,
        "start": _start(model, space.decayed),
        "weight_decay": space.weight_decay,
        "inplace": space.inplace,
        "dtype": str(getattr(model, "dtype", None) or next(model.parameters()).dtype),
        "lora": None if settings is None else settings.to_dict(),
        "device": device_name(next(iter(space.parameters.values())).device),
        "versions": versions(),
        "public": public,
    }


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    return f"{platform.machine()} {device.type}"


def load(path: str | Path) -> Transcript:
    """A transcript, its last line perhaps incomplete (`content.tail`); `RecordError` where it does not hold."""
    content = load_records(path)
    if not content.records:
        raise RecordError(f"{path} has no complete line")
    head, *lines = content.records
    if head.get("format") != FORMAT:
        raise RecordError(f"{path} is no transcript of format {FORMAT}")
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


def replay(model: ModelT, path: str | Path, *, steps: int | None = None) -> ModelT:
    """Apply a transcript to the model it started from, in place.

    A transcript that ends early without a closing line is taken as it is: a run that has not ended. Whoever
    needs to exclude a cut one calls `load(path).check_finished()`.

    Args:
        model: the base model, on the device type of the run. Adapters are added where the run trained some.
        path: of the transcript.
        steps: how many of its steps to apply; None for all.

    Returns:
        `model`, or its peft wrapper where the transcript is of a LoRA run.

    Raises:
        RecordError: the transcript is damaged, `model` is not what it started from, or this machine's
            arithmetic gives other parameters than the run had at its end.
    """
    transcript = load_complete(path)
    if steps is not None and not 0 <= steps <= len(transcript.steps):
        raise RecordError(f"{path} has {len(transcript.steps)} steps, not {steps}")
    model, space = at_start(model, transcript)
    for record in transcript.steps[:steps]:
        space.apply(record)
    if steps is None or steps == len(transcript.steps):
        check_end(space, transcript)
    return model


def at_start(model: ModelT, transcript: Transcript) -> tuple[ModelT, ParameterSpace]:
    """The model with the run's adapters, and its space; `RecordError` if it is not what the run started from."""
    head, path = transcript.head, transcript.path
    if head["inplace"]:
        raise RecordError(f"{path} is of a run with zo_inplace, whose rounding a replay cannot repeat")
    if head["lora"] is not None and not isinstance(model, PeftModel):
        model = add_lora(model, LoraSettings.from_dict(head["lora"]))  # type: ignore[assignment, arg-type]
    stated = head["start"]
    decayed = frozenset(entry["name"] for entry in stated["parameters"] if entry["decayed"])
    actual = _start(model, decayed)
    for what, value in stated.items():
        if actual.get(what) != value:
            raise RecordError(f"{path} started from another model: its {what.replace('_', ' ')} differ(s)")
    return model, ParameterSpace(model, head["weight_decay"], decayed)


def check_end(space: ParameterSpace, transcript: Transcript) -> None:
    """Raises `RecordError` where the parameters after the last step are not those that the run had."""
    stated = transcript.end and transcript.end["trainable_checksum"]
    if stated and space.checksum() != stated:
        raise RecordError(
            f"{transcript.path}: the replay gives other parameters than the run, which was made on"
            f" {transcript.head['device']} with torch {transcript.head['versions']['torch']}"
        )


def check_same(past: Transcript, head: Record) -> None:
    """Raises `RecordError` naming what a run to be resumed has otherwise than the new `head` says."""
    head = json.loads(json.dumps(head))
    for where, left, right in (("", past.head, head), ("public ", past.head["public"], head["public"])):
        for name in sorted({*left, *right}):
            if name != "public" and left.get(name) != right.get(name):
                values = f": was {left.get(name)!r}, is {right.get(name)!r}"
                shown = values if len(values) < 200 else ""
                raise RecordError(f"{past.path} is of another run: {where}{name} differs{shown}")


def _start(model: nn.Module, decayed: frozenset[str]) -> Record:
    """What a replay must find as it was when the run started."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return {
        "parameters": [
            {"name": name, "shape": list(p.shape), "dtype": str(p.dtype), "decayed": name in decayed}
            for name, p in trainable.items()
        ],
        "device_types": sorted({p.device.type for p in trainable.values()}),
        "block_size": BLOCK_SIZE,
        "trainable_checksum": checksum(trainable.values()),
        "frozen_checksum": frozen_checksum(model),
    }


def _step(path: str | Path, number: int, line: Record) -> StepRecord:
    try:
        record = StepRecord(line["step"], tuple(line["seeds"]), tuple(line["coefficients"]), line["learning_rate"])
    except (KeyError, TypeError, ValueError) as error:
        raise RecordError(f"{path} line {number + 2} is not a step") from error
    if record.step != number:
        raise RecordError(f"{path} line {number + 2} is step {record.step} where step {number} belongs")
    return record


if __name__ == "__main__":
    from src.replay import main

    run_cli(main)
