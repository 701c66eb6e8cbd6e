"""A real model on real TOFU items: publication, disguise, one local step, merge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pum.arguments import PUMArguments
from pum.pum_trainer import PUMTrainer
from pum.unlearn.arguments import UnlearnArguments
from pum.unlearn.data import UnlearnData
from pum.unlearn.trainer import UnlearnTrainer
from src.models import load_model
from src.tofu.prompts import encode_rows
from src.tofu.rows import load_split

RECIPE: dict[str, Any] = {
    "method": "GradDiff",
    "use_cpu": True,
    "optim": "sgd",
    "learning_rate": 1e-3,
    "weight_decay": 0.0,
    "warmup_epochs": 0.0,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 1,
    "max_steps": 1,
    "disable_tqdm": True,
    "fingerprint": False,
}


@pytest.mark.real
def test_smollm2_merged_step_is_the_plain_step(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = load_model("smollm2-135m")
    split = load_split("forget01", str(data_dir))
    data = UnlearnData(encode_rows(tokenizer, split.forget[:2]), encode_rows(tokenizer, split.retain[:2]))
    theta = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def step() -> dict[str, Tensor]:
        """What the model moved since theta; it is put back."""
        moved = {}
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                moved[name] = parameter - theta[name]
                parameter.copy_(theta[name])
        return moved

    UnlearnTrainer(model, UnlearnArguments(output_dir=str(tmp_path / "plain"), **RECIPE), data).train()
    plain = step()
    monkeypatch.setattr(PUMTrainer, "save_model", lambda self, folder: None)
    args = PUMArguments(output_dir=str(tmp_path / "pum"), copies_m=2, sigma_rms=0.01, secret_seed=1, **RECIPE)
    PUMTrainer(model, args, data).train()
    merged = step()
    error = sum(float((merged[name] - tensor).square().sum()) for name, tensor in plain.items()) ** 0.5
    length = sum(float(tensor.square().sum()) for tensor in plain.values()) ** 0.5
    print(f"merged step: relative error {error / length:.4f}")
    assert 0 < error < 0.1 * length
