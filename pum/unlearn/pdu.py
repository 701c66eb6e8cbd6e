"""Primal-dual unlearning: forget as far as the retain loss stays under a bound (arXiv 2506.05314)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from pum.unlearn.base import IGNORED, Batch, Defaults, Rows, UnlearnMethod, answer_logits, masked_mean
from pum.unlearn.settings import MethodSettings
from src.engine.processes import average_


def margin_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """(largest - mean logit)^2, mean over answer tokens: zero where every token is as likely as any other.

    Bounded below and free of a softmax, so that its gradient does not fade while one token dominates.
    open-unlearning takes the mean over prompt and padding, too.

    Args:
        logits: (B, L, V).
        labels: int64 (B, L), `IGNORED` outside the answer.
    """
    scores = logits[:, :-1].float()
    return masked_mean((scores.amax(dim=-1) - scores.mean(dim=-1)).square(), labels[:, 1:] != IGNORED)


def next_multiplier(multiplier: float, retain_loss: float, eps: float, step: float) -> float:
    """max(0, lambda + step (retain - eps)): projected ascent on the dual of `retain <= eps`."""
    return max(0.0, multiplier + step * (retain_loss - eps))


class PDU(UnlearnMethod):
    """The retain loss's weight is a multiplier. It starts at alpha and is moved after each optimizer step.

    It stays at alpha for the warm-up, and a retain loss that is then above the bound raises it. open-unlearning
    moves it with each micro-batch instead.
    """

    name = "PDU"
    defaults: ClassVar[Defaults] = {
        "gamma": 1.0,
        "alpha": 50.0,
        "pdu_retain_loss_eps": 0.3,
        "pdu_step": 5.0,
        "pdu_warmup_epochs": 5.0,
    }

    def __init__(
        self, args: MethodSettings, model: nn.Module, reference: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__(args, model, reference)
        self._retain_losses: list[Tensor] = []

    @classmethod
    def looks_at_retain(cls, settings: Defaults) -> bool:
        return True  # a multiplier of zero must be able to grow again

    def forget_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return margin_loss(*answer_logits(model, batch["forget"]))

    def retain_loss(self, model: nn.Module, rows: Rows) -> Tensor:
        loss = super().retain_loss(model, rows)
        self._retain_losses.append(loss.detach())
        return loss

    def after_step(self, epoch: float) -> None:
        average_(self._retain_losses)
        losses = [float(loss) for loss in self._retain_losses]
        self._retain_losses.clear()
        if not losses or epoch <= self.setting("pdu_warmup_epochs"):
            return
        eps, step = self.setting("pdu_retain_loss_eps"), self.setting("pdu_step")
        self.alpha = next_multiplier(self.alpha, sum(losses) / len(losses), eps, step)
