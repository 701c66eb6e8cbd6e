"""The private trainer: what is released, what it costs, what is written, and that it learns."""

from __future__ import annotations

import json
import math
import stat
from dataclasses import replace

import numpy as np
import pytest
import torch
from builders import make_model

import paczo.pac_trainer as pac_trainer
from paczo.bounds import naming_success, tpr_at_fpr
from paczo.mechanisms import PacMI, PacZPL
from paczo.pac_trainer import PACArguments, PACTrainer
from paczo.pac_utils import clip_derivatives, subset_signs
from paczo.randomness import SecretRandom
from src import transcript
from src.lora import LoraSettings, add_lora
from src.objectives import CandidateScoring
from src.record.chain import read_records
from src.sample_data.learning_task import LearningTask, pretrain
from src.utils import UserError

NUM_SAMPLES = 24


@pytest.fixture(scope="module")
def task():
    return pretrain()


def fresh(task):
    """The same pretrained model again, to be trained."""
    model = type(task.model)(task.model.config)
    model.load_state_dict(task.model.state_dict())
    return LearningTask(model.eval(), task.tokenizer)


def arguments(folder, **settings):
    values = {
        "output_dir": str(folder),
        "max_steps": 6,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "polynomial",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "pac_m": 8,
    }
    return PACArguments(**{**values, **settings})


def train(task, folder, num_samples=NUM_SAMPLES, **settings):
    """A trainer after its run, and the derivatives that its releases saw."""
    trainer = PACTrainer(task.model, arguments(folder, **settings), task.objective(num_samples, seed=1))
    seen = []
    release = trainer.release

    def record(step, derivatives):
        seen.append(derivatives.copy())
        return release(step, derivatives)

    trainer.release = record
    trainer.train()
    return trainer, seen


def coefficients(folder):
    return [record.coefficients for record in transcript.read(folder / "transcript.jsonl")[1]]


def test_pac_zpl_learns_and_a_random_sign_does_not(task, tmp_path):
    settings = {"num_samples": 1000, "pac_m": 128, "max_steps": 100, "pac_secret_seed": 1}
    before = task.objective(500, seed=2).metrics()["accuracy"]
    private, control = fresh(task), fresh(task)
    trainer, _ = train(private, tmp_path / "zpl", pac_zpl=True, **settings)
    train(control, tmp_path / "random", no_privacy=True, ablation="random_sign", **settings)
    assert before < 0.6
    assert private.objective(500, seed=2).metrics()["accuracy"] > 0.9
    assert abs(control.objective(500, seed=2).metrics()["accuracy"] - before) <= 0.05
    assert trainer.privacy()["releases"]["unanimous"] > 80


def test_zpl_bits_are_the_same_for_every_secret_subset(task, tmp_path, monkeypatch):
    """Data, membership and coins fixed; S* runs through all M values."""
    runs = []
    for secret in range(8):
        monkeypatch.setattr(SecretRandom, "uniform_index", fixed_index(secret))
        trainer, _ = train(fresh(task), tmp_path / str(secret), pac_zpl=True, pac_secret_seed=5)
        assert trainer._secret == secret
        runs.append((tmp_path / str(secret) / "transcript.jsonl").read_bytes())
    assert len(set(runs)) == 1
    assert trainer.releases["coin"] > 0, "the subsets never disagreed, so nothing was tested"


def test_zpl_trits_are_the_same_for_every_secret_subset_and_key(task, tmp_path, monkeypatch):
    """Abstaining: nothing of a run's bits depends on S*, nor on any random number."""
    runs = []
    for secret in range(8):
        monkeypatch.setattr(SecretRandom, "uniform_index", fixed_index(secret))
        folder = tmp_path / str(secret)
        trainer, _ = train(
            fresh(task), folder, pac_zpl=True, pac_zpl_abstain=True, pac_k=4, pac_secret_seed=secret
        )
        assert trainer._secret == secret
        runs.append(coefficients(folder))
    assert all(run == runs[0] for run in runs)
    released = [value for step in runs[0] for value in step]
    assert {0.0}.issubset(released), "the subsets never disagreed, so nothing was tested"
    counts = trainer.privacy()["releases"]
    assert counts == {"abstain": released.count(0.0), "unanimous": len(released) - released.count(0.0)}
    assert trainer.privacy()["mechanism"] == "pac-zpl, abstaining"
    assert trainer.privacy()["posterior_success_bound"] == 0.5


