"""Cross-entropy unlearning: imitate the model's own choice among all tokens but the label (arXiv 2503.01224)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from pum.unlearn.base import IGNORED, Batch, Defaults, UnlearnMethod, answer_logits, masked_mean


def ceu_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy to softmax of the logits with the label's at -inf, mean over answer tokens but the first.

    The target is detached. The first token of an answer is left alone: it often is a common word that tells
    nothing about the answer.

    Args:
        logits: (B, L, V).
        labels: int64 (B, L), `IGNORED` outside the answer.
    """
    targets = labels[:, 1:]
    mask = targets != IGNORED
    mask = mask & (mask.cumsum(dim=1) > 1)
    scores = logits[:, :-1].float()
    others = scores.detach().scatter(-1, targets.clamp(min=0).unsqueeze(-1), -torch.inf)
    log_p = functional.log_softmax(scores, dim=-1)
    return masked_mean(-(functional.softmax(others, dim=-1) * log_p).sum(dim=-1), mask)


class CEU(UnlearnMethod):
    name = "CEU"
    defaults: ClassVar[Defaults] = {"gamma": 1.0, "alpha": 0.0}

    def forget_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return ceu_loss(*answer_logits(model, batch["forget"]))
