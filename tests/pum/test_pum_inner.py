"""The default inner run: the plain run on every copy, its steps, its rows, its adapters, and what it leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pum_models as m
import pytest
import torch
from builders import make_tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM

from pum.arguments import PUMArguments
from pum.pum_trainer import PUMTrainer
from pum.unlearn.arguments import UnlearnArguments
from pum.unlearn.data import UnlearnData
from pum.unlearn.trainer import UnlearnTrainer
from src.utils import UserError


def rows(count: int, start: int) -> list[dict[str, list[int]]]:
    gen = torch.Generator().manual_seed(start)
    drawn = [torch.randint(3, 50, (8,), generator=gen).tolist() for _ in range(count)]
    return [{"input_ids": ids, "labels": [-100] * 4 + ids[4:]} for ids in drawn]


DATA = UnlearnData(rows(6, 1), rows(9, 2))
RECIPE = {
    "method": "GradDiff",
    "use_cpu": True,
    "learning_rate": 1e-2,
    "optim": "sgd",
    "weight_decay": 0.0,
    "max_grad_norm": 0.0,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 2.0,
    "warmup_epochs": 0.0,
    "disable_tqdm": True,
    "fingerprint": False,
}


def test_one_plain_copy_is_the_plain_run(tmp_path: Path) -> None:
    plain, merged, disguised = (m.tiny("llama", num_key_value_heads=2) for _ in range(3))
    UnlearnTrainer(plain, UnlearnArguments(output_dir=str(tmp_path / "plain"), **RECIPE), DATA).train()
    quiet = {**RECIPE, "copies_m": 1, "alpha_max": 1.0}
    for model, reparam in ((merged, False), (disguised, True)):
        args = PUMArguments(output_dir=str(tmp_path / "pum"), use_orthogonal_reparam=reparam, **quiet)
        trainer = PUMTrainer(model, args, DATA)
        assert trainer.local_steps == 6
        trainer.train()
    start = m.state(m.tiny("llama", num_key_value_heads=2))
    for name, tensor in m.state(plain).items():
        torch.testing.assert_close(m.state(merged)[name], tensor, rtol=0, atol=1e-6)
        torch.testing.assert_close(m.state(disguised)[name], tensor, rtol=0, atol=1e-4)
    assert max(float((t - start[n]).abs().max()) for n, t in m.state(plain).items()) > 1e-2
    folder = tmp_path / "pum" / "pum_round1_copy1"
    assert folder.is_dir()
    assert not list(folder.glob("checkpoint-*"))


def test_whole_run_saves_model_and_report(tmp_path: Path) -> None:
    model = m.tiny("opt")
    settings = {**RECIPE, "inner_handler": "NPO", "copies_m": 2, "rounds_R": 2, "sigma": 0.01}
    args = PUMArguments(output_dir=str(tmp_path), **settings)
    torch.manual_seed(3)
    trainer = PUMTrainer(model, args, DATA, processing_class=make_tokenizer())
    output = trainer.train()
    assert output.global_step == 6  # two rounds of three steps: those of the plain run
    assert {path.name for path in tmp_path.glob("pum_round*")} == {
        f"pum_round{r}_copy{k}" for r in (1, 2) for k in (1, 2)
    }
    saved = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    for name, tensor in m.state(saved).items():
        assert torch.equal(tensor, m.state(model)[name])
    assert (tmp_path / "tokenizer.json").exists()
    report = json.loads((tmp_path / "privacy.json").read_text())
    assert report["secrets"] == "operating-system entropy"
    assert report["private"] is False  # tau = 0
    assert report["joint"]["epsilon"] is None
    assert all("alphas" not in key for key in report)
    assert m.run(m.tiny("opt"), tmp_path / "seeded", m.lm_steps(1, 0.1)).privacy()["secrets"] == (
        "reproducible secrets, not private"
    )
    with pytest.raises(UserError, match="resumed"):
        trainer.train(resume_from_checkpoint=True)


def test_client_may_train_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = m.tiny("llama"), []
    before = m.state(model)
    right = UnlearnTrainer.train

    def spy(self: UnlearnTrainer, *args: Any, **kwargs: Any) -> Any:
        seen.append({name for name, parameter in self.model.named_parameters() if parameter.requires_grad})
        return right(self, *args, **kwargs)

    monkeypatch.setattr(UnlearnTrainer, "train", spy)
    args = PUMArguments(output_dir=str(tmp_path), **RECIPE, lora=True, sigma=0.01, copies_m=2)
    PUMTrainer(model, args, DATA).train()
    assert len(seen) == 2
    assert all("lora_" in name for names in seen for name in names)
    changed = {
        name for name, tensor in m.state(model).items() if not torch.allclose(tensor, before[name], atol=1e-7)
    }
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "v_proj"}


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({}, 6),
        ({"rounds_R": 2}, 3),
        ({"rounds_R": 4}, 2),
        ({"rounds_R": 2, "auto_balance": False}, 6),
        ({"local_epochs": 1.0}, 3),
        ({"local_epochs": 1.0, "rounds_R": 2}, 3),  # epochs on each copy
        ({"local_max_steps": 4}, 4),
        ({"local_max_steps": 4, "rounds_R": 3}, 4),
        ({"local_max_steps": 40}, 6),
        ({"max_steps": 5}, 5),
        ({"per_device_train_batch_size": 4}, 4),
        ({"gradient_accumulation_steps": 2}, 2),  # three micro-batches are one step
        ({"num_train_epochs": 0.5}, 2),
    ],
)
def test_local_steps(tmp_path: Path, settings: dict[str, Any], steps: int) -> None:
    args = PUMArguments(output_dir=str(tmp_path), **{**RECIPE, **settings})
    assert PUMTrainer(m.tiny("opt"), args, DATA).local_steps == steps


def test_copies_of_a_round_see_the_same_rows_and_the_run_keeps_its_direction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounds draw other rows; RMU's target is drawn once a run."""
    seen: list[list[Tensor]] = []
    targets = []
    train, loss = UnlearnTrainer.train, UnlearnTrainer.compute_loss

    def spy_train(self: UnlearnTrainer, *args: Any, **kwargs: Any) -> Any:
        seen.append([])
        targets.append(self.method.target)  # type: ignore[attr-defined]
        return train(self, *args, **kwargs)

    def spy_loss(self: UnlearnTrainer, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        seen[-1].extend(inputs[kind]["input_ids"].clone() for kind in ("forget", "retain"))
        return loss(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(UnlearnTrainer, "train", spy_train)
    monkeypatch.setattr(UnlearnTrainer, "compute_loss", spy_loss)
    settings = {**RECIPE, "method": "RMU", "copies_m": 2, "rounds_R": 2, "sigma": 0.01}
    PUMTrainer(m.tiny("llama"), PUMArguments(output_dir=str(tmp_path), **settings), DATA).train()
    rows = [torch.cat(batches) for batches in seen]
    assert len(rows) == 4
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[2], rows[3])
    assert not torch.equal(rows[0], rows[2])
    assert all(torch.equal(target, targets[0]) for target in targets)


@pytest.mark.parametrize(
    ("settings", "data", "message"),
    [
        ({"method": "DPO"}, DATA, "DPO needs a refusal"),
        ({"method": "NPO"}, UnlearnData(DATA.forget, []), "NPO needs a retain set"),
        ({"method": "RMU", "rmu_layer": 2}, DATA, "rmu_layer 2 is outside"),
        ({}, UnlearnData([], DATA.retain), "the forget set is empty"),
    ],
)
def test_what_the_method_lacks_is_refused_before_the_first_copy(
    tmp_path: Path, settings: dict[str, Any], data: UnlearnData, message: str
) -> None:
    args = PUMArguments(output_dir=str(tmp_path / "out"), **{**RECIPE, **settings})
    with pytest.raises(UserError, match=message):
        PUMTrainer(m.tiny("opt"), args, data)
    assert not (tmp_path / "out").exists()
