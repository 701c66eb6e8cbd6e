"""Direct preference optimization (arXiv 2305.18290) towards a refusal, as TOFU uses it (arXiv 2401.06121)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from pum.unlearn.base import Batch, Defaults, UnlearnMethod


def dpo_loss(refusal_log_ratio: Tensor, forget_log_ratio: Tensor, beta: float) -> Tensor:
    """-(2/beta) log sigmoid(beta (r(idk) - r(x))), mean over the batch.

    The factor 2 is NPO's, so that both losses are on one scale.

    Args:
        refusal_log_ratio, forget_log_ratio: float32 (B,), log p - log p_ref, nats.
        beta: inverse temperature.
    """
    return -2 / beta * functional.logsigmoid(beta * (refusal_log_ratio - forget_log_ratio)).mean()


class DPO(UnlearnMethod):
    """A refusal of the same question is preferred to the answer."""

    name = "DPO"
    defaults: ClassVar[Defaults] = {"gamma": 1.0, "alpha": 1.0, "beta": 0.1}
    needs_reference = True
    needs_refusals = True

    def forget_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        refusal = self.log_ratio(model, batch["refusal"])
        return dpo_loss(refusal, self.log_ratio(model, batch["forget"]), self.setting("beta"))
