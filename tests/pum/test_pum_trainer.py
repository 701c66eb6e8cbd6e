"""The trainer: exact on quadratics, error on a real loss, streaming, memory, failures, clipping."""

from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path
from typing import Any

import pum_models as m
import pytest
import torch
from builders import make_tokenizer
from torch import Tensor, nn

from pum.aggregate import HarmonicMean
from pum.arguments import PUMArguments
from pum.center import groups_of
from pum.pum_trainer import Inner, PUMTrainer
from pum.unlearn.data import UnlearnData
from src.utils import UserError


class Quadratic(nn.Module):
    """f(theta) = 1/2 (theta - b)' A (theta - b) over 40 parameters in two layers and a head."""

    def __init__(self) -> None:
        super().__init__()
        gen = torch.Generator().manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(3, 4, dtype=torch.float64) for _ in range(2))
        self.head = nn.Linear(7, 1, dtype=torch.float64)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=gen)
        half = torch.randn(40, 40, generator=gen, dtype=torch.float64)
        self.register_buffer("curvature", half @ half.T / 40)
        self.register_buffer("minimum", torch.randn(40, generator=gen, dtype=torch.float64))

    def forward(self) -> Tensor:
        gap = torch.cat([parameter.flatten() for parameter in self.parameters()]) - self.minimum
        return 0.5 * gap @ self.curvature @ gap


