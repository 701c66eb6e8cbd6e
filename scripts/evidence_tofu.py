"""TOFU with SmolLM2-135M: eleven methods, plain and on perturbed copies, with what comes back under attack.

`DATA_DIR=... bash scripts/evidence.sh tofu --output_dir result/mine`. The subset is 40 forget rows (forget01), the
first 360 retain rows, and 40 rows of other authors that no model was trained on; `write_subset` says what is
evaluated. All parameters are trained, the weights float32 and the passes bfloat16 (autocast): a step is often
smaller than the last bit of a bfloat16 weight. Evaluations are made alike; attacks are float32 throughout.
`--precision float32` is for processors that do not multiply bfloat16; `--rates_of` takes an earlier plan's rates.

All plain runs come first, at each of their rates; each method's winner is the rate of its other rows. What is
published began from a retain and a full model; where they are gone they are made again, on such a device, and the
plan goes on if they score as they did, to the last digit: what begins from others cannot be laid beside it.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from scripts.bench_tools import machine, now, this_device
from scripts.evidence import ROOT, Evidence, Row, Run
from scripts.tofu_tables import ATTACKED, FULL, RETAIN, best_rates, distance
from src.tofu.attacked import attack_rows, verdict
from src.tofu.logs import EVAL
from src.utils import Parser, UserError, read_jsonl, run_cli

PUBLISHED = ROOT / "result" / "published"
BASE = "smollm2-135m"
SEED = 0
RETAIN_ROWS, HOLDOUT_ROWS = 360, 40
EVALUATED = {"retain_perturbed": 20, "real_authors_perturbed": 60, "world_facts_perturbed": 20}
COPIES, KAPPAS = 4, ("0.1", "0.01")
EPOCHS, BATCH = 2, 4
FINETUNE, RETAIN_LOG, PLAIN, PUM, ATTACKS = "finetune", "retain-log", "unlearn", "pum", "attacks"
# Rates to choose from; the most telling methods first.
RATES: dict[str, tuple[float, ...]] = {
    "NPO": (1e-4, 5e-5, 2e-4),
    "GradDiff": (1e-4, 5e-5, 2e-4),
    "RMU": (3e-4, 1e-4, 1e-3),
    "SimNPO": (2e-4, 5e-4, 1e-3),
    "DPO": (2e-4, 1e-4, 5e-4),
    "UNDIAL": (3e-4, 1e-4, 1e-3),
    "GradAscent": (1e-4, 5e-5, 2e-4),
    "WGA": (1e-4, 5e-5, 2e-4),
    "SatImp": (2e-4, 5e-4, 1e-3),
    "CEU": (5e-5, 2e-5, 1e-4),
    "PDU": (5e-5, 2e-5, 1e-4),
}
SCORES = (
    *("forget_quality", "model_utility", "forget_truth_ratio", "forget_Q_A_Prob", "forget_Q_A_ROUGE"),
    *("retain_Q_A_Prob", "retain_Q_A_ROUGE", "ra_Q_A_ROUGE", "extraction_strength"),
    *("privleak", "privleak_vs_half"),
)
DATA = ("--forget_split", "forget01", "--max_new_tokens", "48", "--eval_gradnorm", "False")
MODELS = ("--max_retain", str(RETAIN_ROWS))
PRECISIONS = {"bfloat16": ("--bf16", "True", "--eval_autocast", "True"), "float32": ()}
TRAINER = ("--use_cpu", str(not torch.cuda.is_available()), "--disable_tqdm", "True", "--seed", str(SEED))
TRAINING = ("--gradient_accumulation_steps", "1", "--warmup_epochs", "0.5", "--per_device_train_batch_size")
FINETUNE_EPOCHS, FINETUNE_RATE = 5, 3e-4
RELEARNING = ("--steps", "10", "--every", "5", "--learning_rate", "5e-5", "--eval_limit", "20")
ROUNDING = ("--eval_limit", "10")


@dataclass
class EvidenceArguments:
    """How long, and where to."""

    hours: float = field(default=8.0, metadata={"help": "Begin no run that would end later than that."})
    workers: int = field(default=1, metadata={"help": "Runs at a time."})
    threads: int = field(default=1, metadata={"help": "Of each run."})
    precision: str = field(default="bfloat16", metadata={"help": "Of the passes: bfloat16 or float32."})
    rates_of: str | None = field(
        default=None, metadata={"help": "JSON of an earlier plan: take each method's rate from there, sweep none."}
    )
    model_name: str = field(default=BASE, metadata={"help": "SmolLM2-135M, by name or as a folder."})
    output_dir: str = field(default=str(PUBLISHED), metadata={"help": "Where the JSON goes."})
    work_dir: str = field(default="result/evidence/tofu", metadata={"help": "Of the models and the runs' files."})

    def __post_init__(self) -> None:
        if not self.hours > 0 or self.workers < 1 or self.threads < 1:
            raise UserError("--hours must be positive, --workers and --threads at least 1")
        if self.precision not in PRECISIONS:
            raise UserError(f"--precision is one of {', '.join(PRECISIONS)}, not {self.precision}")


def rows(rates: Mapping[str, tuple[float, ...]] = RATES) -> list[Row]:
    """The plan: the two models that everything is compared with, all methods plain, with each noise, and attacks.

    `passes` are units of ten seconds of one thread, as measured beforehand.
    """
    tuned = (*TRAINING, "8", "--num_train_epochs", str(FINETUNE_EPOCHS))
    plan = [
        Row(RETAIN, tuned, 45 * FINETUNE_EPOCHS, 130.0, (FINETUNE_RATE,), module=RETAIN_LOG, seeds=(SEED,)),
        Row(FULL, tuned, 50 * FINETUNE_EPOCHS, 140.0, (FINETUNE_RATE,), module=FINETUNE, seeds=(SEED,)),
    ]
    made = [method_rows(method, tried) for method, tried in rates.items()]
    plan += [row for kind in zip(*made, strict=True) for row in kind]
    attacked = [
        Row(row.name + ATTACKED, (*RELEARNING, *ROUNDING), 10, 30.0, (), row.like or row.name, ATTACKS, (SEED,))
        for row in plan
    ]
    return plan + attacked


def method_rows(method: str, rates: tuple[float, ...]) -> list[Row]:
    """Unlearned as it is, and on perturbed copies with either noise, at the plain run's rate."""
    options = (*TRAINING, str(BATCH), "--num_train_epochs", str(EPOCHS))
    steps, plain = 40 // BATCH * EPOCHS, f"{method}, plain"
    found = [Row(plain, ("--method", method, *options), steps, 25.0, rates, module=PLAIN, seeds=(SEED,))]
    for kappa in KAPPAS:
        noise = ("--copies_m", str(COPIES), "--kappa", kappa)
        words = ("--inner_handler", method, *options, *noise)
        found.append(Row(f"{method}, kappa {kappa}", words, steps, 55.0, (), plain, PUM, (SEED,)))
    return found


