"""Gradient ascent on the forget set (arXiv 2210.01504), alone or against the retain loss (arXiv 2401.06121)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from pum.unlearn.base import Batch, Defaults, UnlearnMethod, answer_logits, masked_mean, token_nll


def grad_ascent_loss(nll: Tensor, mask: Tensor) -> Tensor:
    """Minus the mean NLL of the answer tokens.

    Args:
        nll: float32 (B, T), nats.
        mask: bool (B, T), the answer tokens.
    """
    return -masked_mean(nll, mask)


class GradAscent(UnlearnMethod):
    """Gradient ascent; nothing holds the retain set."""

    name = "GradAscent"
    defaults: ClassVar[Defaults] = {"gamma": 1.0}

    def forget_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return grad_ascent_loss(*token_nll(*answer_logits(model, batch["forget"])))


class GradDiff(GradAscent):
    """Gradient ascent on the forget set and descent on the retain set."""

    name = "GradDiff"
    defaults: ClassVar[Defaults] = {"gamma": 1.0, "alpha": 1.0}
