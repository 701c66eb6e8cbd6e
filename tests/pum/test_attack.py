"""A client that knows no secret, against copies without jitter: it aligns the copies and averages the noise away.

What it gets is T_1(theta~), the model in the first copy's coordinates, which has the same function as theta~. This
is why the accounting gives the adversary every alpha and every disguise.
"""

from __future__ import annotations

import copy

import pum_models as m
import pytest
import torch
from scipy.optimize import least_squares, linear_sum_assignment
from torch import Tensor
from transformers import PreTrainedModel

from pum.noise import ZeroSumStream, draw_alphas, jitter_noise
from pum.reparam import Disguise

State = dict[str, Tensor]


def publish(model: PreTrainedModel, copies: int, sigma: float, jitter: float, seed: int = 0) -> list[State]:
    gen = torch.Generator().manual_seed(seed)
    noise = ZeroSumStream(copies)
    published = []
    for alpha in draw_alphas(copies, 1.0, 1.5, gen):
        disguise = Disguise.sample(model, gen)
        published.append(
            {
                name: disguise.move(
                    name,
                    parameter.detach()
                    + alpha * noise.draw(name, parameter.shape, sigma, gen)
                    + jitter_noise(parameter.shape, jitter, gen),
                )
                for name, parameter in model.named_parameters()
            }
        )
    return published


def estimate_alphas(published: list[State], names: list[str], first: float = 1.25) -> list[float]:
    """Up to a common factor, from the variances of differences of what no disguise moves."""
    count = len(published)
    flat = [torch.cat([copy[name].flatten() for name in names]).double() for copy in published]
    pairs = [(k, j) for k in range(count) for j in range(k)]
    seen = torch.tensor([float((flat[k] - flat[j]).square().mean()) for k, j in pairs], dtype=torch.float64)
    seen = seen / seen.mean()

    def residual(guess: list[float]) -> list[float]:
        found = torch.tensor(
            [guess[k] ** 2 + guess[j] ** 2 - (guess[k] - guess[j]) ** 2 / count for k, j in pairs]
        )
        return list(found - seen)

    return [float(value) for value in least_squares(residual, [seen.mean().item() ** 0.5 / first] * count).x]


def align(target: State, other: State, config: object, layer: int) -> State:
    """One layer of `other` (Llama's names) turned into the coordinates of `target`."""
    prefix = f"model.layers.{layer}."
    names = [name for name in other if name.startswith(prefix)]
    moved = {name: other[name].clone() for name in names}

    def both(*leaves: str) -> list[list[Tensor]]:
        return [[state[f"{prefix}{leaf}.weight"] for leaf in leaves] for state in (target, other)]

    # Hidden channels of the feed-forward: match them by what they read and write.
    rows = [
        torch.cat([gate, up, down.T], 1)
        for gate, up, down in both("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    ]
    _, order = linear_sum_assignment(-(rows[0] @ rows[1].T).numpy())
    for leaf in ("gate_proj", "up_proj"):
        moved[f"{prefix}mlp.{leaf}.weight"] = other[f"{prefix}mlp.{leaf}.weight"][order]
    moved[f"{prefix}mlp.down_proj.weight"] = other[f"{prefix}mlp.down_proj.weight"][:, order]
    # Attention: orthogonal Procrustes for each KV head, plane by plane for queries and keys.
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads  # type: ignore[attr-defined]
    size, group = target[f"{prefix}self_attn.q_proj.weight"].shape[0] // heads, heads // kv_heads
    q, k, v, o = (moved[f"{prefix}self_attn.{leaf}_proj.weight"] for leaf in "qkvo")
    (q1, k1, v1, o1) = (target[f"{prefix}self_attn.{leaf}_proj.weight"] for leaf in "qkvo")
    half = size // 2
    for j in range(kv_heads):
        own, mine = slice(j * size, (j + 1) * size), range(j * group, (j + 1) * group)
        wide = [
            torch.cat([values[own], *(outs[:, h * size : (h + 1) * size].T for h in mine)], 1)
            for values, outs in ((v1, o1), (v, o))
        ]
        u, _, w = torch.linalg.svd(wide[0] @ wide[1].T)
        v[own] = (u @ w) @ v[own]
        for h in mine:
            o[:, h * size : (h + 1) * size] = o[:, h * size : (h + 1) * size] @ (u @ w).T
        parts = [
            torch.cat([keys[own], *(queries[h * size : (h + 1) * size] for h in mine)], 1)
            for queries, keys in ((q1, k1), (q, k))
        ]
        (a, b), (c, d) = ((part[:half], part[half:]) for part in parts)
        angle = torch.atan2((b * c - a * d).sum(1), (a * c + b * d).sum(1))
        cosine, sine = angle.cos()[:, None], angle.sin()[:, None]
        for weight, indices in ((k, [j]), (q, list(mine))):
            for h in indices:
                low, high = (
                    weight[h * size : h * size + half].clone(),
                    weight[h * size + half : (h + 1) * size].clone(),
                )
                weight[h * size : h * size + half] = cosine * low - sine * high
                weight[h * size + half : (h + 1) * size] = sine * low + cosine * high
    return moved


def attack(model: PreTrainedModel, published: list[State]) -> PreTrainedModel:
    """A model with the function of theta~, from the copies and the public configuration alone."""
    fixed = [name for name in published[0] if "proj" not in name]
    alphas = estimate_alphas(published, fixed)
    aligned = [published[0]]
    for other in published[1:]:
        turned = dict(other)
        for layer in range(model.config.num_hidden_layers):
            turned.update(align(published[0], other, model.config, layer))
        aligned.append(turned)
    recovered = copy.deepcopy(model)
    total = sum(1 / alpha for alpha in alphas)
    with torch.no_grad():
        for name, parameter in recovered.named_parameters():
            terms = [state[name] / (alpha * total) for state, alpha in zip(aligned, alphas, strict=True)]
            parameter.copy_(torch.stack(terms).sum(0))
    return recovered


def gap(left: PreTrainedModel, right: PreTrainedModel) -> float:
    """Root mean square of the logits' difference, relative to their spread."""
    with torch.no_grad():
        a, b = left(m.tokens()).logits, right(m.tokens()).logits
    return float((a - b).square().mean().sqrt() / a.std())


@pytest.mark.parametrize("sigma", [0.002, 0.02])
def test_no_secret_hides_the_function_without_jitter(sigma: float) -> None:
    model = m.tiny("llama", num_key_value_heads=2, attention_bias=False, mlp_bias=False, vocab_size=2000)
    published = publish(model, 4, sigma, 0.0)
    one = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in one.named_parameters():
            parameter.copy_(published[0][name])
    alone = gap(model, one)
    assert gap(model, attack(model, published)) < 0.1 * alone
    # The same attack on copies with jitter of the noise's size leaves an error of that size, over sqrt(m).
    assert gap(model, attack(model, publish(model, 4, sigma, sigma))) > 0.25 * alone