def rates_of(path: Path) -> dict[str, tuple[float, ...]]:
    """Of each method the rate that an earlier plan's sweep chose.

    Raises:
        UserError: the file cannot be read, has no retain model, or a method is missing.
    """
    try:
        runs = json.loads(path.read_text("utf-8"))["runs"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"cannot read an earlier plan's runs in {path}: {error}") from error
    goal = next((run["scores"] for run in runs if run["row"] == RETAIN), None)
    best = best_rates(runs, goal) if goal else {}
    missing = [method for method in RATES if method not in best]
    if missing:
        raise UserError(f"{path} does not say the rates of {', '.join(missing)}")
    return {method: (best[method],) for method in RATES}


def write_subset(source: Path, folder: Path) -> None:
    """A data folder with the subset in the splits' layout: what is trained on, held out and evaluated.

    All 40 forget rows are evaluated, of the other sets the first rows of each, `EVALUATED`; those of the retain
    set are among the 360 that are trained on.
    """
    tofu = source / "tofu"
    retain, forget = read_jsonl(tofu / "retain90.jsonl"), read_jsonl(tofu / "forget01.jsonl")
    known = {(row["question"], row["answer"]) for row in forget}
    unseen = [row for row in read_jsonl(tofu / "forget10.jsonl") if (row["question"], row["answer"]) not in known]
    splits = {
        "forget01": forget,
        "forget01_perturbed": read_jsonl(tofu / "forget01_perturbed.jsonl"),
        "retain99": retain[:RETAIN_ROWS],
        "holdout01": unseen[-HOLDOUT_ROWS:],
        **{name: read_jsonl(tofu / f"{name}.jsonl")[:count] for name, count in EVALUATED.items()},
    }
    (folder / "tofu").mkdir(parents=True, exist_ok=True)
    for name, lines in splits.items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / "tofu" / f"{name}.jsonl").write_text(text, encoding="utf-8")
    shutil.copyfile(tofu / "idk.txt", folder / "tofu" / "idk.txt")


