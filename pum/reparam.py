"""Disguises: secret changes of coordinates of a transformer's weights that leave its function as it was.

Source: run guide of arXiv 2602.23798 ("orthogonal invariance in attention, permutations in FFN hidden channels").
With H = number of KV heads, j one of them, g the query heads that share it, d_h the head's size:

* values and output: v_j -> S_j v_j, and o_proj's columns of the g query heads by S_j transposed, S_j in O(d_h).
* queries and keys: q -> R_j q, k -> R_j k for one orthogonal R_j, so q.k stays. With rotary embedding R_j must
  commute with every position's rotation: within the rotary part only a rotation inside each plane
  (i, i + d_r/2) does (the layout of transformers); beyond it, R_j is free. With a norm on q or k, R_j = 1.
* feed-forward: hidden channels in another order, rows of gate/up (fc1) and columns of down (fc2) alike.

The norms, the residual stream, the embeddings and the head stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from pum.center import layer_index
from src.utils import UserError


@dataclass(frozen=True)
class Family:
    """How an architecture names what is inside a layer; `fixed` parameters are left as they are."""

    output: str = "self_attn.o_proj"
    ffn_in: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    ffn_out: str = "mlp.down_proj"
    fixed: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    qk_norms: tuple[str, ...] = ()
    rotary: bool = True


_LLAMA = Family()
FAMILIES = {
    "opt": Family(
        output="self_attn.out_proj",
        ffn_in=("fc1",),
        ffn_out="fc2",
        fixed=("self_attn_layer_norm", "final_layer_norm"),
        rotary=False,
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": Family(qk_norms=("self_attn.q_norm", "self_attn.k_norm")),
    "gemma": _LLAMA,
    "stablelm": _LLAMA,
}


@dataclass(frozen=True)
class _Layer:
    """One layer's secrets.

    query_key, value_output: (KV heads, d_h, d_h), orthogonal blocks; query_key None: left alone.
    order: int64 (d_ff,), hidden channel i of the disguised model is channel order[i] of the plain one.
    """

    query_key: Tensor | None
    value_output: Tensor
    order: Tensor
    back: Tensor


class Disguise:
    """One copy's secret T: exact on parameters, linear, and orthogonal, so plain SGD steps commute with it.

    Blocks are multiplied in float32 (float64 for float64 weights); half-precision weights are rounded once on
    the way back to their dtype, which changes logits as any rounding of the weights does. Permutations are
    exact bit for bit. Optimizers that work entry by entry (Adam) commute with the permutations only.
    """

    def __init__(self, family: Family, layers: list[_Layer], shapes: Mapping[str, torch.Size]) -> None:
        self._family = family
        self._layers = layers
        self._shapes = dict(shapes)

    @classmethod
    def sample(cls, model: nn.Module, generator: torch.Generator) -> Disguise:
        """Draw every layer's blocks and order; the model is not changed. Raises `UserError` as `check_model`."""
        family, shapes, prefixes = check_model(model)
        _, kv_heads, head_dim = _heads(_config(model))
        rotary_dim = _rotary_dim(model, head_dim) if family.rotary else 0
        layers = []
        for prefix in prefixes:
            width = shapes[f"{prefix}{family.ffn_in[0]}.weight"][0]
            order = torch.randperm(width, generator=generator)
            query_key = None
            if not any(f"{prefix}{norm}.weight" in shapes for norm in family.qk_norms):
                query_key = _query_key_blocks(kv_heads, head_dim, rotary_dim, generator)
            value_output = orthogonal(kv_heads, head_dim, generator)
            layers.append(_Layer(query_key, value_output, order, torch.argsort(order)))
        return cls(family, layers, shapes)

    def apply_(self, model: nn.Module) -> None:
        """Replace the model's parameters by the disguised ones, in place."""
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if self.moves(name):
                    parameter.copy_(self.move(name, parameter))

    def invert(self, update: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """T^-1 of differences of parameters, by name; new tensors where anything moves, same dtypes."""
        return {name: self.move(name, tensor, inverse=True) for name, tensor in update.items()}

    def moves(self, name: str) -> bool:
        """Whether the parameter `name` is changed at all."""
        return self._role(name) != "fixed"

    def move(self, name: str, tensor: Tensor, *, inverse: bool = False) -> Tensor:
        """T, or T^-1, of the parameter `name` or of a difference of it: same shape, dtype and device.

        What T does not move is returned as it is, not copied. Raises UserError for an unknown name or shape.
        """
        if self._shapes.get(name) != tensor.shape:
            raise UserError(f"the disguise does not fit {name} of shape {tuple(tensor.shape)}")
        role = self._role(name)
        if role == "fixed":
            return tensor
        layer = self._layers[_index(name)]
        if role.startswith("ffn"):
            order = (layer.back if inverse else layer.order).to(tensor.device)
            return tensor[order] if role == "ffn_rows" else tensor[:, order]
        blocks = layer.query_key if role == "query_key_rows" else layer.value_output
        assert blocks is not None
        precise = torch.promote_types(tensor.dtype, torch.float32)
        blocks = blocks.to(tensor.device, precise)
        if inverse:
            blocks = blocks.transpose(1, 2)
        moved = (
            _rows(blocks, tensor.to(precise)) if role.endswith("rows") else _columns(blocks, tensor.to(precise))
        )
        return moved.to(tensor.dtype)

    def _role(self, name: str) -> str:
        if layer_index(name) is None:
            return "fixed"
        module, _, kind = _inside(name).rpartition(".")
        if module in self._family.ffn_in:
            return "ffn_rows"
        if module == "self_attn.v_proj":
            return "value_output_rows"
        if module in ("self_attn.q_proj", "self_attn.k_proj"):
            return "fixed" if self._layers[_index(name)].query_key is None else "query_key_rows"
        # The biases of what writes to the residual stream stay: its coordinates do not change.
        if kind == "weight" and module == self._family.ffn_out:
            return "ffn_columns"
        if kind == "weight" and module == self._family.output:
            return "value_output_columns"
        return "fixed"


def check_model(model: nn.Module) -> tuple[Family, dict[str, torch.Size], list[str]]:
    """How a model's parameters are named, their shapes, and each layer's prefix.

    Raises UserError, naming it, for an architecture that is not in `FAMILIES`, adapters, an unknown or missing
    parameter inside a layer, shapes that do not fit the configuration, and a rotary embedding that is not known.
    """
    family, sizes = _family(model), _heads(_config(model))
    if family.rotary:
        _rotary_dim(model, sizes[2])
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    prefixes = _layer_prefixes(shapes)
    for prefix in prefixes:
        _check_names(family, prefix, {name.removeprefix(prefix) for name in shapes if name.startswith(prefix)})
        _check_shapes(family, prefix, shapes, sizes)
    return family, shapes, prefixes


def orthogonal(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Random orthogonal matrices with Haar's law: float64 (count, size, size).

    QR of a Gaussian matrix, columns signed by the diagonal of R (Mezzadri 2007, arXiv math-ph/0609050).
    """
    gaussian = torch.randn(count, size, size, generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(gaussian)
    return q * torch.where(torch.diagonal(r, dim1=1, dim2=2) < 0, -1.0, 1.0).unsqueeze(1)


def plane_rotations(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Random rotations inside the planes (i, i + size/2): float64 (count, size, size).

    They are what commutes with a rotary embedding in transformers' layout.
    """
    half = size // 2
    angles = 2.0 * math.pi * torch.rand(count, half, generator=generator, dtype=torch.float64)
    cosine, sine = torch.diag_embed(angles.cos()), torch.diag_embed(angles.sin())
    return torch.cat([torch.cat([cosine, -sine], dim=2), torch.cat([sine, cosine], dim=2)], dim=1)


def _query_key_blocks(count: int, head_dim: int, rotary_dim: int, generator: torch.Generator) -> Tensor:
    """Rotations in the rotary planes of the first `rotary_dim` coordinates, free orthogonal on the others."""
    blocks = torch.zeros(count, head_dim, head_dim, dtype=torch.float64)
    if rotary_dim:
        blocks[:, :rotary_dim, :rotary_dim] = plane_rotations(count, rotary_dim, generator)
    if rotary_dim < head_dim:
        blocks[:, rotary_dim:, rotary_dim:] = orthogonal(count, head_dim - rotary_dim, generator)
    return blocks


def _rows(blocks: Tensor, tensor: Tensor) -> Tensor:
    """blocks (H, d, d) times the rows of a weight (H g d, n) or the entries of a bias (H g d,)."""
    count, size, _ = blocks.shape
    grouped = tensor.reshape(count, -1, size, tensor.shape[1] if tensor.dim() == 2 else 1)
    return torch.einsum("hij,hgjn->hgin", blocks, grouped).reshape(tensor.shape)


def _columns(blocks: Tensor, weight: Tensor) -> Tensor:
    """The columns of a weight (n, H g d) times the transposed blocks (H, d, d)."""
    count, size, _ = blocks.shape
    grouped = weight.reshape(weight.shape[0], count, -1, size)
    return torch.einsum("hij,nhgj->nhgi", blocks, grouped).reshape(weight.shape)


def _index(name: str) -> int:
    index = layer_index(name)
    assert index is not None
    return index


def _inside(name: str) -> str:
    """What follows `.layers.{i}.` in a parameter's name."""
    return name.split(f"layers.{_index(name)}.", 1)[1]


def _config(model: nn.Module) -> PretrainedConfig:
    config = getattr(model, "config", None)
    if not isinstance(config, PretrainedConfig):
        raise UserError("only models of transformers can be disguised; set use_orthogonal_reparam to false")
    return config


def _family(model: nn.Module) -> Family:
    if hasattr(model, "peft_config"):
        raise UserError("a model with adapters cannot be disguised: merge them first (merge_and_unload)")
    model_type = _config(model).model_type
    if model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise UserError(
            f"no disguise is known for architecture '{model_type}' (known: {known});"
            " set use_orthogonal_reparam to false"
        )
    return FAMILIES[model_type]


def _heads(config: PretrainedConfig) -> tuple[int, int, int]:
    """Query heads, KV heads, and a head's size."""
    heads = int(config.num_attention_heads)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    return heads, kv_heads, head_dim


def _layer_prefixes(shapes: Mapping[str, torch.Size]) -> list[str]:
    found = {
        _index(name): name[: len(name) - len(_inside(name))] for name in shapes if layer_index(name) is not None
    }
    if not found or sorted(found) != list(range(len(found))):
        raise UserError("the layers of the model cannot be told from its parameters' names")
    return [found[index] for index in range(len(found))]


def _check_names(family: Family, prefix: str, names: set[str]) -> None:
    attention = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", family.output)
    needed = (*attention, *family.ffn_in, family.ffn_out)
    known = {f"{m}.{kind}" for m in (*needed, *family.fixed, *family.qk_norms) for kind in ("weight", "bias")}
    if unknown := sorted(names - known):
        raise UserError(f"no disguise is known for {prefix}{unknown[0]}; set use_orthogonal_reparam to false")
    if missing := sorted({f"{module}.weight" for module in needed} - names):
        raise UserError(f"{prefix}{missing[0]} is missing: the model cannot be disguised")


def _check_shapes(
    family: Family, prefix: str, shapes: Mapping[str, torch.Size], sizes: tuple[int, int, int]
) -> None:
    heads, kv_heads, head_dim = sizes
    width = shapes[f"{prefix}{family.ffn_in[0]}.weight"][0]
    rows = {"self_attn.q_proj": heads * head_dim, **dict.fromkeys(family.ffn_in, width)}
    rows |= dict.fromkeys(("self_attn.k_proj", "self_attn.v_proj"), kv_heads * head_dim)
    expected = {(module, 0): size for module, size in rows.items()}
    expected |= {(family.output, 1): heads * head_dim, (family.ffn_out, 1): width}
    for (module, axis), size in expected.items():
        shape = shapes[f"{prefix}{module}.weight"]
        if len(shape) != 2 or shape[axis] != size or heads % kv_heads:
            raise UserError(
                f"{prefix}{module}.weight has shape {tuple(shape)}, which its configuration contradicts"
            )


def _rotary_dim(model: nn.Module, head_dim: int) -> int:
    """Size of the part of a head that is rotated: twice the number of rotary frequencies."""
    sizes = {2 * buffer.numel() for name, buffer in model.named_buffers() if name.endswith("rotary_emb.inv_freq")}
    if len(sizes) != 1 or max(sizes) > head_dim:
        raise UserError("the rotary embedding of the model is not understood; set use_orthogonal_reparam to false")
    return sizes.pop()