@pytest.mark.parametrize("resting", [2, 6])
def test_steps_in_which_all_directions_abstain_change_nothing_and_pass(resting, task, tmp_path, monkeypatch):
    """At the start, where a first step that changed nothing stops a run, and as all that happens."""
    model = fresh(task)
    before = [p.clone() for p in model.model.parameters()]
    release = PacZPL.release

    def abstaining(self, signs):
        made = release(self, signs)
        return replace(made, bit=0.0, kind="abstain") if self.releases <= 2 * resting else made

    monkeypatch.setattr(PacZPL, "release", abstaining)
    train(model, tmp_path, pac_zpl=True, pac_zpl_abstain=True, pac_k=2, pac_m=2, pac_secret_seed=1)
    assert [set(step) for step in coefficients(tmp_path)[:resting]] == [{0.0}] * resting
    moved = any(not torch.equal(p, q) for p, q in zip(before, model.model.parameters(), strict=True))
    assert moved == (resting < 6)
    again = transcript.replay(fresh(task).model, tmp_path / "transcript.jsonl")
    for left, right in zip(model.model.parameters(), again.parameters(), strict=True):
        assert torch.equal(left, right)


def test_a_step_that_should_have_changed_something_is_noticed_after_one_that_rested(task, tmp_path, monkeypatch):
    release = PacZPL.release

    def first_abstains(self, signs):
        made = release(self, signs)
        return replace(made, bit=0.0 if self.releases == 1 else 1.0)

    monkeypatch.setattr(PacZPL, "release", first_abstains)
    settings = {"learning_rate": 1e-30, "lr_scheduler_type": "constant"}
    with pytest.raises(UserError, match="changed no trainable parameter"):
        train(fresh(task), tmp_path, pac_zpl=True, pac_zpl_abstain=True, **settings)
    assert len(coefficients(tmp_path)) == 2


def fixed_index(secret, original=SecretRandom.uniform_index):
    return lambda self, purpose, index, n: secret if purpose == "secret" else original(self, purpose, index, n)


def test_pac_mi_bits_do_depend_on_the_secret_subset(task, tmp_path, monkeypatch):
    """The control of the test above: with a large budget the secret subset shows."""
    runs = set()
    for secret in range(8):
        monkeypatch.setattr(SecretRandom, "uniform_index", fixed_index(secret))
        train(fresh(task), tmp_path / str(secret), pac_mi=3.0, pac_secret_seed=5)
        runs.add(str(coefficients(tmp_path / str(secret))))
    assert len(runs) > 1


def test_pac_mi_by_the_bit_accounts_for_what_is_published(task, tmp_path):
    """The charges, flips and posterior follow from the transcript's bits and the signs, which an adversary has."""
    trainer, seen = train(
        fresh(task), tmp_path, num_samples=6, pac_mi=0.5, pac_charge="bit", max_steps=10, pac_k=2
    )
    assert trainer.mechanism_name == "pac-mi, charged by the bit"
    public = PacMI(8, 0, 0.5, 10, SecretRandom.from_seed(99), directions=2, charge="bit")
    public._source = Published([bit for step in coefficients(tmp_path) for bit in step])
    for derivatives in seen:
        for row in derivatives:
            signs = subset_signs(clip_derivatives(row, 25.0), trainer.membership)
            public._source.sign = signs[0]
            public.release(signs)
    assert public.posterior.tolist() == trainer.mechanism.posterior.tolist()
    assert public.spent_nats == trainer.privacy()["spent_nats"]
    assert 0 < public.spent_nats <= 0.5
    assert trainer.releases["noisy"] > 5


def test_the_log_says_how_far_a_run_is(task, tmp_path):
    """Unanimity and nats up to each step are those of the ledger; a run without a mechanism has neither."""
    trainer, _ = train(fresh(task), tmp_path / "mi", num_samples=6, pac_mi=0.5, logging_steps=1)
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    lines = read_records(tmp_path / "mi" / "private" / "ledger.jsonl")[1:7]
    assert [entry["spent_nats"] for entry in logged] == [line["spent_nats"] for line in lines]
    agreed = np.cumsum([line["releases"][0]["kind"] == "unanimous" for line in lines])
    assert [entry["unanimous"] for entry in logged] == (agreed / np.arange(1, 7)).tolist()
    assert all(entry["samples_per_second"] > 0 for entry in logged)
    free, _ = train(fresh(task), tmp_path / "free", num_samples=6, no_privacy=True, logging_steps=1)
    assert not any({"unanimous", "spent_nats"} & set(entry) for entry in free.state.log_history)


