"""LoRA adapters through `peft`: the small parameter track (arXiv 2106.09685)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from src.tracks import TrackSettings, check_untracked
from src.utils import PRECISIONS, UserError

DEFAULT_TARGETS = ("q_proj", "v_proj")


@dataclass(frozen=True)
class LoraSettings(TrackSettings):
    """What is needed to wrap the same base model with the same initial adapters again.

    A is Kaiming-uniform, drawn from `seed`; B is zero. `dtype` names the adapters' dtype, None takes the
    model's: peft would otherwise hold adapters of half-precision models in float32. `layers` says which of the
    decoder's layers get adapters: "all", "last:N", or numbers from 0 as "3,5,7".
    """

    name: ClassVar[str] = "lora"
    r: int = 8
    alpha: float = 16.0
    seed: int = 0
    dtype: str | None = None
    targets: tuple[str, ...] | None = None
    layers: str = "all"

    def __post_init__(self) -> None:
        if self.r < 1:
            raise UserError(f"lora_r must be at least 1, got {self.r}")
        if self.dtype is not None and self.dtype not in PRECISIONS:
            raise UserError(f"unknown LoRA dtype '{self.dtype}': use {', '.join(PRECISIONS)}")


def lora_targets(model: PreTrainedModel) -> tuple[str, ...]:
    """q_proj and v_proj where the model has them, else the architecture's own names, else `UserError`."""
    leaves = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    if leaves.issuperset(DEFAULT_TARGETS):
        return DEFAULT_TARGETS
    known: Sequence[str] = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model.config.model_type, ())
    found = tuple(target for target in known if target in leaves)
    if not found:
        raise UserError(f"no LoRA target modules are known for model type '{model.config.model_type}'")
    return found


def chosen_layers(layers: str, count: int) -> list[int] | None:
    """The numbers of the layers that get adapters, of `count`; None for all."""
    if layers == "all":
        return None
    try:
        name, _, number = layers.partition(":")
        chosen = range(count - int(number), count) if name == "last" else [int(part) for part in layers.split(",")]
    except ValueError:
        raise UserError(f"lora_layers must be all, last:N or numbers as 3,5,7, got '{layers}'") from None
    if not chosen or min(chosen) < 0 or max(chosen) >= count:
        raise UserError(f"lora_layers {layers} does not fit a model of {count} layers, 0 to {count - 1}")
    return sorted(set(chosen))


def add_lora(model: PreTrainedModel, settings: LoraSettings = LoraSettings()) -> PeftModel:
    """Freeze `model` and add adapters to it, on the device and in the dtype it already has.

    The adapters' initial values depend on `settings.seed` alone; the global generators are left as they were.
    """
    check_untracked(model)
    targets = settings.targets or lora_targets(model)
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=settings.r,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # peft takes any number
        lora_dropout=0.0,
        bias="none",
        target_modules=list(targets),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        layers_to_transform=chosen_layers(settings.layers, model.config.num_hidden_layers),
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)  # between peft's and transformers' versions
        torch.manual_seed(settings.seed)
        wrapped = get_peft_model(model, config, autocast_adapter_dtype=False)
    dtype = PRECISIONS[settings.dtype] if settings.dtype else model.dtype
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    wrapped.track = settings  # type: ignore[assignment]
    # The vocabulary is never changed; peft would ask the hub for the base model's at every checkpoint.
    wrapped.save_pretrained = partial(wrapped.save_pretrained, save_embedding_layers=False)  # type: ignore[method-assign]
    return wrapped.eval()
