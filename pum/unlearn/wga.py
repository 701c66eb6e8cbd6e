"""Weighted gradient ascent (arXiv 2502.19301)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from pum.unlearn.base import Batch, Defaults, UnlearnMethod, answer_logits, masked_mean, token_nll


def wga_loss(nll: Tensor, mask: Tensor, beta: float) -> Tensor:
    """Minus the mean of p_t^beta NLL_t over answer tokens; the weights carry no gradient.

    Args:
        nll: float32 (B, T), nats.
        mask: bool (B, T), the answer tokens.
        beta: 0 gives gradient ascent; the larger, the less is done to tokens that are unlikely already.
    """
    weights = (-beta * nll).exp().detach()
    return -masked_mean(weights * nll, mask)


class WGA(UnlearnMethod):
    name = "WGA"
    defaults: ClassVar[Defaults] = {"gamma": 1.0, "alpha": 1.0, "beta": 1.0}
    epochs = 5.0

    def forget_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        nll, mask = token_nll(*answer_logits(model, batch["forget"]))
        return wga_loss(nll, mask, self.setting("beta"))
