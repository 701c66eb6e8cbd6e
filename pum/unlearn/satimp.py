"""Gradient ascent weighted by saturation and importance (arXiv 2505.11953)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from pum.unlearn.base import Batch, Defaults, UnlearnMethod, answer_logits, masked_mean, token_nll


def satimp_loss(nll: Tensor, mask: Tensor, beta1: float, beta2: float) -> Tensor:
    """Minus the mean of p_t^beta1 (1 - p_t)^beta2 NLL_t over answer tokens; the weights carry no gradient.

    Args:
        nll: float32 (B, T), nats.
        mask: bool (B, T), the answer tokens.
        beta1: weight of saturation, which spares tokens that are unlikely already.
        beta2: weight of importance, which spares tokens that the model is sure of.
    """
    p = (-nll).exp().detach()
    return -masked_mean(p**beta1 * (1 - p) ** beta2 * nll, mask)


class SatImp(UnlearnMethod):
    name = "SatImp"
    defaults: ClassVar[Defaults] = {
        "gamma": 0.1,
        "alpha": 1.0,
        "satimp_beta1": 5.0,
        "satimp_beta2": 1.0,
    }
    epochs = 5.0

    def forget_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        nll, mask = token_nll(*answer_logits(model, batch["forget"]))
        return satimp_loss(nll, mask, self.setting("satimp_beta1"), self.setting("satimp_beta2"))
