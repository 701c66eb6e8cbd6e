"""Negative preference optimization (arXiv 2404.05868)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from pum.unlearn.base import Batch, Defaults, UnlearnMethod


def npo_loss(log_ratio: Tensor, beta: float) -> Tensor:
    """-(2/beta) log sigmoid(-beta r), mean over the batch (arXiv 2404.05868, equation 3).

    Args:
        log_ratio: float32 (B,), r = log p(x) - log p_ref(x), nats.
        beta: inverse temperature; towards 0 the gradient is that of gradient ascent on summed NLL.
    """
    return -2 / beta * functional.logsigmoid(-beta * log_ratio).mean()


class NPO(UnlearnMethod):
    """DPO with the losing answer only: the push fades once the answer is less likely than it was."""

    name = "NPO"
    defaults: ClassVar[Defaults] = {"gamma": 1.0, "alpha": 1.0, "beta": 0.1}
    needs_reference = True

    def forget_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return npo_loss(self.log_ratio(model, batch["forget"]), self.setting("beta"))
