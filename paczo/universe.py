"""Was a sample among the N at all? Canaries that are in or out at random, through the real trainers.

`bash scripts/audit.sh universe`, or `python -m paczo.audit universe` for PACZero's rows alone. PACZero's budget is
about which subset was the secret one; whether a sample was in the training set is another question, which it does
not answer. Each run trains the small problem's model on some plain sentences and on those of a fresh pool of
canaries, sentences with the wrong label, whose coin came up; a canary's score is by how much more its loss fell
than that of the others with its label. All canaries of a run are tried at once: one-run auditing (arXiv
2305.08846).
"""

from __future__ import annotations

import math
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

import numpy as np
import torch
from scipy import stats
from torch.nn import functional
from transformers import PrinterCallback
from transformers.utils import logging

from paczo.attack import clopper_pearson
from paczo.pac_trainer import PACArguments, PACTrainer
from paczo.roc import roc_svg
from src.objectives import CandidateScoring
from src.pages import standalone
from src.sample_data.learning_task import CANDIDATES, LearningTask, draw_sentences, pretrain
from src.utils import Parser, UserError, versions, write_json

CANARIES, PLAIN, NUM_TEST = 200, 200, 500
STEPS = 100
CONFIDENCE = 0.95
FALSE_POSITIVES = (0.01, 0.1)
# Shares of a run's canaries about which the one-run test makes a guess, half of them "in" and half "out".
GUESSED = (0.1, 0.3, 1.0)


@dataclass(frozen=True)
class Row:
    """What trains, and how.

    Attributes:
        name: as the table shows it.
        rate: of learning; 0 trains nothing.
        settings: of the trainer's arguments.
        classes: arguments and trainer; None for plain gradient descent by Adam, the control that must be caught.
    """

    name: str
    rate: float
    settings: dict[str, Any] = field(default_factory=dict, hash=False)
    classes: tuple[Any, Any] | None = (PACArguments, PACTrainer)
    is_control: bool = False


@dataclass
class UniverseArguments:
    """How much is attacked."""

    runs: int = field(default=12, metadata={"help": f"Trainings of each row, with {CANARIES} canaries each."})
    seed: int = field(default=0, metadata={"help": "Of models, sentences and coins."})
    workers: int = field(default=2, metadata={"help": "Processes."})
    only: str = field(default="", metadata={"help": "Rows whose name holds this."})
    out: str = field(default="result/audit", metadata={"help": "Folder for universe_audit.json and .svg."})

    def __post_init__(self) -> None:
        if self.runs < 2 or self.workers < 1 or self.seed < 0:
            raise UserError("--runs must be at least 2, --workers at least 1 and --seed not negative")


def paczo_rows() -> list[Row]:
    """Before training, the control, what is not private, PAC-MI and PAC-ZPL; K directions where they are exact."""
    free = {"no_privacy": True}
    rows = [
        Row("no training", 0.0),
        Row("control: fine-tuning by gradient", 3e-3, classes=None, is_control=True),
        Row("non-private, K = 1", 1e-3, free),
        Row("quant_full, K = 1", 1e-2, {**free, "ablation": "quant_full"}),
        Row("quant_full, K = 256", 0.2, {**free, "ablation": "quant_full", **_exact(256)}),
        Row("PAC-MI 0.33, K = 1", 1e-2, {"pac_mi": 0.33}),
        Row("PAC-MI 0.33 bit, K = 1", 1e-2, {"pac_mi": 0.33, "pac_charge": "bit"}),
    ]
    for name, options in (("PAC-ZPL", {}), ("PAC-ZPL abstain", {"pac_zpl_abstain": True})):
        for k, rate in ((1, 1e-2), (64, 0.1), (256, 0.2)):
            rows.append(
                Row(f"{name}, K = {k}", rate, {"pac_zpl": True, **options, **(_exact(k) if k > 1 else {})})
            )
    return rows


def _exact(directions: int) -> dict[str, Any]:
    return {"pac_k": directions, "zo_derivative": "exact"}


