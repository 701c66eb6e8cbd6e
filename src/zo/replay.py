"""What a transcript's header says of a model, and the way back: the model that a transcript gives."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from src.models import add_track
from src.record.chain import Record, RecordError
from src.record.fingerprint import checksum, frozen_checksum
from src.record.steps import FORMAT, Transcript, load_complete
from src.tracks import track_of
from src.utils import versions
from src.zo.directions import ParameterSpace
from src.zo.noise import BLOCK_SIZE

ModelT = TypeVar("ModelT", bound=nn.Module)


def header(model: nn.Module, space: ParameterSpace, public: Record) -> Record:
    """The first line of a transcript: all that a replay needs besides the base model, and `public`.

    Args:
        model: at the parameters the run starts from.
        space: of that model.
        public: further facts, e.g. the base model's name and the run's settings; all of it is published.
    """
    track = track_of(model)
    return {
        "format": FORMAT,
        "start": _start(model, space.decayed),
        "weight_decay": space.weight_decay,
        "inplace": space.inplace,
        "dtype": str(getattr(model, "dtype", None) or next(model.parameters()).dtype),
        "track": None if track is None else track.to_dict(),
        "device": device_name(next(iter(space.parameters.values())).device),
        "versions": versions(),
        "public": public,
    }


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    return f"{platform.machine()} {device.type}"


def replay(model: ModelT, path: str | Path, *, steps: int | None = None) -> ModelT:
    """Apply a transcript to the model it started from, in place.

    A transcript that ends early without a closing line is taken as it is: a run that has not ended. Whoever
    needs to exclude a cut one calls `load(path).check_finished()`.

    Args:
        model: the base model, on the device type of the run. The run's track is added to it.
        path: of the transcript.
        steps: how many of its steps to apply; None for all.

    Returns:
        `model`, or its peft wrapper where the run trained adapters.

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
    """The model with the run's track, and its space; `RecordError` if it is not what the run started from."""
    head, path = transcript.head, transcript.path
    if head["inplace"]:
        raise RecordError(f"{path} is of a run with zo_inplace, whose rounding a replay cannot repeat")
    if head["track"] is not None and track_of(model) is None:
        model = add_track(model, head["track"])  # type: ignore[assignment, arg-type]
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
