"""What tracks have in common: settings that rebuild what is trained from the base model, and a small file of it.

A track says what of a model is trained: LoRA adapters (`src/lora.py`), a prefix (`src/prefix.py`) or the head
(`src/ht_opt.py`). A model without one is trained whole.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self

from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from src.record.checkpoints import TRACK_WEIGHTS
from src.utils import UserError, write_json

TRACK_FILE = "track.json"


class TrackSettings:
    """Base of the frozen dataclasses of which each, with the base model, gives a track's model at its start."""

    name: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, **asdict(self)}  # type: ignore[call-overload]  # subclasses are dataclasses

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Settings from what `to_dict` gave, perhaps read from JSON."""
        given = {name: value for name, value in values.items() if name != "name"}
        return cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in given.items()})


def track_of(model: nn.Module) -> TrackSettings | None:
    """The settings of the track that was added to a model; None where all of it is trained."""
    return getattr(model, "track", None)


def check_untracked(model: nn.Module) -> None:
    """Raises `UserError` where a model has a track: it cannot take another one."""
    held = track_of(model)
    if held is not None:
        raise UserError(f"the model has a {held.name} track; choose one of lora, prefix and head")


def freeze(model: PreTrainedModel) -> None:
    """Nothing of the model is trained, until a track adds or frees what is."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)


def mark(model: PreTrainedModel, settings: TrackSettings) -> PreTrainedModel:
    """`model` in evaluation mode; it knows its track, and `save_pretrained` writes what is trained and no more."""
    model.track = settings  # type: ignore[assignment]
    model.save_pretrained = partial(save_track, model)  # type: ignore[method-assign]
    return model.eval()


def save_track(
    model: PreTrainedModel,
    folder: str | Path,
    *,
    state_dict: dict[str, Any] | None = None,
    is_main_process: bool = True,
) -> None:
    """What is trained, under its parameters' names, and what rebuilds the rest: `load_model` takes the folder.

    Args:
        folder: made where it does not exist.
        state_dict: is not used; the library's trainer gives one.
        is_main_process: writes nothing where this is False.
    """
    settings = track_of(model)
    if not is_main_process or settings is None:
        return
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    trained = {name: p.detach().cpu().clone() for name, p in model.named_parameters() if p.requires_grad}
    save_file(trained, folder / TRACK_WEIGHTS, metadata={"format": "pt"})
    write_json(folder / TRACK_FILE, {"base_model": model.name_or_path, "track": settings.to_dict()})


def read_track(folder: Path) -> tuple[str, dict[str, Any]]:
    """Name of the base model and settings of the track that `save_track` wrote to a folder."""
    path = folder / TRACK_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return str(found["base_model"]), dict(found["track"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"cannot read {path}: {error}") from error