def quadratic_steps(model: nn.Module, run_dir: Path, max_steps: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    for _ in range(max_steps):
        optimizer.zero_grad()
        model().backward()
        optimizer.step()


# --- zero-sum cancellation


@pytest.mark.parametrize("alpha_max", [1.0, 1.5, 4.0])
@pytest.mark.parametrize("sigma", [1e-3, 0.1, 3.0])
@pytest.mark.parametrize("copies", [2, 5])
def test_quadratic_gives_the_noise_free_update(
    tmp_path: Path, copies: int, sigma: float, alpha_max: float
) -> None:
    model = Quadratic()
    plain = copy.deepcopy(model)
    before = m.state(model)
    quadratic_steps(plain, tmp_path, 3)
    settings = {"copies_m": copies, "sigma": sigma, "alpha_max": alpha_max, "use_orthogonal_reparam": False}
    m.run(model, tmp_path, quadratic_steps, **settings, secret_seed=None, save_strategy="no")
    exact, merged = m.state(plain), m.state(model)
    for name in before:
        # Per unit of noise: what float32 noise and S1 leave of it.
        torch.testing.assert_close(merged[name], exact[name], rtol=0, atol=1e-6 * max(1.0, sigma))
        assert not torch.allclose(merged[name], before[name])


def test_unequal_weights_would_not_cancel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain mean of the updates, without 1/alpha, misses the noise-free update."""
    right = HarmonicMean.add
    monkeypatch.setattr(HarmonicMean, "add", lambda self, update, alpha: right(self, update, 1.0))
    model, plain = Quadratic(), Quadratic()
    quadratic_steps(plain, tmp_path, 3)
    m.run(model, tmp_path, quadratic_steps, sigma=0.1, use_orthogonal_reparam=False)
    gap = max(
        float((a - b).abs().max()) for a, b in zip(m.state(model).values(), m.state(plain).values(), strict=True)
    )
    assert gap > 1e-3


@pytest.mark.parametrize("model_type", ["llama", "opt"])
def test_disguised_weight_decay_cancels_too(tmp_path: Path, model_type: str) -> None:
    """theta <- 0.9 theta is affine and commutes with every disguise: the whole path must be exact."""
    model = m.tiny(model_type)
    before = m.state(model)

    def decay(model: nn.Module, run_dir: Path, max_steps: int) -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.9)

    m.run(model, tmp_path, decay, sigma=0.05, eta_srv=0.5, rounds_R=2)
    for name, tensor in m.state(model).items():
        torch.testing.assert_close(tensor, before[name] * 0.95**2, rtol=0, atol=1e-6)


def test_error_on_a_real_loss_falls_with_sigma_squared(tmp_path: Path) -> None:
    start = m.tiny("llama", num_key_value_heads=2).double()
    inner = m.lm_steps(2, 0.05)
    plain = copy.deepcopy(start)
    inner(plain, tmp_path, 2)
    exact = m.state(plain)
    errors = []
    sigmas = (0.001, 0.0005, 0.00025)
    for sigma in sigmas:
        model = copy.deepcopy(start)
        m.run(model, tmp_path, inner, sigma=sigma, copies_m=4)
        errors.append(math.sqrt(sum(float((t - exact[n]).square().sum()) for n, t in m.state(model).items())))
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    print("sigma, error:", *zip(sigmas, errors, strict=True))
    assert all(1.85 < slope < 2.15 for slope in slopes), errors


# --- streaming and memory


def test_streaming_equals_storing_all_updates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored: list[tuple[m.State, float]] = []
    right = HarmonicMean.add

    def keep(self: HarmonicMean, update: m.State, alpha: float) -> None:
        stored.append(({name: tensor.clone() for name, tensor in update.items()}, alpha))
        right(self, update, alpha)

    monkeypatch.setattr(HarmonicMean, "add", keep)
    model = m.tiny("mistral", num_key_value_heads=2)
    theta = m.state(model)
    m.run(model, tmp_path, m.lm_steps(2, 0.1), sigma=0.02, copies_m=6)
    total = sum(1 / alpha for _, alpha in stored)
    for name, tensor in m.state(model).items():
        exact = (
            sum((u[name].double() / alpha for u, alpha in stored), torch.zeros((), dtype=torch.float64)) / total
        )
        torch.testing.assert_close(tensor.double(), theta[name].double() + exact, rtol=0, atol=1e-6)


def test_peak_memory_does_not_depend_on_the_number_of_copies(tmp_path: Path) -> None:
    settings = {"hidden_size": 128, "intermediate_size": 512, "vocab_size": 2000, "num_key_value_heads": 2}
    size = 4 * sum(parameter.numel() for parameter in m.tiny("llama", **settings).parameters())
    peaks = {}
    for copies in (2, 8, 16):
        model = m.tiny("llama", **settings)
        trainer = {"sigma": 0.01, "copies_m": copies, "rounds_R": 1}
        peaks[copies] = m.peak_bytes(
            lambda model=model, trainer=trainer: m.run(model, tmp_path, m.lm_steps(1, 0.1), **trainer)
        )
    print("peak in models:", {copies: round(peak / size, 2) for copies, peak in peaks.items()})
    assert max(peaks.values()) < 1.05 * min(peaks.values())
    # Copy, what was published, gradients or the noise's sums, one parameter on the way; or copy, theta, S1.
    assert max(peaks.values()) < 4 * size


def test_theta_is_on_disk_while_copies_are_trained(tmp_path: Path) -> None:
    model = m.tiny("llama")
    seen = []

    def inner(copy: nn.Module, run_dir: Path, max_steps: int) -> None:
        assert {n: p.shape for n, p in model.named_parameters()} == {
            n: p.shape for n, p in copy.named_parameters()
        }
        seen.append(sum(parameter.untyped_storage().nbytes() for parameter in model.parameters()))
        m.lm_steps(1, 0.1)(copy, run_dir, max_steps)

    before = m.state(model)
    m.run(model, tmp_path, inner, sigma=0.01, copies_m=3, rounds_R=2)
    assert seen == [4 * len(before)] * 6
    assert all(not torch.equal(tensor, before[name]) for name, tensor in m.state(model).items())


def test_adam_with_a_reference_holds_five_models_and_activations(tmp_path: Path) -> None:
    """The copy, what was published (the reference, too), gradients and Adam's two; theta is on disk."""
    settings = {"hidden_size": 128, "intermediate_size": 512, "vocab_size": 2000, "num_key_value_heads": 2}
    model = m.tiny("llama", **settings)
    size = 4 * sum(parameter.numel() for parameter in model.parameters())
    rows = [{"input_ids": [3, 4, 5, 6], "labels": [-100, -100, 5, 6]}] * 2
    args = PUMArguments(
        output_dir=str(tmp_path),
        use_cpu=True,
        method="NPO",
        sigma=0.01,
        copies_m=4,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        num_train_epochs=2,
        disable_tqdm=True,
        fingerprint=False,
        logging_strategy="no",
    )
    trainer = PUMTrainer(model, args, UnlearnData(rows, rows))
    trainer.save_model = lambda *_: None  # type: ignore[method-assign]
    peak = m.peak_bytes(trainer.train) / size  # theta, made before, is not in it until it is read again
    print(f"peak in models: {peak:.2f}")
    assert peak < 6


# --- failures leave theta as it was


def _nan(model: nn.Module, run_dir: Path, max_steps: int) -> None:
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] = math.nan