@lru_cache(maxsize=1)
def _start(seed: int) -> tuple[LearningTask, dict[str, torch.Tensor]]:
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    task = pretrain(seed)
    return task, {name: value.clone() for name, value in task.model.state_dict().items()}


def play(row: Row, seed: int) -> dict[str, Any]:
    """One training: which canaries were in, by how much each one's loss fell, and accuracy on fresh sentences."""
    task, start = _start(seed)
    task.model.load_state_dict(start)
    rng = np.random.default_rng([seed, 7])
    sentences, right = draw_sentences(CANARIES, rng)
    labels = [1 - label for label in right]
    inside = rng.integers(0, 2, CANARIES).astype(bool)
    canaries = _objective(task, sentences, labels)
    before = canaries.losses().double().numpy()
    plain, plain_labels = draw_sentences(PLAIN, rng)
    chosen = np.flatnonzero(inside)
    texts = [*plain, *(sentences[i] for i in chosen)]
    answers = [*plain_labels, *(labels[i] for i in chosen)]
    if row.classes is None:
        _descend(task, texts, answers, row.rate)
    elif row.rate:
        _train(row, task, _objective(task, texts, answers), seed)
    fell = before - canaries.losses().double().numpy()
    alike = np.array(labels)
    found = fell - np.where(alike == 1, fell[alike == 1].mean(), fell[alike == 0].mean())
    accuracy = task.objective(NUM_TEST, seed=2).metrics()["accuracy"]
    return {"inside": inside, "scores": found, "accuracy": accuracy}


def _objective(task: LearningTask, sentences: Sequence[str], labels: Sequence[int]) -> CandidateScoring:
    prompts = [f"{sentence} It was" for sentence in sentences]
    return CandidateScoring(task.model, task.tokenizer, prompts, [CANDIDATES] * len(prompts), list(labels))


