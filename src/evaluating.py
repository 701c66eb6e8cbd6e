"""Evaluation without training: zero-shot, behind demonstrations, or with a head fitted by logistic regression."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from src.arguments import RunArguments
from src.engine.processes import is_first, on_first, place
from src.probing import fit_head
from src.record.digest import configuration_digest
from src.record.folder import check_run_dir, prepare_run_dir
from src.results import answers, check_flat_path, flat_path, machine, show, write_results
from src.running import load_trainable
from src.samples import demonstrations
from src.tasks import Sample, Task, get_task
from src.utils import UserError
from src.zo.arguments import ZOArguments

# Test samples that are printed verbatim anyway.
SHOWN = 3
# Demonstration sets of single test samples have seeds below this, drawn from seed 0 (MeZO).
MOST_SEEDS = 10000


@dataclass
class EvaluationArguments(ZOArguments):
    """A training run's arguments where no step is taken."""

    def __post_init__(self) -> None:
        self.max_steps = 1  # of no meaning here
        super().__post_init__()


@dataclass(frozen=True)
class Drawn:
    """What is evaluated: test samples, what stands in front of each, and the training samples behind that."""

    test: list[Sample]
    before: list[str]
    train: list[Sample]


def evaluate(
    settings: RunArguments, args: EvaluationArguments, words: Sequence[str] | None = None, *, number: int = 0
) -> dict[str, Any]:
    """Evaluate once; returns what is written to `metrics.json` (in the run's first process).

    Raises:
        UserError: the input is wrong; nothing was overwritten.
    """
    task = get_task(settings.task_name)
    data_dir = os.environ.get("DATA_DIR") or None
    drawn = draw_samples(task, settings, data_dir)
    digest = configuration_digest(sys.argv[1:] if words is None else words, data_dir)
    run_dir = Path(str(args.output_dir))
    own_sets = settings.train_set_seed is None
    flat_file = flat_path(settings, None if own_sets else number)
    check_flat_path(flat_file, run_dir)
    on_first(lambda: check_run_dir(run_dir, overwrite=settings.overwrite_output_dir))
    model, tokenizer = load_trainable(settings, args, task, drawn.test[0])
    begin = time.perf_counter()
    scoring = settings.scoring(drawn.before if any(drawn.before) else None, seed=args.seed)
    try:
        if settings.linear_probing:
            known = task.likelihood(model, tokenizer, drawn.train, settings.limits())
            fit_head(model, known, early_stopping=settings.lp_early_stopping)
        objective = task.objective(model, tokenizer, drawn.test, settings.limits(), scoring)
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{settings.task_name} does not fit {settings.model_name}: {error}") from error
    found = objective.metrics()
    shown = len(drawn.test) if settings.verbose else SHOWN
    first = task.objective(model, tokenizer, drawn.test[:shown], settings.limits(), scoring.of(shown))
    given = answers(drawn.test[:shown], first)
    if not is_first():
        return {}
    metrics = {
        "before": {},
        "after": {"dev": {}, "test": found},
        "privacy": privacy(settings),
        "steps": 0,
        "best_step": None,
        "seconds": {"total": time.perf_counter() - begin, "per_step_median": None},
        **machine(args.device, place()[1]),
        "data": data_dir or "hub",
        "configuration": {**asdict(settings), **args.to_dict(), "dtype": str(model.dtype), "loss": None},
    }
    show(drawn.test[:shown], drawn.before[:shown], given)
    prepare_run_dir(run_dir, overwrite=settings.overwrite_output_dir, smoke=settings.smoke)
    write_results(run_dir, metrics, digest, flat_file)
    return metrics


def draw_samples(task: Task, settings: RunArguments, data_dir: str | None) -> Drawn:
    """The sources' draws: one train set for all test samples, or one for each where no seed is given."""
    count, num_eval = settings.num_train or 0, settings.num_eval or None
    seed = settings.train_set_seed
    if seed is not None:
        splits = task.splits(data_dir, num_train=count, num_dev=0, num_eval=num_eval, train_set_seed=seed)
        text = "" if settings.linear_probing else demonstrations(splits.train)
        return Drawn(splits.test, [text] * len(splits.test), splits.train)
    test = task.test(data_dir, num_eval, 0)
    if count == 0:
        return Drawn(test, [""] * len(test), [])
    seeds = np.random.RandomState(0).randint(0, MOST_SEEDS, size=len(test))
    sets = task.train_sets(data_dir, count, seeds.tolist())
    return Drawn(test, [demonstrations(train) for train in sets], [])


def privacy(settings: RunArguments) -> dict[str, Any]:
    """What the evaluated model tells about training samples, in the form of a trainer's `privacy()`."""
    if settings.linear_probing:
        name, guarantee = "linear probing", "none: the head is fitted to the training samples"
    elif settings.num_train:
        name, guarantee = f"{settings.num_train} demonstrations", "none: the model is shown training samples"
    else:
        name, guarantee = "zero-shot", "no training sample is used"
    return {
        "mechanism": name,
        "secrets": "none" if name == "zero-shot" else "not private",
        "private": name == "zero-shot",
        "releases": {},
        "guarantee": guarantee,
    }