def _grown(model: nn.Module, run_dir: Path, max_steps: int) -> None:
    model.resize_token_embeddings(60)  # type: ignore[operator]


def _renamed(model: nn.Module, run_dir: Path, max_steps: int) -> None:
    model.extra = nn.Linear(2, 2)


def _third(inner: Inner) -> Inner:
    """Two honest copies, then `inner`."""
    calls = []

    def third(model: nn.Module, run_dir: Path, max_steps: int) -> None:
        calls.append(run_dir)
        (inner if len(calls) == 3 else m.lm_steps(1, 0.1))(model, run_dir, max_steps)

    return third


@pytest.mark.parametrize(
    ("inner", "message"),
    [(_nan, "NaN or infinity"), (_grown, "another name or shape"), (_renamed, "extra.* another name or shape")],
)
def test_a_broken_copy_stops_the_run(tmp_path: Path, inner: Inner, message: str) -> None:
    model = m.tiny("llama")
    before = m.state(model)
    with pytest.raises(UserError, match=message) as caught:
        m.run(model, tmp_path, _third(inner), sigma=0.01)
    assert "\n" not in str(caught.value)
    for name, tensor in m.state(model).items():
        assert torch.equal(tensor, before[name])
    assert not (tmp_path / "privacy.json").exists()
    assert not list(tmp_path.glob("*.safetensors"))


def test_bad_settings_are_refused_before_anything_runs(tmp_path: Path) -> None:
    def fail(model: nn.Module, run_dir: Path, max_steps: int) -> None:
        raise AssertionError("the inner routine ran")

    cases: list[tuple[str, dict[str, Any], str]] = [
        ("gpt2", {}, "gpt2"),
        ("opt", {"dp_sensitivity_per_layer_l2": [1.0]}, "has 1 entries, but the model has 2 layers"),
        (
            "opt",
            {"center_reference_model_path": str(tmp_path / "no"), "center_clip_C_global": 1.0},
            "cannot load model",
        ),
        (
            "opt",
            {"center_reference_model_path": str(tmp_path / "same"), "center_clip_C_global": 1.0},
            "is the protected model itself",
        ),
        ("opt", {"copies_m": 1, "sigma_rms": 0.01}, "no zero-sum noise"),
        ("opt", {"local_max_steps": None}, "local steps are not known"),
    ]
    m.tiny("opt").save_pretrained(tmp_path / "same")
    make_tokenizer().save_pretrained(tmp_path / "same")
    for model_type, settings, message in cases:
        with pytest.raises(UserError, match=message):
            m.run(m.tiny(model_type), tmp_path, fail, **settings)
    m.run(m.tiny("gpt2"), tmp_path, m.lm_steps(1, 0.1), use_orthogonal_reparam=False)
    args = PUMArguments(output_dir=str(tmp_path), use_cpu=True)
    with pytest.raises(UserError, match="inner routine"):
        PUMTrainer(m.tiny("opt"), args)


def test_update_clipping_and_half_precision(tmp_path: Path) -> None:
    model = m.tiny("llama")
    theta = m.state(model)
    m.run(model, tmp_path, m.lm_steps(1, 5.0), copies_m=1, clip_update_norm=0.5)
    moved = torch.cat([(tensor - theta[name]).flatten() for name, tensor in m.state(model).items()])
    assert float(moved.norm()) == pytest.approx(0.5, rel=1e-4)
    model = m.tiny("llama")
    m.run(model, tmp_path, m.lm_steps(1, 5.0), copies_m=1, clip_update_norm_per_layer=[0.1, 0.2])
    groups, layers = groups_of(model), {0: 0.0, 1: 0.0, None: 0.0}
    for name, tensor in m.state(model).items():
        layers[groups[name]] += float((tensor - theta[name]).square().sum())
    assert math.sqrt(layers[0]) == pytest.approx(0.1, rel=1e-3)
    assert math.sqrt(layers[1]) == pytest.approx(0.2, rel=1e-3)
    half = m.tiny("llama").to(torch.bfloat16)
    m.run(half, tmp_path, m.lm_steps(1, 0.5), sigma=0.01)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert any(not torch.equal(t, theta[n].to(torch.bfloat16)) for n, t in m.state(half).items())
