"""Reads, on the way back through a model, what each trained tensor was used for; no weight gets a gradient."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from src.engine.attention import Prefix
from src.engine.segments import Segments, wide
from src.engine.uses import LookupUse, MatrixUse, RowsUse, Use, VectorUse
from src.utils import UserError

Uses = dict[str, list[Use]]


class _Tap(torch.autograd.Function):
    """Identity whose way back hands (input, gradient of the output) to a sink."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, anchor: Tensor, given: Tensor, sink: Callable[..., None]) -> Tensor:
        ctx.sink = sink
        ctx.save_for_backward(given)
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, None, None, None]:
        (delta,) = gradients
        ctx.sink(*(saved.detach() for saved in ctx.saved_tensors), delta)
        return (delta if ctx.needs_input_grad[0] else None), None, None, None


class Taps:
    """Taps on the modules that own the trained tensors of a model.

    Args:
        model: whose modules they are.
        parameters: the trained tensors by name, tied ones once.

    Raises:
        UserError: one belongs to a module whose derivative is not known here.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> None:
        names = {id(parameter): name for name, parameter in parameters.items()}
        self._parameters = parameters
        self._owners: list[tuple[nn.Module, dict[str, str]]] = []
        self._head = getattr(model, "get_output_embeddings", lambda: None)()
        self._behind_trunk = set() if self._head is None else set(self._head.modules())
        for module in model.modules():
            own = {part: names[id(p)] for part, p in module._parameters.items() if id(p) in names}
            if own:
                _check_known(module, next(iter(own.values())))
                self._owners.append((module, own))
        self._anchor = torch.zeros((), requires_grad=True)
        self._uses: Uses = defaultdict(list)
        self.trunk: Segments | None = None
        self.scored: Segments | None = None
        self.vocabulary: Tensor | None = None

    def announce(self, trunk: Segments, scored: Segments, vocabulary: Tensor | None = None) -> None:
        """Before each of a pass's forward calls: whose its tokens and its scored states are.

        Args:
            trunk: of the tokens. scored: of the states that reach the head.
            vocabulary: the rows of the head that are used, None for all.
        """
        self.trunk, self.scored, self.vocabulary = trunk, scored, vocabulary

    @contextmanager
    def open(self) -> Iterator[Uses]:
        """Inside, passes leave their uses, by parameter name, in what this gives, once they went backward."""
        self._uses = defaultdict(list)
        hooks = [module.register_forward_hook(self._hook(own), with_kwargs=True) for module, own in self._owners]
        for parameter in self._parameters.values():
            parameter.requires_grad_(False)
        try:
            yield self._uses
        finally:
            for parameter in self._parameters.values():
                parameter.requires_grad_(True)
            for hook in hooks:
                hook.remove()

    def _hook(self, own: dict[str, str]) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            segments = self.scored if module in self._behind_trunk else self.trunk
            assert segments is not None, "no pass was announced"
            if isinstance(module, Prefix):
                sides = zip(own.values(), output, strict=True)
                return tuple(self._of_sequences(name, entries, segments) for name, entries in sides)
            scale = None
            if isinstance(module, nn.Embedding):
                given, scale = _lookup(module, args, kwargs, output)
                # Positions may be looked up once for all rows; each sample wants a gradient of its own.
                copies = segments.tokens // given.numel() if len(given) == 1 else -1
                given, output = given.expand(copies, -1), output.expand(copies, -1, -1)
            else:
                given = args[0]
            vocabulary = self.vocabulary if module is self._head else None

            def sink(given: Tensor, delta: Tensor) -> None:
                delta = delta if scale is None else delta * scale
                for part, name in own.items():
                    self._uses[name].append(_use(part, module, given, delta, segments, vocabulary))

            return _Tap.apply(output, self._anchor.to(output.device), given, sink)

        return hook

    def _of_sequences(self, name: str, entries: Tensor, segments: Segments) -> Tensor:
        """A tap on the entries of a prefix, (S, H_kv, m, d) as each of the pass's sequences uses them."""

        def sink(_: Tensor, delta: Tensor) -> None:
            self._uses[name].append(VectorUse(segments.of_samples(wide(delta).flatten(1))))

        return _Tap.apply(entries, self._anchor.to(entries.device), entries.new_empty(0), sink)


def _check_known(module: nn.Module, name: str) -> None:
    if isinstance(module, nn.Linear | nn.Embedding | nn.LayerNorm | Conv1D | Prefix) or _is_rms_norm(module):
        return
    raise UserError(
        f"{name} belongs to a {type(module).__name__}, whose exact derivative is not known here;"
        " use --zo_derivative central"
    )


def _is_rms_norm(module: nn.Module) -> bool:
    return type(module).__name__.endswith("RMSNorm") and _epsilon(module) is not None


def _epsilon(module: nn.Module) -> float | None:
    return next((getattr(module, name) for name in ("variance_epsilon", "eps") if hasattr(module, name)), None)


def _lookup(
    module: nn.Embedding, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
) -> tuple[Tensor, Tensor | None]:
    """The row that each token took, whatever the module makes of its arguments, and what it scaled the row by."""
    if type(module).forward is nn.Embedding.forward:
        return (args[0] if args else kwargs["input"]), None

    def probed(column: Tensor) -> Tensor:
        shadow = copy(module)
        shadow._parameters = {"weight": column[:, None]}  # type: ignore[dict-item]
        return type(module).forward(shadow, *args, **kwargs)

    numbers = torch.arange(module.num_embeddings, device=output.device, dtype=torch.float64)
    ids = (probed(numbers) / probed(torch.ones_like(numbers)))[..., 0].round().long()
    scale = probed(torch.ones_like(module.weight[:, 0]))
    if not torch.equal(module.weight[ids] * scale, output):
        raise UserError(f"a {type(module).__name__} does more than look rows up; use --zo_derivative central")
    return ids, scale


def _use(
    part: str, module: nn.Module, given: Tensor, delta: Tensor, segments: Segments, vocabulary: Tensor | None
) -> Use:
    """The use of a module's weight or bias, of its input and the gradient of its output."""
    if isinstance(module, nn.Embedding):
        return LookupUse(given.flatten(), delta.flatten(0, -2), segments)
    if not isinstance(module, nn.Linear | Conv1D):
        return _norm_use(part, module, wide(given), wide(delta), segments)
    given, delta = given.flatten(0, -2), delta.flatten(0, -2)
    if part == "bias":
        sums = segments.of_samples(segments.sums(wide(delta)))
        if vocabulary is not None:  # the rows of a head that were not asked for took no part
            sums = sums.new_zeros(len(sums), len(module.weight)).index_copy_(1, vocabulary, sums)
        return VectorUse(sums)
    if vocabulary is not None:
        return RowsUse(delta, given, segments, vocabulary)
    return MatrixUse(given, delta, segments) if isinstance(module, Conv1D) else MatrixUse(delta, given, segments)


def _norm_use(part: str, module: nn.Module, given: Tensor, delta: Tensor, segments: Segments) -> VectorUse:
    """Of y = w x / rms(x) or y = w (x - mean(x)) / std(x) + b; a norm of heads has several rows a token."""
    if part == "weight" and isinstance(module, nn.LayerNorm):
        delta = delta * functional.layer_norm(given, module.normalized_shape, eps=module.eps)
    elif part == "weight":
        delta = delta * given * torch.rsqrt(given.square().mean(-1, keepdim=True) + (_epsilon(module) or 0.0))
    tokens = delta.reshape(segments.tokens, -1, delta.shape[-1]).sum(1)
    return VectorUse(segments.of_samples(segments.sums(tokens)))
