"""A small private run that can be started, killed and resumed, in this process or as one of its own.

python tests/lives.py pac | dp      starts or resumes the run in each folder that standard input names
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from torch import nn

from baselines.dp_zo import DPArguments, DPZOTrainer
from paczo.pac_trainer import PACArguments, PACTrainer
from src.objectives import Objective

STEPS = 200


class Distances(Objective):
    """l_i = |w - target_i|^2 / 2 over a bare parameter."""

    def __init__(self, model, targets):
        super().__init__(model, len(targets))
        self.targets = targets

    @torch.no_grad()
    def losses(self, samples=None):
        targets = self.targets if samples is None else self.targets[samples]
        return ((self.model.weight[0] - targets) ** 2).sum(1) / 2


def targets(count=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 12, generator=generator) + 0.4


def base_model(seed=0):
    model = nn.Linear(12, 1, bias=False)
    generator = torch.Generator().manual_seed(seed)
    model.weight.data.copy_(torch.randn(1, 12, generator=generator))
    return model


def settings(folder):
    return {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "learning_rate": 0.02,
        "lr_scheduler_type": "polynomial",
        "weight_decay": 0.01,
        "save_strategy": "steps",
        "eval_strategy": "steps",
        "save_steps": 20,
        "eval_steps": 20,
        "logging_steps": 20,
        "save_total_limit": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }


def objectives(data_seed, model_seed, count):
    """A model and its training and dev sets."""
    model = base_model(model_seed)
    return model, Distances(model, targets(count, data_seed)), Distances(model, targets(6, 99))


def make_trainer(folder, *, data_seed=0, model_seed=0, count=24, **changes):
    model, train, dev = objectives(data_seed, model_seed, count)
    mechanism = {"pac_m": 8, "pac_mi": 1.0, "pac_k": 2, "pac_secret_seed": 11}
    return PACTrainer(model, PACArguments(**{**settings(folder), **mechanism, **changes}), train, dev)


def make_dp_trainer(folder, *, data_seed=0, model_seed=0, count=24, **changes):
    model, train, dev = objectives(data_seed, model_seed, count)
    mechanism = {"dp_k": 3, "dp_epsilon": 1.0, "dp_sample_rate": 0.4, "dp_clip": 2.0, "dp_secret_seed": 11}
    return DPZOTrainer(model, DPArguments(**{**settings(folder), **mechanism, **changes}), train, dev)


def live(folder, make=make_trainer, **changes):
    """Start or resume the run in `folder`, to its end; the trainer after it."""
    trainer = make(folder, **changes)
    trainer.train(resume_from_checkpoint=(Path(folder) / "private" / "ledger.jsonl").exists())
    return trainer


def serve(make):
    """For each folder on standard input: a process that starts or resumes the run in it; prints its number."""
    for line in sys.stdin:
        child = os.fork()
        if not child:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
            live(line.strip(), make)
            os._exit(0)
        print(child, flush=True)
        print(os.waitpid(child, 0)[1], flush=True)


if __name__ == "__main__":
    serve({"pac": make_trainer, "dp": make_dp_trainer}[sys.argv[1]])
