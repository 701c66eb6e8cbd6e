"""Directions and updates: exact restoration, the formula of the update, and the statistics of z."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from builders import make_model
from scipy import stats
from transformers import AutoModelForCausalLM

import src.zo.directions as space_module
from src.lora import LoraSettings, add_lora
from src.record.fingerprint import frozen_checksum
from src.zo import noise
from src.zo.directions import ParameterSpace, StepRecord, direction_seeds
from src.zo.optimizer import ZOOptimizer

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def build(track: str, dtype: torch.dtype = torch.float32, model_type: str = "opt"):
    model = make_model(model_type).to(dtype)
    return add_lora(model, LoraSettings(r=2, alpha=4)) if track == "lora" else model


def copy_of(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_same_bits(model, values):
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, values[name]), name


@pytest.mark.parametrize("track", ["lora", "ft"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_parameters_are_restored_bit_for_bit(track, dtype):
    model = build(track, dtype)
    before = copy_of(model)
    space = ParameterSpace(model)
    assert_same_bits(model, before)
    seen = []

    def losses():
        seen.append(copy_of(model))
        return torch.zeros(1)

    for seed in range(20):
        space.two_point(seed, 1e-3, losses)
    assert_same_bits(model, before)
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert any(not torch.equal(seen[0][name], before[name]) for name in trainable)


def test_the_two_points_lie_opposite_each_other_at_distance_eps():
    model = build("ft")
    before = copy_of(model)
    space = ParameterSpace(model)
    points = []
    space.two_point(5, 1e-3, lambda: points.append(copy_of(model)) or torch.zeros(1))
    for name, start in before.items():
        up, down = points[0][name] - start, points[1][name] - start
        torch.testing.assert_close(up, -down, rtol=0, atol=1e-6)
    whole = torch.cat([(points[0][n] - before[n]).flatten() for n in before]) / 1e-3
    assert stats.kstest(whole[::7].numpy(), "norm").pvalue > 1e-4
    assert whole.std().item() == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_mirrored_point_is_the_rounded_one(dtype):
    """theta - eps z computed from z, against the mirror image of theta + eps z: equal but for a few roundings."""
    model = build("ft", dtype)
    start = torch.cat([p.detach().flatten() for p in model.parameters()])
    space = ParameterSpace(model)
    points = []
    space.two_point(5, 1e-3, lambda: points.append(space._buffers[0].flat.clone()) or torch.zeros(1))
    z = noise._fill(torch.empty(start.numel()), 5, 0)
    assert torch.equal(points[0], (start.float() + 1e-3 * z).to(dtype)) or dtype == torch.float32
    expected = (start.float() - 1e-3 * z).to(dtype)
    assert (points[1] == expected).float().mean() > 0.9
    larger = torch.maximum(points[0].abs(), points[1].abs()).float()
    assert ((points[1].float() - expected.float()).abs() <= torch.finfo(dtype).eps * larger).all()


def test_an_error_in_a_pass_restores_too():
    model = build("ft")
    before = copy_of(model)
    space = ParameterSpace(model)
    calls = itertools.count()

    def fail():
        if next(calls) == 1:
            raise RuntimeError("second pass")
        return torch.zeros(1)

    with pytest.raises(RuntimeError, match="second pass"):
        space.two_point(3, 1e-3, fail)
    assert_same_bits(model, before)


def test_in_place_restoration_drifts_in_half_precision_only_slightly():
    model = build("ft", torch.float16)
    before = copy_of(model)
    space = ParameterSpace(model, inplace=True)
    for seed in range(20):
        space.two_point(seed, 1e-3, lambda: torch.zeros(1))
    drift = max((p - before[n]).abs().max().item() for n, p in model.named_parameters())
    assert 0 < drift < 0.02


@pytest.mark.parametrize("track", ["lora", "ft"])
def test_the_update_moves_against_the_perturbation(track):
    model = build(track)
    before = copy_of(model)
    space = ParameterSpace(model)
    points = []
    space.two_point(11, 1e-2, lambda: points.append(copy_of(model)) or torch.zeros(1))
    space.apply(StepRecord(0, (11,), (1.0,), 1e-2))
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter - before[name], points[1][name] - before[name], rtol=0, atol=1e-6)
        if parameter.requires_grad:
            assert not torch.equal(parameter, before[name])


@pytest.mark.parametrize("block_size", [1 << 22, 1000])
def test_the_update_is_the_mean_over_directions_plus_weight_decay(block_size, monkeypatch):
    for module in (space_module, noise):
        monkeypatch.setattr(module, "BLOCK_SIZE", block_size)
    seeds, coefficients, rate, decay = (3, 4, 5), (1.0, -1.0, 0.25), 0.01, 0.1
    reference = build("ft")
    directions = []
    for seed in seeds:
        model = build("ft")
        space = ParameterSpace(model)
        point = []
        space.two_point(seed, 1.0, lambda model=model, point=point: point.append(copy_of(model)) or torch.zeros(1))
        directions.append({n: point[0][n].double() - p.double() for n, p in reference.named_parameters()})
    model = build("ft")
    decayed = [n for n, p in model.named_parameters() if p.dim() > 1]
    ParameterSpace(model, decay, decayed).apply(StepRecord(0, seeds, coefficients, rate))
    for name, start in reference.named_parameters():
        mean = sum(c * z[name] for c, z in zip(coefficients, directions, strict=True)) / 3
        expected = start.double() - rate * (mean + (decay * start.double() if name in decayed else 0))
        torch.testing.assert_close(dict(model.named_parameters())[name].double(), expected, rtol=0, atol=2e-6)


def test_a_cached_direction_equals_a_regenerated_one(monkeypatch):
    kept = build("ft")
    ParameterSpace(kept).apply(StepRecord(0, (9,), (1.0,), 0.1))
    monkeypatch.setattr(space_module, "CACHED_ELEMENTS", 0)
    fresh = build("ft")
    ParameterSpace(fresh).apply(StepRecord(0, (9,), (1.0,), 0.1))
    assert_same_bits(fresh, copy_of(kept))


def test_directions_use_generators_of_their_own():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    space = ParameterSpace(build("ft"))
    torch.set_rng_state(state)
    space.apply(StepRecord(0, (9,), (1.0,), 0.1))
    assert torch.equal(torch.get_rng_state(), state)


def test_direction_seeds_differ_between_runs_steps_and_directions():
    seeds = {s for run in range(5) for step in range(50) for s in direction_seeds(run, step, 8)}
    assert len(seeds) == 5 * 50 * 8
    assert direction_seeds(0, 3, 1) == direction_seeds(0, 3, 4)[:1], "K = 1 is the first of K directions"
    assert all(0 <= seed < 2**48 for seed in seeds)


def test_neighbouring_blocks_and_seeds_are_uncorrelated():
    rows = torch.stack([noise._fill(torch.empty(20000), seed, block) for seed in (7, 90) for block in (0, 1)])
    correlation = np.corrcoef(rows.numpy()) - np.eye(4)
    assert np.abs(correlation).max() < 0.04


def test_tied_weights_move_once_and_stay_tied():
    model = build("ft")
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    space = ParameterSpace(model)
    assert space.num_elements == sum(p.numel() for p in model.parameters())
    assert model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()
    assert "lm_head.weight" not in space.parameters


@pytest.mark.parametrize("track", ["lora", "ft"])
def test_a_model_in_flat_buffers_saves_and_loads_as_before(track, tmp_path):
    model = build(track)
    space = ParameterSpace(model)
    space.apply(StepRecord(0, (1,), (1.0,), 0.1))
    model.save_pretrained(tmp_path)
    if track == "ft":
        again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
        assert_same_bits(again, copy_of(model))
    else:
        from peft import PeftModel

        again = PeftModel.from_pretrained(make_model("opt"), tmp_path)
        assert_same_bits(again, copy_of(model))


def test_loading_a_state_dict_reaches_the_flat_buffers():
    model = build("ft")
    start = {n: v.clone() for n, v in model.state_dict().items()}
    space = ParameterSpace(model)
    space.apply(StepRecord(0, (1,), (1.0,), 0.1))
    moved = space.checksum()
    model.load_state_dict(start)
    assert space.checksum() != moved
    space.apply(StepRecord(0, (1,), (1.0,), 0.1))
    assert space.checksum() == moved


def test_mixed_dtypes_are_trained_each_in_its_own():
    model = add_lora(make_model("opt").to(torch.bfloat16), LoraSettings(r=2, dtype="float32"))
    model.get_input_embeddings().weight.requires_grad_(True)
    space = ParameterSpace(model)
    dtypes = {p.dtype for p in space.parameters.values()}
    assert dtypes == {torch.float32, torch.bfloat16}
    before = copy_of(model)
    space.two_point(2, 1e-3, lambda: torch.zeros(1))
    assert_same_bits(model, before)
    space.apply(StepRecord(0, (2,), (1.0,), 0.5))
    assert all(not torch.equal(p, before[n]) for n, p in space.parameters.items())


def test_checksums_tell_one_changed_weight():
    model = build("lora")
    space = ParameterSpace(model)
    trainable, frozen = space.checksum(), frozen_checksum(model)
    with torch.no_grad():
        next(p for p in model.parameters() if not p.requires_grad)[0, 0] += 1e-3
    assert frozen_checksum(model) != frozen
    assert space.checksum() == trainable


def test_the_optimizer_applies_a_record_once():
    model = build("ft")
    space = ParameterSpace(model)
    optimizer = ZOOptimizer(space, lr=0.1)
    start = space.checksum()
    optimizer.step()
    assert space.checksum() == start
    optimizer.queue(StepRecord(0, (1,), (1.0,), 0.1))
    optimizer.step()
    moved = space.checksum()
    assert moved != start
    optimizer.step()
    assert space.checksum() == moved


def test_bad_records_and_models_are_refused():
    with pytest.raises(ValueError, match="2 seeds and 1 coefficients"):
        StepRecord(0, (1, 2), (1.0,), 0.1)
    frozen = build("ft").requires_grad_(False)
    with pytest.raises(ValueError, match="no trainable parameter"):
        ParameterSpace(frozen)