class Published:
    """Turns a sign wherever the published bit is not it."""

    def __init__(self, bits):
        self.bits, self.sign = bits, None

    def bernoulli(self, index, probability):
        return self.bits[index] != self.sign


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("directions", [1, 3])
def test_pac_mi_posterior_is_exact_bayes_and_spent_is_within_budget(adaptive, directions, task, tmp_path):
    settings = {"pac_adaptive_mi": adaptive, "pac_k": directions, "max_steps": 10, "pac_clip": 2.0}
    trainer, seen = train(fresh(task), tmp_path, num_samples=6, pac_mi=0.5, **settings)
    lines = read_records(tmp_path / "private" / "ledger.jsonl")[1:-1]
    log_posterior = np.zeros(8)
    noisy = 0
    for line, derivatives in zip(lines, seen, strict=True):
        for release, row in zip(line["releases"], derivatives, strict=True):
            if release["kind"] != "noisy":
                continue
            signs = subset_signs(clip_derivatives(row, 2.0), trainer.membership)
            log_posterior -= (signs - release["noisy_sign"]) ** 2 / (2 * release["noise_std"] ** 2)
            noisy += 1
    expected = np.exp(log_posterior - log_posterior.max())
    np.testing.assert_allclose(trainer.mechanism.posterior, expected / expected.sum(), rtol=1e-9)
    assert noisy > 0
    spent = [line["spent_nats"] for line in lines]
    assert spent == sorted(spent)
    assert 0 < spent[-1] <= 0.5
    assert trainer.privacy()["spent_nats"] == spent[-1]
    assert len(coefficients(tmp_path)[0]) == directions


def test_replay_of_a_lora_and_a_full_run_is_bit_identical(tokenizer, tmp_path):
    prompts, labels = ["a very good film It was", "dull It was", "cold It was", "warm It was"], [1, 0, 0, 1]
    for track in ("lora", "ft"):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            folder = tmp_path / track / str(dtype)
            model = make_model("llama").to(dtype)
            if track == "lora":
                model = add_lora(model, LoraSettings(r=2))
            objective = CandidateScoring(model, tokenizer, prompts, [["terrible", "great"]] * 4, labels)
            PACTrainer(model, arguments(folder, pac_mi=0.3, pac_k=2, learning_rate=0.01), objective).train()
            again = transcript.replay(make_model("llama").to(dtype), folder / "transcript.jsonl")
            for (name, left), (_, right) in zip(model.named_parameters(), again.named_parameters(), strict=True):
                assert torch.equal(left, right), (track, dtype, name)


def test_one_direction_releases_the_bits_that_the_first_of_several_would(task, tmp_path):
    for seed in range(4):
        settings = {"pac_zpl": True, "max_steps": 1, "pac_secret_seed": seed}
        train(fresh(task), tmp_path / f"one {seed}", **settings)
        train(fresh(task), tmp_path / f"four {seed}", pac_k=4, **settings)
        first = transcript.read(tmp_path / f"one {seed}" / "transcript.jsonl")[1][0]
        several = transcript.read(tmp_path / f"four {seed}" / "transcript.jsonl")[1][0]
        assert first.seeds == several.seeds[:1]
        assert first.coefficients == several.coefficients[:1]


def test_clipping_is_part_of_the_release(task, tmp_path, monkeypatch):
    """One huge derivative outvotes the others unless it is clipped."""
    trainer, seen = train(fresh(task), tmp_path, no_privacy=True, pac_clip=0.01, max_steps=2)
    assert np.abs(seen[0]).max() > 0.01
    for released, derivatives in zip(coefficients(tmp_path), seen, strict=True):
        assert released[0] == pytest.approx(np.clip(derivatives[0], -0.01, 0.01).mean(dtype=np.float64), rel=1e-12)
    ledger = read_records(tmp_path / "private" / "ledger.jsonl")
    assert ledger[1]["clip_share"][0] == np.mean(np.abs(seen[0]) > 0.01)
    assert trainer.privacy()["guarantee"] == "not accounted"
    assert ledger[1]["spent_nats"] is ledger[1]["releases"][0]["mi_nats"] is None


@pytest.mark.parametrize("mode", ["none", "quant_full", "raw_half", "quant_half"])
def test_non_private_modes_release_what_they_are_named_for(mode, task, tmp_path):
    trainer, seen = train(fresh(task), tmp_path, no_privacy=True, ablation=mode, pac_secret_seed=2)
    members = trainer.membership[:, trainer._secret]
    for released, derivatives in zip(coefficients(tmp_path), seen, strict=True):
        row = derivatives[0][members] if mode.endswith("half") else derivatives[0]
        mean = row.mean(dtype=np.float64)
        expected = mean if mode in ("none", "raw_half") else math.copysign(1.0, mean)
        assert released[0] == pytest.approx(expected, rel=1e-9)
    assert trainer.mechanism_name == f"non-private ({mode})"


def test_secrets_differ_between_runs_of_one_public_seed(task, tmp_path):
    """The subsets disagree in most steps here, so that equal coins by chance are out of the question."""
    settings = {"pac_zpl": True, "pac_m": 128, "max_steps": 60}
    bits = set()
    keys = set()
    for run in range(4):
        trainer, _ = train(fresh(task), tmp_path / str(run), **settings)
        bits.add(str(coefficients(tmp_path / str(run))))
        keys.add(trainer._random.export_key())
        assert trainer.privacy()["private"] is True
        assert trainer.releases["coin"] >= 30
    assert len(keys) == 4
    assert len(bits) == 4, "two runs tossed the same coins"
    for run in range(2):
        trainer, _ = train(fresh(task), tmp_path / f"seeded {run}", pac_secret_seed=3, **settings)
        assert trainer.privacy()["private"] is False
        assert trainer.privacy()["secrets"] == "reproducible secrets, not private"
    assert coefficients(tmp_path / "seeded 0") == coefficients(tmp_path / "seeded 1")


