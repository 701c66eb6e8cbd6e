"""Representation misdirection for unlearning (arXiv 2403.03218)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pum.unlearn.base import IGNORED, Batch, Defaults, Reference, Rows, UnlearnMethod
from pum.unlearn.data import UnlearnData
from pum.unlearn.settings import MethodSettings
from src.engine.layers import decoder_layers
from src.utils import UserError


def rmu_loss(hidden: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Mean squared distance of the answer's states to `target`: over units, then tokens, then rows.

    Args:
        hidden: (B, L, H).
        target: (B, L, H) or (H,).
        mask: bool (B, L), the answer tokens.
    """
    per_token = (hidden.float() - target.float()).pow(2).mean(dim=-1) * mask
    return (per_token.sum(dim=1) / mask.sum(dim=1).clamp(min=1)).mean()


def default_layer(num_layers: int) -> int:
    """The layer whose output is steered, counted from 0: 7, or the middle one of a model of up to 8 layers."""
    return 7 if num_layers > 8 else max(num_layers // 2 - 1, 0)


def random_direction(size: int, seed: int) -> Tensor:
    """A unit vector float32 (size,) with entries uniform in [0, 1) before scaling, as in the paper's section 4."""
    generator = torch.Generator().manual_seed(seed)
    direction = torch.rand(size, generator=generator)
    return direction / direction.norm()


class RMU(UnlearnMethod):
    """Steer one layer's states on the forget set to c u and hold them in place on the retain set.

    u is drawn once a run, from the run's seed.
    """

    name = "RMU"
    defaults: ClassVar[Defaults] = {
        "gamma": 1.0,
        "alpha": 1.0,
        "rmu_layer": None,
        "rmu_coeff": 2.0,
    }
    needs_reference = True

    @classmethod
    def check(cls, args: MethodSettings, model: nn.Module, data: UnlearnData) -> None:
        super().check(args, model, data)
        config: Any = model.config
        if decoder_layers(model) is None:
            raise UserError(f"{type(model).__name__} has no list of layers, one of which RMU steers")
        if args.rmu_layer is not None and not 0 <= args.rmu_layer < config.num_hidden_layers:
            layers = config.num_hidden_layers
            raise UserError(f"rmu_layer {args.rmu_layer} is outside the model's {layers} layers (counted from 0)")

    def __init__(
        self, args: MethodSettings, model: nn.Module, reference: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__(args, model, reference)
        config: Any = model.config
        chosen = self.settings["rmu_layer"]
        layer = default_layer(config.num_hidden_layers) if chosen is None else int(chosen)
        layers = decoder_layers(model)
        assert layers is not None, "check has looked"
        # Of whatever wraps the model, for several processes say, and of the reference it is the same module.
        self._steered = layers[layer]
        self.target = self.setting("rmu_coeff") * random_direction(config.hidden_size, args.seed)
        self.compares_states = args.retain_loss_type is None

    def forget_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        rows = batch["forget"]
        hidden = self._states(model, rows)
        return rmu_loss(hidden, self.target.to(hidden.device), rows["labels"] != IGNORED)

    def retain_loss(self, model: nn.Module, rows: Rows) -> Tensor:
        if not self.compares_states:
            return super().retain_loss(model, rows)
        before = self._states(self.frozen, rows)
        return rmu_loss(self._states(model, rows), before, rows["labels"] != IGNORED)

    def _states(self, model: nn.Module | Reference, rows: Rows) -> Tensor:
        """(B, L, H) of the layer itself: the last entry of `hidden_states` lies behind the final norm."""
        found: list[Tensor] = []
        hook = self._steered.register_forward_hook(lambda _, __, output: found.append(_tensor(output)))
        try:
            inputs = {"input_ids": rows["input_ids"], "attention_mask": rows["attention_mask"]}
            model(**inputs, use_cache=False, logits_to_keep=1)
        finally:
            hook.remove()
        return found[0]


def _tensor(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]
