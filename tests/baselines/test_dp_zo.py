"""DPZero and DP-AggZO: batches, clipping, noise, the released numbers and the path they lead to."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from builders import make_model, make_tokenizer

from baselines import dp_zo
from baselines.accounting import noise_multiplier
from baselines.discrete import RandomBits, discrete_gaussian, discrete_laplace
from baselines.dp_zo import DPArguments, DPZOTrainer
from paczo.randomness import SecretRandom
from src import transcript
from src.objectives import CandidateScoring
from src.utils import UserError
from src.zo.directions import ParameterSpace, StepRecord, direction_seeds

SENTENCES = ["a very good film", "the plot was dull", "so warm and bright", "slow cold actor"] * 5


def objective(model):
    prompts = [f"{sentence} It was" for sentence in SENTENCES]
    labels = [i % 2 for i in range(len(prompts))]
    return CandidateScoring(model, make_tokenizer(), prompts, [["terrible", "great"]] * len(prompts), labels)


def arguments(folder, **settings):
    values = {
        "output_dir": str(folder),
        "max_steps": 4,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "dp_sample_rate": 0.3,
        "dp_secret_seed": 5,
        "dp_clip": 0.4,
        "seed": 7,
    }
    return DPArguments(**{**values, **settings})


def trainer(folder, **settings):
    model = make_model("opt")
    return DPZOTrainer(model, arguments(folder, **settings), objective(model))


def direction(model, seed):
    """z as one flat vector: the step that a coefficient of -1 at rate 1 makes."""
    space = ParameterSpace(model)
    before = [p.clone() for p in space.parameters.values()]
    space.apply(StepRecord(0, (seed,), (-1.0,), 1.0))
    return [p.detach() - b for p, b in zip(space.parameters.values(), before, strict=True)]


def noisy_size(secrets, size, epsilon):
    scale = (1 / Fraction(epsilon)).as_integer_ratio()
    return max(1, size + discrete_laplace(RandomBits(secrets, "dp count", 0), *scale))


def shifted_losses(z, scale):
    model = make_model("opt")
    with torch.no_grad():
        for p, d in zip(model.parameters(), z, strict=True):
            p.add_(d, alpha=scale)
    return objective(model).losses().double().numpy()


def test_a_sample_without_a_finite_loss_counts_as_zero(tmp_path):
    """It must not stop the run: that would tell that a secret batch holds it."""
    run = trainer(tmp_path, dp_sample_rate=1.0, dp_k=2)
    run.create_optimizer()
    losses = run.train_dataset.losses
    whole, _ = run._derivatives(0, (3, 4))

    def broken(samples):
        values = losses(samples)
        values[5], values[7] = math.nan, math.inf
        return values

    run.train_dataset.losses = broken
    found, _ = run._derivatives(0, (3, 4))
    whole[:, [5, 7]] = 0.0
    np.testing.assert_array_equal(found, whole)
    assert np.abs(whole).sum(axis=1).min() > 0


def test_a_diverging_run_stops_at_the_dev_set(tmp_path):
    model = make_model("opt")
    args = arguments(tmp_path, learning_rate=1e30, eval_strategy="steps", eval_steps=2)
    run = DPZOTrainer(model, args, objective(model), objective(model))
    with pytest.raises(UserError, match="eval: losses are NaN or infinite; lower the learning rate"):
        run.train()
    assert len(transcript.read(tmp_path / "transcript.jsonl")[1]) == 2


@pytest.mark.parametrize("directions", [1, 3])
def test_a_run_is_the_recipe(directions, tmp_path):
    """The first release and the first two steps' parameters, from the formula."""
    run = trainer(tmp_path, dp_k=directions)
    run.train()
    steps = transcript.read(tmp_path / "transcript.jsonl")[1]
    assert len(steps) == run.releases == 4

    secrets = SecretRandom.from_seed(5)
    batch = [i for i in range(20) if secrets.uniform_index("poisson batch", i, 1 << 53) < 0.3 * (1 << 53)]
    assert batch
    seeds = direction_seeds(7, 0, directions)
    total = np.zeros(directions)
    model = make_model("opt")
    zs = [direction(make_model("opt"), seed) for seed in seeds]
    slopes = np.array([(shifted_losses(z, 1e-3) - shifted_losses(z, -1e-3)) / 2e-3 for z in zs])
    for i in batch:
        vector = slopes[:, i] / directions
        total += vector * min(1, 0.4 / np.linalg.norm(vector))
    std = 1 << 40
    noise = [discrete_gaussian(RandomBits(secrets, "dp noise", k), std) / std for k in range(directions)]
    size = 20 if directions == 1 else noisy_size(secrets, 20, 0.05 * 2.0)
    expected = (total + run.noise_multiplier * 0.4 * np.array(noise)) / (0.3 * size)
    assert np.allclose(np.array(steps[0].coefficients) / directions, expected, rtol=1e-3, atol=2e-3)
    assert any(np.linalg.norm(slopes[:, i] / directions) > 0.4 for i in batch), "clipping plays a part"

    # theta <- theta - lr sum_k v_k z_k, without a division by K
    with torch.no_grad():
        for record in steps:
            for seed, coefficient in zip(record.seeds, record.coefficients, strict=True):
                z = direction(make_model("opt"), seed)
                for p, d in zip(model.parameters(), z, strict=True):
                    p.add_(d, alpha=-record.learning_rate * coefficient / directions)
    for p, trained in zip(model.parameters(), run.model.parameters(), strict=True):
        assert torch.allclose(p, trained, atol=2e-5)


