"""The clipped centre: layers from names, thresholds, the moving reference, the quantile policy."""

from __future__ import annotations

import numpy as np
import pum_models as m
import pytest
import torch

from pum.center import (
    center,
    clip_scales,
    count_layers,
    distances,
    groups_of,
    layer_distances,
    layer_index,
    quantile_thresholds,
    update_reference,
)
from src.utils import UserError


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.0.mlp.up_proj.weight", 0),
        ("model.decoder.layers.11.fc1.bias", 11),
        ("transformer.h.3.attn.c_attn.weight", 3),
        ("model.embed_tokens.weight", None),
        ("model.decoder.final_layer_norm.weight", None),
        ("lm_head.weight", None),
        ("model.layers_of.3.weight", None),
        ("batch.3.weight", None),
    ],
)
def test_layers_are_read_from_names(name: str, layer: int | None) -> None:
    assert layer_index(name) == layer


def test_groups_of_models() -> None:
    for model_type in ("opt", "llama", "gpt2"):
        groups = groups_of(m.tiny(model_type, layers=3))
        assert count_layers(groups) == 3
        assert set(groups.values()) == {0, 1, 2, None}
    plain = groups_of(torch.nn.Linear(2, 2))
    assert set(plain.values()) == {None}
    assert count_layers(plain) == 0
    gap = torch.nn.ModuleDict(
        {"layers": torch.nn.ModuleDict({"0": torch.nn.Linear(1, 1), "2": torch.nn.Linear(1, 1)})}
    )
    assert count_layers(groups_of(gap)) == 0


def test_the_centre_lies_within_the_threshold_of_the_reference() -> None:
    model, other = m.tiny("llama", seed=1), m.tiny("llama", seed=2)
    theta, reference = dict(model.named_parameters()), dict(other.named_parameters())
    groups = groups_of(model)
    norms = distances(theta, reference, groups)
    flat = torch.cat([(theta[n] - reference[n]).detach().flatten() for n, g in groups.items() if g == 0])
    assert norms[0] == pytest.approx(float(flat.double().norm()), rel=1e-6)
    limits = {0: norms[0] / 3, 1: norms[1] * 2}
    scales = clip_scales(norms, limits)
    assert scales == {0: pytest.approx(1 / 3), 1: 1.0}
    clipped = {n: center(theta[n], reference[n], scales.get(g, 1.0)) for n, g in groups.items()}
    after = distances(clipped, reference, groups)
    assert after[0] == pytest.approx(limits[0], rel=1e-5)
    assert after[1] == norms[1]
    assert after[None] == norms[None]
    for name, group in groups.items():
        if group != 0:
            assert torch.equal(clipped[name], theta[name])
    assert clip_scales({0: 5.0}, {0: 0.0}) == {0: 0.0}
    assert clip_scales({0: 0.0}, {0: 0.0}) == {0: 1.0}


def test_two_clipped_centres_differ_by_at_most_twice_the_threshold() -> None:
    reference = {"layers.0.w": torch.zeros(100)}
    groups = {"layers.0.w": 0}
    gen = torch.Generator().manual_seed(0)
    for _ in range(50):
        clipped = []
        for _ in range(2):
            theta = {"layers.0.w": torch.randn(100, generator=gen) * float(torch.rand(1, generator=gen)) * 3}
            scale = clip_scales(distances(theta, reference, groups), {0: 4.0})[0]
            clipped.append(center(theta["layers.0.w"], reference["layers.0.w"], scale))
        assert float((clipped[0] - clipped[1]).norm()) <= 8.0 * (1 + 1e-6)


def test_the_reference_moves_towards_what_was_published() -> None:
    reference = {"a": torch.tensor([1.0, 2.0])}
    update_reference(reference, {"a": torch.tensor([3.0, 0.0])}, 0.75)
    assert torch.equal(reference["a"], torch.tensor([2.5, 0.5]))


def test_quantile_policy_by_hand() -> None:
    model = m.tiny("opt")
    base = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    norms = []
    for shift in (0.1, 0.2, 0.4):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(base[name] + (shift if layer_index(name) == 0 else 0.0))
        norms.append(layer_distances(model, base, "ref"))
    entries = sum(tensor.numel() for name, tensor in base.items() if layer_index(name) == 0)
    np.testing.assert_allclose(np.array(norms)[:, 0], np.array([0.1, 0.2, 0.4]) * entries**0.5, rtol=1e-5)
    assert [row[1] for row in norms] == [0.0, 0.0, 0.0]
    # Quantile 0.95 of three values: nine tenths of the way from the second to the third.
    found = quantile_thresholds(norms, 0.95, 1.25)
    assert found[0] == pytest.approx(1.25 * (0.2 + 0.9 * 0.2) * entries**0.5, rel=1e-5)
    assert found[1] == 0.0
    with pytest.raises(UserError, match="at least one reference"):
        quantile_thresholds([], 0.95, 1.25)
    with pytest.raises(UserError, match="'other' has not the layers"):
        layer_distances(m.tiny("opt", layers=3), base, "other")