class TofuEvidence(Evidence):
    """The plan's runs: unlearning with its evaluation, and attacks on the model that a run has left.

    The rate is chosen on the reported draw: that of the plain run with the least `score`. A run's seed is that of
    PUM's secrets.

    Attributes:
        base: what the model was fine-tuned from.
        precision: of the passes.
        trained: options of every training.
    """

    tuning_seed = SEED
    base = BASE
    precision = "bfloat16"
    trained: tuple[str, ...] = MODELS

    def go_on(self, hours: float, workers: int) -> None:
        """As of any plan.

        Raises:
            UserError: runs failed, or the published ones have another precision or began from models that are gone
            and cannot be made again.
        """
        others = {run.get("precision", self.precision) for run in self.runs} - {self.precision}
        if others:
            raise UserError(f"{self._published} has runs in {', '.join(others)}; name another --output_dir")
        for name in (RETAIN, FULL):
            if name in self.rows:
                self._make_again(self._first(name))
        super().go_on(hours, workers)

    def _make_again(self, run: Run) -> None:
        """A model that published runs began from, where it is gone."""
        published, folder = self.found(run), self._model(run.row.name)
        if published is None or (folder / "model.safetensors").exists():
            return
        here = machine(this_device())["device"]
        begun = f"{self._published} has runs that began from {run.row.name}s"
        if published["device"] != here:
            refused = f"{begun} of a {published['device']}, none is in {folder}, and this is a {here}"
            raise UserError(f"{refused}; name another --output_dir")
        (folder / "metrics.json").unlink(missing_ok=True)
        if self._train(run)["scores"] != published["scores"]:
            raise UserError(f"{begun} that scored otherwise than {folder}; name another --output_dir")

    def ready(self, run: Run) -> bool:
        """All wait for the two models that they begin from or are compared with, attacks for their own as well."""
        names: tuple[str, ...] = {RETAIN_LOG: (), FINETUNE: (RETAIN,)}.get(run.row.module, (RETAIN, FULL))
        needed = [self._first(name) for name in names if name in self.rows]
        if run.row.module == ATTACKS:
            needed.append(self._attacked(run))
        return all(self.found(one) is not None for one in needed)

    def _first(self, name: str) -> Run:
        """A row's run at the first of its rates."""
        return Run(self.rows[name], self.rows[name].rates[0], SEED)

    def _attacked(self, run: Run) -> Run:
        return Run(self.rows[run.row.name.removesuffix(ATTACKED)], run.rate, run.seed)

    def score(self, figures: dict[str, Any]) -> float:
        """How far a run is from the retain model in forget probability, forget ROUGE and utility, summed."""
        return distance(figures["scores"], self.goal())

    def goal(self) -> dict[str, float]:
        """The scores of the retain model."""
        return next(dict(run["scores"]) for run in self.runs if run["row"] == RETAIN)

    def _model(self, name: str) -> Path:
        """Where the retain or the full model lies."""
        return self._work / self._first(name).folder

    def _train(self, run: Run) -> dict[str, Any]:
        """What is missing of a run is made; then its figures. An interrupted PUM run goes on at its copy."""
        if run.row.module == ATTACKS:
            return self._attack(run)
        folder = self._work / run.folder
        if not (folder / "metrics.json").exists():
            self._train_model(run)
        metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
        seconds = metrics["seconds"]
        return {
            "scores": {name: metrics["scores"].get(name) for name in SCORES},
            "train_seconds": seconds["train"],
            "peak_mib": metrics["peak_memory"]["mib"],
            "precision": self.precision,
            **_cost(run, seconds["train"] + seconds["evaluation"]),
        }

    def _train_model(self, run: Run, *further: str) -> None:
        """The command that trains and evaluates."""
        row, folder = run.row, self._work / run.folder
        words = ["pum.run_pum"] if row.module == PUM else ["pum.run_unlearn", row.module]
        start = self.base if row.module in (FINETUNE, RETAIN_LOG) else str(self._model(FULL))
        words += ["--model_name", start, "--output_dir", str(folder), "--learning_rate", f"{run.rate:g}"]
        if row.module != RETAIN_LOG:
            words += ["--retain_log", str(self._model(RETAIN) / "evals" / EVAL)]
        if row.module == PUM:
            words += ["--kappa_base_model_path", self.base, "--secret_seed", str(run.seed)]
        print(f"{run.folder}: {row.steps} steps", flush=True)
        words += [*self._shared, *self.trained, *PRECISIONS[self.precision], *TRAINER, *row.options, *further]
        self._command(words, folder)

    def _attack(self, run: Run) -> dict[str, Any]:
        """Relearning and rounding, of a model that is made again where it is gone; its weights go afterwards."""
        trained = self._attacked(run)
        folder, weights = self._work / trained.folder, self._work / trained.folder / "model.safetensors"
        if not weights.exists():
            self._train_model(trained, "--overwrite_output_dir", "--evaluate", "False")
        print(f"{run.folder}: two attacks", flush=True)
        retain, begin = self._model(RETAIN), time.monotonic()
        words = [*self._shared, "--retain_model", str(retain)]
        self._command(["src.tofu.attacks", "relearn", str(folder), *words, *RELEARNING], folder)
        words = [*self._shared, "--before", str(self._model(FULL))]
        self._command(["src.tofu.attacks", "quantize", str(folder), *words, *ROUNDING], folder)
        if trained.row.module in (PLAIN, PUM):
            weights.unlink()
        found = {"attacks": attack_rows(folder / "evals"), "verdict": verdict(folder / "evals")}
        return {**found, **_cost(run, time.monotonic() - begin)}

    def _command(self, words: Sequence[str], folder: Path) -> None:
        self._run([sys.executable, "-m", *words], folder.with_name(f"{folder.name}.log"))


def _cost(run: Run, seconds: float) -> dict[str, Any]:
    return {"passes": run.row.passes, "seconds": seconds, **machine(this_device()), **now()}


def main(argv: Sequence[str] | None = None) -> None:
    """Go on with the plan."""
    (args,) = Parser(EvidenceArguments).parse(argv)
    if not os.environ.get("DATA_DIR"):
        raise UserError("set DATA_DIR to a folder with TOFU's splits in tofu/")
    plan = rows(rates_of(Path(args.rates_of)) if args.rates_of else RATES)
    work = ROOT / args.work_dir
    write_subset(Path(os.environ["DATA_DIR"]), work / "data")
    os.environ["DATA_DIR"] = str(work / "data")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    published = Path(args.output_dir) / "tofu_evidence.json"
    evidence = TofuEvidence(plan, published, Path(args.work_dir), DATA, args.threads)
    evidence.base, evidence.precision = args.model_name, args.precision
    evidence.go_on(args.hours, args.workers)


if __name__ == "__main__":
    run_cli(main)
