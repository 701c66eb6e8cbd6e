"""Simplified NPO: length-normalised and without a reference model (arXiv 2410.07163)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from pum.unlearn.base import Batch, Defaults, UnlearnMethod, answer_logits, token_nll


def simnpo_loss(nll: Tensor, mask: Tensor, beta: float, delta: float) -> Tensor:
    """-(2/beta) log sigmoid(beta (NLL/len - delta)), mean over the batch (arXiv 2410.07163, equation 4).

    Args:
        nll: float32 (B, T), nats, zero outside the answer.
        mask: bool (B, T), the answer tokens.
        beta: inverse temperature.
        delta: reward margin, nats a token.
    """
    mean_nll = nll.sum(dim=1) / mask.sum(dim=1).clamp(min=1)
    return -2 / beta * functional.logsigmoid(beta * (mean_nll - delta)).mean()


class SimNPO(UnlearnMethod):
    name = "SimNPO"
    defaults: ClassVar[Defaults] = {
        "gamma": 0.125,
        "alpha": 1.0,
        "beta": 4.5,
        "delta_simnpo": 0.0,
    }

    def forget_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        nll, mask = token_nll(*answer_logits(model, batch["forget"]))
        return simnpo_loss(nll, mask, self.setting("beta"), self.setting("delta_simnpo"))