def test_the_noise_has_its_std_and_a_wrong_one_is_noticed(tmp_path):
    run = trainer(tmp_path, dp_k=1000, dp_clip=3.0, max_steps=20, dp_epsilon=0.5)
    run.create_optimizer()  # opens the records
    empty = np.zeros((1000, 0), np.float32)
    released = np.array([run.release(step, empty) for step in range(20)])
    noise = released / 1000 * (0.3 * run.count)  # coefficients are K v, v is divided by the expected batch
    std = noise_multiplier(0.475, accountant="rdp", delta=1e-5, sample_rate=0.3, steps=20) * 3.0

    def z_score(value):
        return (np.mean((noise / value) ** 2) - 1) / math.sqrt(2 / noise.size)

    assert abs(z_score(std)) < 4
    for wrong in (0.97, 1.03):
        assert abs(z_score(wrong * std)) > 4
    assert abs(noise.mean()) < 4 * std / math.sqrt(noise.size)
    assert len(np.unique(noise)) == noise.size, "no number is used twice"


def test_empty_batches_release_noise(tmp_path):
    run = trainer(tmp_path, dp_sample_rate=1e-4, max_steps=2, learning_rate=1e-9)
    run.train_dataset.losses = None  # nothing may be evaluated
    run.train()
    assert run.releases == 2
    assert all(record.coefficients[0] != 0 for record in transcript.read(tmp_path / "transcript.jsonl")[1])


def test_only_the_batch_is_evaluated(tmp_path):
    run = trainer(tmp_path)
    seen = []
    losses = run.train_dataset.losses

    def watched(samples=None):
        seen.append(samples.tolist())
        return losses(samples)

    run.train_dataset.losses = watched
    run.train()
    expected = [run.batch(step).tolist() for step in range(4)]
    assert seen == [batch for batch in expected if batch for _ in range(2)]


def test_nothing_public_tells_the_batch_or_its_loss(tmp_path):
    run = trainer(tmp_path, logging_steps=1, save_strategy="steps", save_steps=2)
    run.train()
    state = json.loads((tmp_path / "checkpoints/checkpoint-4/trainer_state.json").read_text())
    assert state["log_history"]
    assert not any("loss" in entry for entry in state["log_history"])
    head, _ = transcript.read(tmp_path / "transcript.jsonl")
    assert "data" not in head["public"]
    assert head["public"]["noise_multiplier"] == run.noise_multiplier
    assert head["public"]["mechanism"] == "dpzero"


