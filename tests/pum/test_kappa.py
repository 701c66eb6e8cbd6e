"""Noise as a share of the task vector, and the paper's other choices: fixed alphas, theta_0 as the reference."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pum_models as m
import pytest
import torch
from builders import make_tokenizer
from transformers import PreTrainedModel

from pum.arguments import PUMArguments
from pum.center import groups_of
from pum.kappa import kappa_sigmas
from pum.noise import SecretSource
from pum.publication import Publication, noise_plan
from pum.pum_trainer import PUMTrainer
from pum.unlearn.data import UnlearnData
from pum.unlearn.trainer import UnlearnTrainer
from src.utils import UserError


def fine_tuned(folder: Path) -> tuple[PreTrainedModel, str]:
    """A tiny model after a few steps of training, and the folder of what it was before."""
    model = m.tiny("llama", num_key_value_heads=2)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    m.lm_steps(5, 0.05)(model, folder, 5)
    model.zero_grad(set_to_none=True)
    return model, str(folder)


def rms_by_hand(model: PreTrainedModel, other: m.State) -> dict[int | None, float]:
    parts: dict[int | None, list[np.ndarray]] = {}
    for name, group in groups_of(model).items():
        change = model.get_parameter(name).detach().double() - other[name].double()
        parts.setdefault(group, []).append(change.flatten().numpy())
    return {group: math.sqrt(float(np.mean(np.concatenate(part) ** 2))) for group, part in parts.items()}


def test_sigma_is_kappa_times_the_rms_of_what_fine_tuning_changed(tmp_path: Path) -> None:
    model, base = fine_tuned(tmp_path / "base")
    expected = rms_by_hand(model, m.state(m.tiny("llama", num_key_value_heads=2)))
    found = kappa_sigmas(model, 0.1, base)
    assert set(found) == {0, 1}
    for layer, sigma in found.items():
        assert sigma == pytest.approx(0.1 * expected[layer], rel=1e-6)
    assert found[0] != pytest.approx(found[1], rel=0.01)


def test_copies_have_that_noise_in_the_layers_and_none_outside(tmp_path: Path) -> None:
    model, base = fine_tuned(tmp_path / "base")
    theta, sigmas = m.state(model), kappa_sigmas(model, 0.1, base)
    published: list[m.State] = []
    settings: dict[str, Any] = {"kappa": 0.1, "kappa_base_model_path": base, "use_orthogonal_reparam": False}
    trainer = m.run(model, tmp_path / "out", m.recorder(published), copies_m=2, alpha_max=1.0, **settings)
    for layer in (0, 1):
        noise = [
            np.concatenate(
                [(copy[n] - t).flatten().numpy() for n, t in theta.items() if groups_of(model)[n] == layer]
            )
            for copy in published
        ]
        # Two copies: e and -e, each of variance sigma^2; the layer has some 9,000 entries.
        np.testing.assert_allclose(noise[0], -noise[1], atol=1e-6)
        assert float(noise[0].std()) == pytest.approx(sigmas[layer], rel=0.05)
    for name, group in groups_of(model).items():
        if group is None:
            assert all(torch.equal(copy[name], theta[name]) for copy in published)
    report = trainer.privacy()
    assert report["private"] is False
    assert report["schedule"] == "manual: kappa"
    assert "lm_head.weight" in report["published_bare"]["parameters"]


def test_later_rounds_follow_theta(tmp_path: Path) -> None:
    model, base = fine_tuned(tmp_path / "base")
    before = kappa_sigmas(model, 0.1, base)
    args = PUMArguments(
        output_dir=str(tmp_path / "out"),
        use_cpu=True,
        kappa=0.1,
        kappa_base_model_path=base,
        copies_m=2,
        rounds_R=2,
    )
    plan = noise_plan(args, model, groups_of(model))
    assert {layer: plan.sigmas[layer] for layer in before} == before
    m.lm_steps(2, 0.3)(model, tmp_path, 2)
    moved = kappa_sigmas(model, 0.1, base)
    assert moved[0] > 1.05 * before[0]
    with torch.device("meta"):
        skeleton = m.tiny("llama", num_key_value_heads=2)
    for index, expected in enumerate((before, moved)):
        found = Publication(m.state(model), skeleton, args, plan, SecretSource(1), index, reference={}).sigmas
        assert {layer: found[layer] for layer in expected} == expected
        assert found[None] == 0.0


def test_without_a_base_model_it_is_a_share_of_the_weights_with_a_warning(tmp_path: Path) -> None:
    model = m.tiny("opt")
    zeros = {name: torch.zeros_like(tensor) for name, tensor in m.state(model).items()}
    expected = rms_by_hand(model, zeros)
    trainer = m.run(model, tmp_path, m.lm_steps(1, 0.1), kappa=0.01)
    for layer in (0, 1):
        assert trainer.plan.sigmas[layer] == pytest.approx(0.01 * expected[layer], rel=1e-6)
    assert any("give BASE_MODEL" in warning for warning in trainer.plan.warnings)


def test_a_base_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    model, base = fine_tuned(tmp_path / "base")
    with pytest.raises(UserError, match="has a layer equal to the model's: no noise"):
        kappa_sigmas(m.tiny("llama", num_key_value_heads=2), 0.1, base)
    with pytest.raises(UserError, match="has not the layers of the model"):
        kappa_sigmas(m.tiny("llama"), 0.1, base)
    with pytest.raises(UserError, match="cannot be told in this model"):
        kappa_sigmas(torch.nn.Linear(2, 2), 0.1, None)
    assert kappa_sigmas(model, 0.0, base) == {0: 0.0, 1: 0.0}


def test_fixed_alphas_are_the_papers(tmp_path: Path) -> None:
    model, published = m.tiny("opt"), []
    theta = m.state(model)
    settings: dict[str, Any] = {"alphas": "fixed", "sigma": 0.1, "use_orthogonal_reparam": False}
    trainer = m.run(model, tmp_path, m.recorder(published), copies_m=3, **settings)
    assert (trainer.args.alpha_min, trainer.args.alpha_max) == (1.0, 2.0)
    # e_1 + e_2 + e_3 = 0 and copy k is theta + alpha_k e_k with alphas 1, 1.5, 2.
    for name, tensor in theta.items():
        total = sum((copy[name] - tensor) / alpha for copy, alpha in zip(published, (1.0, 1.5, 2.0), strict=True))
        torch.testing.assert_close(total, torch.zeros_like(tensor), rtol=0, atol=1e-6)


DATA = UnlearnData(
    [{"input_ids": [3, 4, 5, 6], "labels": [-100, -100, 5, 6]}] * 2,
    [{"input_ids": [7, 8, 9], "labels": [-100, 8, 9]}] * 2,
)


@pytest.mark.parametrize("which", ["copy", "server"])
def test_the_client_compares_with_its_copy_or_with_theta_0(
    tmp_path: Path, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shared, not copied; the second round's theta is another, the reference is not."""
    model = m.tiny("llama")
    theta = m.state(model)
    seen: list[tuple[m.State, m.State]] = []
    right = UnlearnTrainer.train

    def spy(self: UnlearnTrainer, *args: Any, **kwargs: Any) -> Any:
        reference = self.method.frozen.parameters
        seen.append(({n: t.clone() for n, t in reference.items()}, m.state(self.model)))
        return right(self, *args, **kwargs)

    monkeypatch.setattr(UnlearnTrainer, "train", spy)
    args = PUMArguments(
        output_dir=str(tmp_path),
        use_cpu=True,
        method="NPO",
        client_reference=which,
        sigma=0.01,
        copies_m=2,
        rounds_R=2,
        local_max_steps=1,
        learning_rate=1e-2,
        warmup_epochs=0.0,
        disable_tqdm=True,
        fingerprint=False,
    )
    trainer = PUMTrainer(model, args, DATA)
    trainer.train()
    assert len(seen) == 4
    for reference, copy in seen:
        for name, tensor in reference.items():
            assert torch.equal(tensor, copy[name] if which == "copy" else theta[name])
            assert not torch.equal(copy[name], theta[name])
    assert trainer.privacy()["private"] is False
