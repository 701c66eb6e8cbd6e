"""Unlearning by self-distillation on adjusted logits (arXiv 2402.10052)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional

from pum.unlearn.base import IGNORED, Batch, Defaults, UnlearnMethod, answer_logits, masked_mean


def undial_loss(logits: Tensor, reference_logits: Tensor, labels: Tensor, beta: float) -> Tensor:
    """Cross-entropy to softmax(reference logits - beta onehot(label)), mean over answer tokens.

    Args:
        logits, reference_logits: (B, L, V).
        labels: int64 (B, L), `IGNORED` outside the answer.
        beta: what is taken off the label's reference logit.
    """
    targets = labels[:, 1:]
    mask = targets != IGNORED
    one_hot = functional.one_hot(targets.clamp(min=0), logits.shape[-1])
    teacher = functional.softmax(reference_logits[:, :-1].float() - beta * one_hot, dim=-1).detach()
    log_p = functional.log_softmax(logits[:, :-1].float(), dim=-1)
    return masked_mean(-(teacher * log_p).sum(dim=-1), mask)


class UNDIAL(UnlearnMethod):
    name = "UNDIAL"
    defaults: ClassVar[Defaults] = {"gamma": 1.0, "alpha": 0.0, "beta": 10.0}
    needs_reference = True

    def forget_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        rows = batch["forget"]
        logits, labels = answer_logits(model, rows)
        return undial_loss(logits, answer_logits(self.frozen, rows)[0], labels, self.setting("beta"))