def test_the_report_states_the_guarantee(tmp_path):
    report = trainer(tmp_path, dp_k=2, dp_epsilon=2.0).privacy()
    common = {"delta": 1e-5, "sample_rate": 0.3, "steps": 4}
    expected = {
        "rdp": noise_multiplier(1.9, accountant="rdp", **common),
        "pld": noise_multiplier(2.0, accountant="pld", **common),
    }
    assert report["mechanism"] == "dp-aggzo"
    assert report["private"] is False
    assert (report["epsilon"], report["delta"]) == (2.0, 1e-5)
    assert report["noise_multipliers"] == expected
    assert (report["accountant"], report["noise_multiplier"]) == ("rdp", expected["rdp"])
    assert (report["epsilon_of_noise"], report["epsilon_of_num_samples"]) == (1.9, 0.1)
    # (e^eps + delta) / (1 + e^eps)
    assert report["posterior_success_bound"] == pytest.approx((math.e**2 + 1e-5) / (1 + math.e**2), abs=1e-9)
    entropy = trainer(tmp_path, dp_secret_seed=None)
    assert entropy.privacy()["private"] is True


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dp_k": 0}, "dp_k must be at least 1"),
        ({"dp_epsilon": 0.0}, "dp_epsilon must be positive"),
        ({"dp_epsilon": math.inf}, "dp_epsilon must be positive"),
        ({"dp_clip": math.nan}, "dp_clip must be positive"),
        ({"dp_delta": 1.0}, "dp_delta must lie"),
        ({"dp_sample_rate": 0.0}, "dp_sample_rate must lie"),
        ({"dp_sample_rate": 1.5}, "dp_sample_rate must lie"),
        ({"dp_accountant": "prv"}, "dp_accountant must be one of rdp and pld"),
        ({"dp_load_best_dev": True}, "needs --eval_steps"),
    ],
)
def test_settings_that_guarantee_nothing_are_refused(settings, message, tmp_path):
    with pytest.raises(UserError, match=message):
        arguments(tmp_path, **settings)


@pytest.mark.parametrize(
    ("settings", "shares", "count"),
    [
        ({"dp_k": 1}, (2.0, 0.0), "num_samples"),
        ({"dp_k": 3}, (1.9, 0.1), "noisy_num_samples"),
        ({"dp_k": 1, "dp_accountant": "pld"}, (2.0, 0.0), "num_samples"),
        ({"dp_k": 3, "dp_accountant": "pld"}, (2.0, 0.0), "num_samples"),
    ],
)
def test_shares_of_epsilon_and_what_is_said_of_n(settings, shares, count, tmp_path):
    run = trainer(tmp_path, dp_epsilon=2.0, **settings)
    report, public = run.privacy(), run.public_header()
    assert (report["epsilon_of_noise"], report["epsilon_of_num_samples"]) == shares
    assert report["noise_multiplier"] == report["noise_multipliers"][report["accountant"]]
    assert report["noise_multipliers"]["pld"] < report["noise_multipliers"]["rdp"]
    assert public["dp_accountant"] == report["accountant"]
    expected = noisy_size(SecretRandom.from_seed(5), 20, shares[1]) if shares[1] else 20
    assert {name: value for name, value in public.items() if "num_samples" in name} == {count: expected}


def test_what_an_accountant_cannot_show_is_refused(tmp_path):
    with pytest.raises(UserError, match="use pld"):
        trainer(tmp_path, dp_epsilon=0.01)
    assert trainer(tmp_path, dp_epsilon=0.01, dp_accountant="pld").privacy()["noise_multipliers"]["rdp"] is None
    with pytest.raises(UserError, match="too small beside dp_epsilon"):
        trainer(tmp_path, dp_epsilon=60.0)


def test_the_check_of_derivatives_looks_at_the_dev_set(tmp_path):
    """A figure of the training samples would leave without noise."""
    run = trainer(tmp_path)
    assert run.checked_objective() is run.eval_dataset is None
    run.train()
    assert run.derivative_check is None


def test_the_first_process_draws_for_all(tmp_path, monkeypatch):
    """Another process of a resumed run has a key of its own, which nothing may be drawn from."""
    run = trainer(tmp_path, dp_sample_rate=0.5)
    run.create_optimizer()
    chosen = np.array([1, 4, 11])
    monkeypatch.setattr(dp_zo, "on_first", lambda work: chosen)
    derivatives, _ = run._derivatives(0, (3,))
    expected, _ = run.source((3,), torch.from_numpy(chosen))
    np.testing.assert_array_equal(derivatives, expected)