def test_public_and_private_files_are_apart(task, tmp_path):
    trainer, _ = train(fresh(task), tmp_path, pac_mi=0.33)
    private = tmp_path / "private"
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert stat.S_IMODE((private / "ledger.jsonl").stat().st_mode) == 0o600
    assert read_records(private / "ledger.jsonl")[0]["secret"] == trainer._secret
    head, _ = transcript.read(tmp_path / "transcript.jsonl")
    assert "operating-system entropy" in json.dumps(head)
    for name in ('"secret"', "q_plus", "noise_std", "noisy_sign", "posterior"):
        assert name not in (tmp_path / "transcript.jsonl").read_text()


def test_a_spent_budget_ends_the_training(task, tmp_path, monkeypatch):
    trainer = PACTrainer(fresh(task).model, arguments(tmp_path, pac_mi=0.1), task.objective(NUM_SAMPLES, seed=1))
    release = trainer.mechanism.release

    def limited(signs):
        if trainer.mechanism.releases == 3:
            raise pac_trainer.BudgetExhausted
        return release(signs)

    monkeypatch.setattr(trainer.mechanism, "release", limited)
    trainer.train()
    assert len(coefficients(tmp_path)) == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "choose one of"),
        ({"pac_mi": 0.3, "pac_zpl": True}, "choose one of"),
        ({"pac_zpl": True, "no_privacy": True}, "--pac_zpl and --no_privacy"),
        ({"pac_mi": 0.0}, "use --pac_zpl for zero nats"),
        ({"pac_mi": math.nan}, "must be positive and finite"),
        ({"pac_mi": math.inf}, "must be positive and finite"),
        ({"pac_zpl": True, "pac_m": 7}, "even"),
        ({"pac_zpl": True, "pac_m": 0}, "even"),
        ({"pac_zpl": True, "pac_clip": 0.0}, "pac_clip must be positive"),
        ({"pac_zpl": True, "pac_clip": math.inf}, "pac_clip must be positive and finite, got inf; 1e9 clips"),
        ({"pac_zpl": True, "pac_k": 0}, "pac_k must be at least 1"),
        ({"pac_zpl": True, "pac_sampling_rate": 2, "pac_disjoint_pairs": True}, "exclude each other"),
        ({"pac_zpl": True, "pac_sampling_rate": 8}, "between 1 and pac_m - 1 = 7"),
        ({"pac_zpl": True, "ablation": "none"}, "needs --no_privacy"),
        ({"no_privacy": True, "ablation": "what"}, "unknown ablation 'what'"),
        ({"pac_zpl": True, "pac_load_best_dev": True}, "needs --eval_steps"),
        ({"pac_mi": 0.3, "pac_charge": "half"}, "unknown pac_charge 'half'; known: real, bit"),
        ({"pac_zpl": True, "pac_charge": "bit"}, "--pac_charge bit needs --pac_mi"),
        ({"pac_mi": 0.3, "pac_zpl_abstain": True}, "--pac_zpl_abstain needs --pac_zpl"),
        ({"no_privacy": True, "pac_continue_from": "x"}, "excludes --no_privacy"),
    ],
)
def test_contradictions_are_refused(settings, message, tmp_path):
    with pytest.raises(UserError, match=message):
        arguments(tmp_path, **settings)


def test_the_bound_follows_from_the_budget(task, tmp_path):
    trainer = PACTrainer(fresh(task).model, arguments(tmp_path, pac_mi=0.33), task.objective(8, seed=1))
    report = trainer.privacy()
    assert report["posterior_success_bound"] == pytest.approx(0.8819, abs=1e-4)
    assert report["epsilon"] == pytest.approx(2.01, abs=0.01)
    assert report["tpr_bounds"] == {"0": tpr_at_fpr(0.33, 0.0), "0.001": tpr_at_fpr(0.33, 1e-3)}
    assert report["naming_success_bound"] == naming_success(0.33, 8)
    rare = arguments(tmp_path, pac_zpl=True, pac_sampling_rate=2)
    report = PACTrainer(fresh(task).model, rare, task.objective(8, seed=1)).privacy()
    assert report["prior_success"] == report["posterior_success_bound"] == 0.75
    assert report["epsilon"] is None
    assert report["tpr_bounds"] == {"0": 0.0, "0.001": 1e-3}
