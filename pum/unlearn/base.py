"""What the inner unlearning methods share: the loss they minimise, their settings and their reference model.

Every method minimises gamma * forget + alpha * retain. A method is one file: its loss as a function of tensors,
and a class that runs the model and calls the function.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from pum.unlearn.data import UnlearnData
from pum.unlearn.settings import Defaults, MethodSettings, resolve_settings
from src.utils import UserError

IGNORED = -100  # a label that is no target, as in transformers
RETAIN_LOSSES = ("NLL", "KL")
Rows = Mapping[str, Tensor]
Batch = Mapping[str, Rows]


class Reference:
    """The model as it was when this was made, in evaluation mode and without gradients.

    Only the trained parameters are copied; what is frozen is shared with `model`. So a LoRA run holds one base
    model and a second set of adapters (which, new adapters being zero, is the base with adapters disabled), and
    a full run holds one copy.

    Args:
        parameters: of another model of this shape, by name, which are shared instead; those that `model` trains.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, Tensor] | None = None) -> None:
        self.model = model
        trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
        if parameters is None:
            self.parameters = {name: parameter.clone() for name, parameter in trained.items()}
        else:
            self.parameters = {name: parameters[name] for name in trained}

    @torch.no_grad()
    def __call__(self, **inputs: Any) -> Any:
        training = self.model.training
        self.model.eval()
        try:
            return functional_call(self.model, self.parameters, (), inputs)
        finally:
            self.model.train(training)


class UnlearnMethod:
    """One inner method. Subclasses set the class attributes and define `forget_loss`.

    Attributes:
        name: in the registry.
        defaults: its hyperparameters and their values where the user gives none. `alpha` is the weight of the
            retain loss; a method without that key never looks at the retain set.
        needs_reference: whether the forget loss compares with the model before training.
        needs_refusals: whether forget rows need a refusal beside their answer.
    """

    name: ClassVar[str]
    defaults: ClassVar[Defaults]
    needs_reference: ClassVar[bool] = False
    needs_refusals: ClassVar[bool] = False
    epochs: ClassVar[float] = 10.0

    def __init__(
        self, args: MethodSettings, model: nn.Module, reference: Mapping[str, Tensor] | None = None
    ) -> None:
        self.settings = resolve_settings(self.name, self.defaults, args)
        self.gamma = self.setting("gamma")
        self.alpha = self.setting("alpha") if "alpha" in self.settings else 0.0
        self.uses_retain = self.looks_at_retain(self.settings)
        self.uses_kl = self.uses_retain and args.retain_loss_type == "KL"
        self.reference = Reference(model, reference) if self.needs_reference or self.uses_kl else None

    @classmethod
    def looks_at_retain(cls, settings: Defaults) -> bool:
        return settings.get("alpha", 0.0) != 0.0

    @classmethod
    def check(cls, args: MethodSettings, model: nn.Module, data: UnlearnData) -> None:
        """Raise `UserError` where the method cannot run on this model and these rows; nothing is changed."""
        if not data.forget:
            raise UserError("the forget set is empty")
        if cls.looks_at_retain(resolve_settings(cls.name, cls.defaults, args)) and not data.retain:
            raise UserError(f"{cls.name} needs a retain set; give one, or --alpha 0")
        if cls.needs_refusals and any("refusals" not in row for row in data.forget):
            raise UserError(f"{cls.name} needs a refusal for each forget row, which text rows do not have")

    def setting(self, name: str) -> float:
        """The value of a hyperparameter that is never left open."""
        value = self.settings[name]
        assert value is not None, name
        return value

    @property
    def terms(self) -> tuple[str, ...]:
        """What the loss is the sum of."""
        return ("forget", "retain") if self.uses_retain else ("forget",)

    def term(self, name: str, model: nn.Module, batch: Batch) -> Tensor:
        """gamma * forget or alpha * retain of one micro-batch, a float32 scalar with gradients.

        Args:
            batch: "forget" and "retain" rows, and "refusal" where the method needs them; each holds
                `input_ids`, `attention_mask` and `labels`, int64 (B, L), padded on the right.
        """
        if name == "retain":
            return self.alpha * self.retain_loss(model, batch["retain"])
        return self.gamma * self.forget_loss(model, batch)

    def forget_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        raise NotImplementedError

    def retain_loss(self, model: nn.Module, rows: Rows) -> Tensor:
        logits, labels = answer_logits(model, rows)
        if self.uses_kl:
            return kl_to_reference(logits, answer_logits(self.frozen, rows)[0], labels)
        return masked_mean(*token_nll(logits, labels))

    def after_step(self, epoch: float) -> None:
        """Called after each optimizer step."""

    @property
    def frozen(self) -> Reference:
        assert self.reference is not None, "this method was made without a reference"
        return self.reference

    def log_ratio(self, model: nn.Module, rows: Rows) -> Tensor:
        """r(x) = log p(x) - log p_ref(x) of each row's answer, float32 (B,)."""
        nll, _ = token_nll(*answer_logits(model, rows))
        reference_nll, _ = token_nll(*answer_logits(self.frozen, rows))
        return (reference_nll - nll).sum(dim=1)


def answer_logits(model: nn.Module | Reference, rows: Rows) -> tuple[Tensor, Tensor]:
    """Logits (B, A, V), in the model's dtype, and labels (B, A) of the last A positions.

    They begin where the first answer token of any row is predicted: what lies before has no label, and a
    vocabulary of logits there would cost the head's time and the most memory of all.
    """
    labels = rows["labels"]
    answered = (labels != IGNORED).any(dim=0)
    first = int(answered.int().argmax())  # 0 where there is no answer at all
    kept = labels.shape[1] - max(first - 1, 0)
    inputs = {"input_ids": rows["input_ids"], "attention_mask": rows["attention_mask"]}
    return model(**inputs, use_cache=False, logits_to_keep=kept).logits, labels[:, -kept:]


def token_nll(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of each answer token, in nats.

    Args:
        logits: (B, L, V), of any float dtype.
        labels: int64 (B, L), `IGNORED` outside the answer.

    Returns:
        float32 (B, L - 1), zero outside the answer, and its bool mask of the same shape.
    """
    # Over the last axis and of all positions: a transposed or a cut one would be copied, and its sum of 50,000
    # exponentials in float32 is some 1e-5 off.
    targets = functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
    nll = functional.cross_entropy(
        logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return nll.view(targets.shape)[:, :-1], targets[:, :-1] != IGNORED


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of `values` where `mask` is true, a scalar; 0 where it nowhere is."""
    return (values * mask).sum() / mask.sum().clamp(min=1)


def kl_to_reference(logits: Tensor, reference_logits: Tensor, labels: Tensor) -> Tensor:
    """KL(reference || model) in nats, mean over answer tokens.

    Args:
        logits, reference_logits: (B, L, V).
        labels: int64 (B, L), `IGNORED` outside the answer.
    """
    mask = labels[:, 1:] != IGNORED
    log_p = functional.log_softmax(logits[:, :-1].float(), dim=-1)
    log_ref = functional.log_softmax(reference_logits[:, :-1].float(), dim=-1)
    kl = functional.kl_div(log_p, log_ref, reduction="none", log_target=True).sum(dim=-1)
    return masked_mean(kl, mask)
