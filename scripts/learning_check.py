"""Show that private zeroth-order training learns: PAC-ZPL beside a random sign on the sample problem.

Exits with 1 where PAC-ZPL stays at or below 90 % held-out accuracy or the random sign moves more than 5 points.
"""

from __future__ import annotations

import tempfile
import time
from typing import Any

import torch
from transformers import PrinterCallback
from transformers.utils import logging

from paczo.pac_trainer import PACArguments, PACTrainer
from src.sample_data.learning_task import LearningTask, pretrain
from src.utils import UserError, run_cli

STEPS = 100
NUM_TRAIN, NUM_TEST = 1000, 500


def accuracy_after(
    task: LearningTask, start: dict[str, torch.Tensor], **mode: Any
) -> tuple[float, dict[str, Any]]:
    """Held-out accuracy after `STEPS` steps from `start`, and the run's privacy report."""
    task.model.load_state_dict(start)
    test = task.objective(NUM_TEST, seed=2)
    with tempfile.TemporaryDirectory() as folder:
        args = PACArguments(
            output_dir=folder,
            max_steps=STEPS,
            learning_rate=3e-3,
            lr_scheduler_type="polynomial",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            **mode,
        )
        trainer = PACTrainer(task.model, args, task.objective(NUM_TRAIN, seed=1))
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return test.metrics()["accuracy"], trainer.privacy()


def main() -> None:
    logging.set_verbosity_error()
    begin = time.perf_counter()
    task = pretrain()
    start = {name: value.clone() for name, value in task.model.state_dict().items()}
    before = task.objective(NUM_TEST, seed=2).metrics()["accuracy"]
    print(f"pretrained a tiny OPT in {time.perf_counter() - begin:.1f} s; {STEPS} steps, N={NUM_TRAIN}, M=128")
    begin = time.perf_counter()
    private, report = accuracy_after(task, start, pac_zpl=True)
    control, _ = accuracy_after(task, start, no_privacy=True, ablation="random_sign")
    print(f"{'':<16}{'before':>10}{'after':>10}")
    print(f"{'pac-zpl':<16}{before:>10.3f}{private:>10.3f}")
    print(f"{'random_sign':<16}{before:>10.3f}{control:>10.3f}")
    spent, bound = report["spent_nats"], report["posterior_success_bound"]
    unanimous = report["releases"].get("unanimous", 0) / STEPS
    print(f"pac-zpl spent {spent:g} nats (attack success at most {bound:g}), unanimity {unanimous:.2f}")
    print(f"both runs took {time.perf_counter() - begin:.1f} s")
    if private <= 0.9:
        raise UserError(f"PAC-ZPL reached {private:.3f} only, where more than 0.9 is expected")
    if abs(control - before) > 0.05:
        raise UserError(f"the random sign moved accuracy from {before:.3f} to {control:.3f}, more than 5 points")


if __name__ == "__main__":
    run_cli(main)
