"""Compare every mechanism on `src/sample_data/learning_task.py` at equal numbers of forward passes.

Each run evaluates about 200,000 samples (a sample at theta + eps z or theta - eps z counts once): the full
batch of 1,000 for 100 steps, or Poisson batches of 64 expected samples for as many steps as that allows. Each
method's learning rate is the best of a few on a tuning seed that is not among the reported ones, by accuracy on
fresh sentences; all start from one pretrained model a seed. Secrets come from the seed too, so that the table can
be made again. The row `dev set alone` trains without privacy on 500 other sentences, as many as a dev set has, and
has nothing of the training set. Writes `result/published/learning_table.json`; a table that was stopped goes on
from the runs that `--output_dir` holds, which must be of the same code.

`tracks` as first word compares what is trained instead, by PAC-ZPL alone: all weights, LoRA, a prefix, the
candidates' two rows of the head. Writes `result/published/learning_tracks.json`.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback
from transformers.utils import logging

from baselines.dp_zo import DPArguments, DPZOTrainer
from paczo.pac_trainer import PACArguments, PACTrainer
from scripts.bench_tools import machine, now
from src.ht_opt import candidate_tokens
from src.models import add_track
from src.sample_data.learning_task import CANDIDATES, LearningTask, pretrain
from src.utils import run_cli, write_json
from src.zo.directions import ParameterSpace

NUM_TRAIN, NUM_DEV, NUM_TUNE, NUM_TEST = 1000, 500, 500, 1000
STEPS, SAMPLE_RATE, DP_CLIP = 100, 0.064, 5.0
SEEDS = (0, 1, 2, 3, 4)
TUNING_SEED = 100
PUBLISHED = Path("result/published")


@dataclass(frozen=True)
class Method:
    """A row of the table. `settings` are the trainer's arguments; K and the steps set the forward passes.

    `track` is what is trained: "full", or one of `src.models.TRACKS`.
    """

    name: str
    rates: tuple[float, ...]
    settings: dict[str, Any] = field(hash=False)
    is_dp: bool = False
    on_dev: bool = False
    track: str = "full"

    @property
    def evaluations(self) -> int:
        """Samples times passes of a run, the expected number where batches are random."""
        batch = SAMPLE_RATE * NUM_TRAIN if self.is_dp else NUM_DEV if self.on_dev else NUM_TRAIN
        return round(2 * batch * self.settings.get("dp_k", 1) * self.settings["max_steps"])


def methods() -> list[Method]:
    """The rows in the table's order."""
    signs = (3e-3, 1e-2, 3e-2)
    slopes, many = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3), (3e-3, 1e-2, 3e-2, 1e-1)
    full = {"max_steps": STEPS, "lr_scheduler_type": "polynomial"}
    on_dev = {**full, "max_steps": STEPS * NUM_TRAIN // NUM_DEV, "no_privacy": True}
    rows = [
        Method("non-private", (3e-4, 1e-3, 3e-3), {**full, "no_privacy": True}),
        Method("dev set alone", (3e-4, 1e-3, 3e-3), on_dev, on_dev=True),
        Method("quant_full", signs, {**full, "no_privacy": True, "ablation": "quant_full"}),
        Method("quant_half", signs, {**full, "no_privacy": True, "ablation": "quant_half"}),
        Method("PAC-MI 0.33", signs, {**full, "pac_mi": 0.33}),
        Method("PAC-MI 0.33 bit", signs, {**full, "pac_mi": 0.33, "pac_charge": "bit"}),
        Method("PAC-ZPL", signs, {**full, "pac_zpl": True}),
        Method("PAC-ZPL abstain", signs, {**full, "pac_zpl": True, "pac_zpl_abstain": True}),
    ]
    for name, directions, rates in (("DPZero", 1, slopes), ("DP-AggZO", 64, many)):
        steps = int(STEPS / SAMPLE_RATE / directions)
        # The norm of K derivatives divided by K shrinks by the root of K, and the bound with it.
        clip = DP_CLIP / math.sqrt(directions)
        common = {"max_steps": steps, "lr_scheduler_type": "constant", "dp_k": directions, "dp_clip": clip}
        for epsilon in (0.2, 2.0, 6.0):
            settings = {**common, "dp_epsilon": epsilon, "dp_sample_rate": SAMPLE_RATE}
            rows.append(Method(f"{name} eps {epsilon:g}", rates, settings, is_dp=True))
    return rows


def tracks() -> list[Method]:
    """The rows of the table of tracks."""
    settings = {"max_steps": STEPS, "lr_scheduler_type": "polynomial", "pac_zpl": True}
    rates = {
        "full": (3e-3, 1e-2, 3e-2),
        "lora": (1e-2, 3e-2, 1e-1),
        "prefix": (1e-1, 3e-1, 1.0),
        "head": (1e-2, 3e-2, 1e-1),
    }
    return [Method(f"PAC-ZPL {track}", rates[track], settings, track=track) for track in rates]


def tracked(task: LearningTask, track: str) -> LearningTask:
    """The task with a copy of its model that has the track, or as it is."""
    if track == "full":
        return task
    settings: dict[str, Any] = {"name": track}
    if track == "head":
        settings["tokens"] = candidate_tokens(task.tokenizer, "It was", [f" {word}" for word in CANDIDATES])
    return LearningTask(add_track(copy.deepcopy(task.model), settings), task.tokenizer)  # type: ignore[arg-type]


@lru_cache(maxsize=1)
def _start(seed: int) -> tuple[LearningTask, dict[str, torch.Tensor]]:
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    task = pretrain(seed)
    return task, {name: value.clone() for name, value in task.model.state_dict().items()}


def accuracy(method: Method | None, rate: float, seed: int) -> float:
    """Held-out accuracy of one run from the seed's pretrained model; of the start itself at rate 0."""
    task, start = _start(seed)
    task.model.load_state_dict(start)
    task = tracked(task, "full" if method is None else method.track)
    held_out = task.objective(NUM_TUNE, seed=3) if seed == TUNING_SEED else task.objective(NUM_TEST, seed=2)
    if method is None or not rate:
        return held_out.metrics()["accuracy"]
    kinds: tuple[Any, Any] = (DPArguments, DPZOTrainer) if method.is_dp else (PACArguments, PACTrainer)
    arguments, trainer_class = kinds
    secrets = {"dp_secret_seed" if method.is_dp else "pac_secret_seed": seed}
    with tempfile.TemporaryDirectory() as folder:
        args = arguments(
            output_dir=folder,
            learning_rate=rate,
            seed=seed,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            **method.settings,
            **secrets,
        )
        samples = task.objective(NUM_DEV, seed=4) if method.on_dev else task.objective(NUM_TRAIN, seed=1)
        trainer = trainer_class(task.model, args, samples)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return held_out.metrics()["accuracy"]


def kept(folder: Path, method: Method | None, rate: float, seed: int) -> tuple[float, float]:
    """`accuracy` and the seconds it took, from the file of an earlier run where there is one."""
    path = folder / f"{'before' if method is None else method.name} {rate:g} seed {seed}.json"
    try:
        return tuple(json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        begin = time.process_time()
        found = accuracy(method, rate, seed), time.process_time() - begin
        write_json(path, found)
        return found


def table(rows: Sequence[Method], seeds: Sequence[int], workers: int, folder: Path) -> dict[str, Any]:
    """Tune, then run every method on every seed."""
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        tuning = {(m.name, r): pool.submit(kept, folder, m, r, TUNING_SEED) for m in rows for r in m.rates}
        # A track's start is its own: a prefix of real tokens moves what the model says.
        first = {m.track: m if m.track != "full" else None for m in rows}
        before = {(t, s): pool.submit(kept, folder, m, 0.0, s) for s in seeds for t, m in first.items()}
        best = {m.name: max((tuning[m.name, r].result()[0], r) for r in m.rates)[1] for m in rows}
        # Ordered by seed, so that a worker seldom has to pretrain.
        runs = {(m.name, s): pool.submit(kept, folder, m, best[m.name], s) for s in seeds for m in rows}
        results = [
            {
                "method": m.name,
                "track": m.track,
                "trained": trained_elements(m.track),
                "learning_rate": best[m.name],
                "tuning": {f"{r:g}": tuning[m.name, r].result()[0] for r in m.rates},
                "before": [before[m.track, s].result()[0] for s in seeds],
                "accuracy": [runs[m.name, s].result()[0] for s in seeds],
                "evaluations": m.evaluations,
                "settings": m.settings,
            }
            for m in rows
        ]
        done = (*tuning.values(), *runs.values(), *before.values())
        seconds = sum(future.result()[1] for future in done)
    return {
        "before": results[0]["before"],
        "rows": results,
        "seeds": list(seeds),
        "num_train": NUM_TRAIN,
        "num_test": NUM_TEST,
        "cpu_seconds": seconds,
        **machine(torch.device("cpu")),
        **now(),
    }


def trained_elements(track: str) -> int:
    """How many numbers are trained."""
    return ParameterSpace(tracked(pretrain(steps=0), track).model).num_elements


def main() -> None:
    parser = argparse.ArgumentParser(prog="learning_table.sh")
    parser.add_argument("what", nargs="?", choices=("mechanisms", "tracks"), default="mechanisms")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--output_dir", type=Path, default=Path("result/learning_table"), help="finished runs")
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    if args.what == "tracks":
        result, name = table(tracks(), SEEDS[:3], args.workers, args.output_dir), "learning_tracks"
    else:
        result, name = table(methods(), SEEDS, args.workers, args.output_dir), "learning_table"
    output = PUBLISHED / f"{name}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, result)
    print(f"{'':<16}{'before':>10}{'accuracy':>10}{'std':>8}{'rate':>9}{'evaluations':>13}")
    for row in result["rows"]:
        start, mean = statistics.mean(row["before"]), statistics.mean(row["accuracy"])
        std, rate, count = statistics.stdev(row["accuracy"]), row["learning_rate"], row["evaluations"]
        print(f"{row['method']:<16}{start:>10.3f}{mean:>10.3f}{std:>8.3f}{rate:>9.0e}{count:>13,}")
    print(f"wrote {output}; {result['cpu_seconds']:.0f} s of one core")


if __name__ == "__main__":
    run_cli(main)