def _train(row: Row, task: LearningTask, train: CandidateScoring, seed: int) -> None:
    arguments, trainer_class = row.classes  # type: ignore[misc]
    secret = "pac_secret_seed" if arguments is PACArguments else "dp_secret_seed"
    quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "no_derivative_check": True}
    settings = {"max_steps": STEPS, "lr_scheduler_type": "polynomial", **quiet, secret: seed, **row.settings}
    with tempfile.TemporaryDirectory() as folder:
        args = arguments(
            output_dir=folder,
            learning_rate=row.rate,
            seed=seed,
            save_strategy="no",
            logging_strategy="no",
            **settings,
        )
        trainer = trainer_class(task.model, args, train)
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def _descend(task: LearningTask, sentences: Sequence[str], answers: Sequence[int], rate: float) -> None:
    """Full-batch Adam on the answers, among the candidates."""
    model, tokenizer = task.model, task.tokenizer
    prompts = [f"{sentence} It was" for sentence in sentences]
    batch = tokenizer(prompts, padding=True, padding_side="right", return_tensors="pt")
    last = batch["attention_mask"].sum(dim=1) - 1
    ids, labels = torch.tensor(tokenizer.convert_tokens_to_ids(CANDIDATES)), torch.tensor(answers)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(STEPS):
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        loss = functional.cross_entropy(logits[torch.arange(len(last)), last][:, ids], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def auc(inside: np.ndarray, scores: np.ndarray) -> float:
    """The chance that a canary that was in scores above one that was not; equal scores count half."""
    members, others = scores[inside], scores[~inside]
    return float(stats.mannwhitneyu(members, others).statistic / (len(members) * len(others)))


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of independent values and its interval by Student's t."""
    mean = statistics.mean(values)
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - float(half), mean + float(half)


def true_positives(inside: np.ndarray, scores: np.ndarray, rate: float) -> tuple[float, float, float]:
    """Share of the members above the score that at most `rate` of the others exceed, and its exact interval."""
    others = np.sort(scores[~inside])[::-1]
    threshold = others[int(rate * len(others))]
    hits, trials = int((scores[inside] > threshold).sum()), int(inside.sum())
    return (hits / trials, *clopper_pearson(hits, trials, CONFIDENCE))


def epsilon_bound(played: Sequence[dict[str, Any]]) -> float:
    """The largest epsilon below which no pure DP would let so many guesses be right, at 95 % (arXiv 2305.08846).

    With epsilon-DP the number of right guesses among r, over all runs, is at most a binomial variable of r and
    e^eps / (1 + e^eps), stochastically. The best of the `GUESSED` shares counts, each at a third of the error.
    """
    best = 0.0
    for share in GUESSED:
        right = total = 0
        for run in played:
            order = np.argsort(run["scores"], kind="stable")
            half = max(1, round(share * len(order) / 2))
            right += int(run["inside"][order[-half:]].sum()) + int((~run["inside"][order[:half]]).sum())
            total += 2 * half
        tail = (1 - CONFIDENCE) / len(GUESSED)
        low, _ = clopper_pearson(right, total, 1 - 2 * tail)
        best = max(best, math.inf if low == 1 else math.log(low / (1 - low)) if low > 0.5 else 0.0)
    return best


def judged(row: Row, played: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of a row's runs; scores are compared between runs by their place within a run."""
    inside = np.concatenate([run["inside"] for run in played])
    ranks = np.concatenate([stats.rankdata(run["scores"]) / len(run["scores"]) for run in played])
    steps = np.linspace(0, 1, 101)
    others = np.sort(ranks[~inside])
    thresholds = np.quantile(others, 1 - steps)
    return {
        "row": row.name,
        "is_control": row.is_control,
        "learning_rate": row.rate,
        "settings": row.settings,
        "auc": mean_interval([auc(run["inside"], run["scores"]) for run in played]),
        "tpr": {f"{rate:g}": true_positives(inside, ranks, rate) for rate in FALSE_POSITIVES},
        "epsilon": epsilon_bound(played),
        "accuracy": mean_interval([run["accuracy"] for run in played]),
        "roc": [float((ranks[inside] > threshold).mean()) for threshold in thresholds],
    }


def audit(argv: Sequence[str], rows: Sequence[Row], facts: dict[str, Any] | None = None) -> None:
    """Play, judge, print; the figures go into a JSON file, with `facts` of the machine, and a drawing.

    Raises:
        UserError: bad arguments, or a control that was not caught.
    """
    (args,) = Parser(UniverseArguments).parse(argv)
    chosen = [row for row in rows if args.only in row.name]
    if not chosen:
        raise UserError(f"no row's name holds {args.only!r}")
    begin = time.perf_counter()
    seeds = range(args.seed, args.seed + args.runs)
    with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
        futures = {(row.name, seed): pool.submit(play, row, seed) for seed in seeds for row in chosen}
        results = []
        for row in chosen:
            results.append(judged(row, [futures[row.name, seed].result() for seed in seeds]))
            print(line(results[-1]), flush=True)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    figures = {
        "universe": results,
        "canaries": CANARIES,
        "plain": PLAIN,
        "runs": args.runs,
        "seconds": time.perf_counter() - begin,
        "versions": versions(),
        **(facts or {}),
    }
    write_json(out / "universe_audit.json", figures)
    (out / "universe_audit.svg").write_text(standalone(roc_svg(results)), encoding="utf-8")
    print(f"{len(chosen) * args.runs} trainings in {figures['seconds']:.0f} s; wrote {out}/universe_audit.json")
    missed = [row["row"] for row in results if row["is_control"] and row["auc"][1] <= 0.5]
    if missed:
        raise UserError(f"not caught: {', '.join(missed)}")


def line(row: dict[str, Any]) -> str:
    """One row of the printed table."""
    found, low, high = row["auc"]
    shares = ", ".join(f"{value[0]:.3f} at {rate}" for rate, value in row["tpr"].items())
    return (
        f"{row['row']:<34} AUC {found:.3f} ({low:.3f} to {high:.3f}), true positives {shares},"
        f" epsilon >= {row['epsilon']:.2f}, accuracy {row['accuracy'][0]:.3f}"
    )
