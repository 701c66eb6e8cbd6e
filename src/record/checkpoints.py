"""The library's checkpoint folders: which are complete, and whether their weights are the expected ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from src.record.chain import RecordError
from src.utils import UserError

# Of a track whose files are this project's own.
TRACK_WEIGHTS = "track.safetensors"
WEIGHTS = ("model.safetensors", "adapter_model.safetensors", TRACK_WEIGHTS, "model.safetensors.index.json")
# What the library writes besides the weights, the last of them last.
STATE_FILES = ("optimizer.pt", "scheduler.pt", "trainer_state.json")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint folder, and the number of steps before it."""

    path: Path
    step: int


def open_checkpoint(folder: Path) -> Checkpoint | None:
    """The checkpoint in a folder; None where a process died while it wrote or deleted it."""
    if not all((folder / name).is_file() for name in STATE_FILES):
        return None
    if not any((folder / name).is_file() for name in WEIGHTS):
        return None
    step = stated_step(folder)
    return None if step is None else Checkpoint(folder, step)


def stated_step(folder: Path) -> int | None:
    """The step that a checkpoint's trainer state names; None where there is no readable one."""
    try:
        step = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return step if isinstance(step, int) else None


def choose_checkpoint(folder: Path, wanted: str | None) -> Checkpoint | None:
    """The checkpoint to go on from.

    Args:
        folder: of a run's checkpoints.
        wanted: path of one of them; None for the latest complete one, if any.

    Raises:
        UserError: the wanted one is missing or incomplete.
    """
    if wanted is not None:
        checkpoint = open_checkpoint(Path(wanted))
        if checkpoint is None:
            raise UserError(f"{wanted} is no complete checkpoint; --resume_from_checkpoint True takes the latest")
        return checkpoint
    candidates = [found for path in folder.glob("checkpoint-*") if (found := open_checkpoint(path)) is not None]
    return max(candidates, key=lambda checkpoint: checkpoint.step, default=None)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, by the names they have in its files; `UserError` if they cannot be read."""
    found = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        raise UserError(f"{folder} holds none of {', '.join(WEIGHTS)}")
    try:
        if found.suffix == ".safetensors":
            return load_file(found)
        parts = set(json.loads(found.read_text(encoding="utf-8"))["weight_map"].values())
        return {name: tensor for part in sorted(parts) for name, tensor in load_file(folder / part).items()}
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"cannot read {found}: {error}") from error


def weights_size(folder: Path) -> int:
    """Bytes of a checkpoint's weights."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def first_difference(parameters: Mapping[str, nn.Parameter], saved: Mapping[str, Tensor]) -> str | None:
    """Name of a parameter that is not bit for bit in `saved`, the smaller ones tried first; None where all are.

    peft may store half-precision adapters in float32, which holds the same values.
    """
    for name, parameter in sorted(parameters.items(), key=lambda item: item[1].numel()):
        stored = _stored(name, saved)
        if stored is None or not _same_values(parameter.detach().cpu(), stored):
            return name
    return None


def check_weights(folder: Path, parameters: Mapping[str, nn.Parameter]) -> None:
    """Raises `RecordError` where a checkpoint does not hold `parameters`, as a transcript gives them."""
    different = first_difference(parameters, read_weights(folder))
    if different is not None:
        reason = f"{folder} differs from the transcript in {different}"
        raise RecordError(f"{reason}; delete the folder to resume without it")


@torch.no_grad()
def load_parameters(folder: Path, parameters: Mapping[str, nn.Parameter]) -> None:
    """Gives `parameters` the values that a checkpoint holds for them; `UserError` where it has not all of them."""
    saved = read_weights(folder)
    for name, parameter in parameters.items():
        stored = _stored(name, saved)
        if stored is None or stored.shape != parameter.shape:
            raise UserError(f"{folder} holds no {name} of shape {tuple(parameter.shape)}")
        parameter.copy_(stored)


def _stored(name: str, saved: Mapping[str, Tensor]) -> Tensor | None:
    """The tensor that a file holds for a parameter; peft leaves the adapter's name out of its files."""
    return saved.get(name, saved.get(name.replace(".default.", ".")))


def _same_values(left: Tensor, right: Tensor) -> bool:
    if left.shape != right.shape:
        return False
    return torch.equal(left.to(right.dtype), right) and torch.equal(left, right.to(left.dtype))
