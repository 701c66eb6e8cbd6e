"""What a PUM run publishes: disguised noisy copies around a clipped centre, and what they give away."""

from __future__ import annotations

import json
from pathlib import Path

import pum_models as m
import pytest
import torch
from builders import make_tokenizer
from transformers import PreTrainedModel

from pum.arguments import PUMArguments
from pum.center import center, clip_scales, distances, groups_of
from pum.noise import SecretSource, draw_alphas
from pum.pum_trainer import PUMTrainer
from pum.reparam import Disguise


def harmonic(copies: list[m.State], alphas: list[float], disguises: list[Disguise]) -> m.State:
    """sum_k T_k^-1(published_k)/alpha_k / sum_k 1/alpha_k: the attack that tau = 0 allows."""
    total = sum(1 / alpha for alpha in alphas)
    parts = [
        {name: tensor / alpha / total for name, tensor in disguise.invert(published).items()}
        for published, alpha, disguise in zip(copies, alphas, disguises, strict=True)
    ]
    return {name: sum((part[name] for part in parts), torch.tensor(0.0)) for name in copies[0]}


def secrets_of(model: PreTrainedModel, copies: int, round_index: int = 0) -> tuple[list[float], list[Disguise]]:
    """What secret_seed=1 gives: the adversary of the joint accounting knows it."""
    source = SecretSource(1)
    alphas = draw_alphas(copies, 1.0, 1.5, source.generator("alpha", round_index))
    disguises = [Disguise.sample(model, source.generator("disguise", round_index, k)) for k in range(copies)]
    return alphas, disguises


def test_copies_are_disguised_noisy_and_give_theta_away_without_jitter(tmp_path: Path) -> None:
    model, published = m.tiny("qwen2", num_key_value_heads=2), []
    theta = m.state(model)
    alphas, disguises = secrets_of(model, 4)
    m.run(model, tmp_path, m.recorder(published), sigma=0.1)
    assert len(published) == 4
    for alpha, disguise, shown in zip(alphas, disguises, published, strict=True):
        noise = torch.cat([(t - theta[n]).flatten() for n, t in disguise.invert(shown).items()])
        assert float(noise.std()) == pytest.approx(0.1 * alpha, rel=0.03)
    recovered = harmonic(published, alphas, disguises)
    for name, tensor in theta.items():
        torch.testing.assert_close(recovered[name], tensor, rtol=0, atol=3e-6)
    for name, tensor in m.state(model).items():
        torch.testing.assert_close(tensor, theta[name], rtol=0, atol=0)


def test_calibrated_jitter_stops_the_attack(tmp_path: Path) -> None:
    model, published = m.tiny("qwen2", num_key_value_heads=2), []
    theta = m.state(model)
    alphas, disguises = secrets_of(model, 4)
    target = {"dp_epsilon": 8.0, "dp_delta": 1e-5, "dp_accounting": "joint", "center_clip_C_global": 1.0}
    trainer = m.run(
        model, tmp_path, m.recorder(published), sigma=0.1, dp_sensitivity_per_layer_l2=[2.0, 2.0], **target
    )
    report = trainer.privacy()
    assert report["joint"]["epsilon"] == pytest.approx(8.0)
    assert report["jitter_tau"] > 0.5
    recovered = harmonic(published, alphas, disguises)
    error = torch.cat([(recovered[name] - tensor).flatten() for name, tensor in theta.items()])
    assert float(error.std()) > 0.9 * report["jitter_tau"] / 2
    assert float(error.std()) > float(torch.cat([t.flatten() for t in theta.values()]).std())


def test_reparameterisation_off_publishes_in_plain_coordinates(tmp_path: Path) -> None:
    model, published = m.tiny("opt"), []
    theta = m.state(model)
    m.run(model, tmp_path, m.recorder(published), copies_m=2, use_orthogonal_reparam=False)
    for shown in published:
        for name, tensor in shown.items():
            assert torch.equal(tensor, theta[name])


def test_centre_is_clipped_around_a_public_reference_that_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    public, model = m.tiny("opt", seed=3), m.tiny("opt", seed=4)
    public.save_pretrained(tmp_path / "public")
    make_tokenizer().save_pretrained(tmp_path / "public")
    reference, groups = m.state(public), groups_of(model)
    published: list[m.State] = []
    thetas = [m.state(model)]
    limits: dict[int | None, float] = {0: distances(thetas[0], reference, groups)[0] / 2, 1: 1e9}
    right = PUMTrainer._apply

    def apply(self: PUMTrainer, merged: m.State) -> float:
        norm = right(self, merged)
        thetas.append(m.state(self.model))
        return norm

    monkeypatch.setattr(PUMTrainer, "_apply", apply)
    trainer = m.run(
        model,
        tmp_path / "out",
        m.recorder(published, m.lm_steps(1, 0.1)),
        center_clip_C_per_layer=list(limits.values()),
        center_reference_model_path=str(tmp_path / "public"),
        use_orthogonal_reparam=False,
        copies_m=2,
        rounds_R=2,
        theta_ref_beta=0.25,
        jitter_tau=1e-4,
    )
    assert trainer.privacy()["sensitivities"]["enforced"] is True
    for theta, copies in zip(thetas, (published[:2], published[2:]), strict=False):
        scales = clip_scales(distances(theta, reference, groups), limits)
        assert 0.3 < scales[0] < 0.8
        assert scales[1] == 1.0
        for name, tensor in theta.items():
            expected = center(tensor, reference[name], scales.get(groups[name], 1.0))
            mean = (copies[0][name] + copies[1][name]) / 2
            torch.testing.assert_close(mean, expected, rtol=0, atol=1e-3)
            reference[name] = 0.75 * reference[name] + 0.25 * mean


def test_quantile_policy_reads_reference_models(tmp_path: Path) -> None:
    paths = []
    for seed in (5, 6):
        paths.append(str(tmp_path / str(seed)))
        m.tiny("opt", seed=seed).save_pretrained(paths[-1])
        make_tokenizer().save_pretrained(paths[-1])
    model = m.tiny("opt")
    args = PUMArguments(
        output_dir=str(tmp_path / "out"),
        use_cpu=True,
        center_clip_ref_model_paths=json.dumps(paths),
        center_clip_quantile_q=1.0,
        local_max_steps=1,
    )
    trainer = PUMTrainer(model, args, inner=m.lm_steps(1, 0.1))
    base, groups = m.state(model), groups_of(model)
    norms = [distances(m.state(m.tiny("opt", seed=seed)), base, groups) for seed in (5, 6)]
    for layer in range(2):
        assert trainer.plan.thresholds[layer] == pytest.approx(1.25 * max(norm[layer] for norm in norms), rel=1e-5)
    assert any("center_reference_model_path" in warning for warning in trainer.plan.warnings)
