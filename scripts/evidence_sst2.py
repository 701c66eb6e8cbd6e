"""SST-2 with SmolLM2-135M, method by method, at equal numbers of forward passes.

`DATA_DIR=... bash scripts/evidence.sh sst2 --hours 2`. Adapters on the last ten of thirty layers, bfloat16 weights
under float32 adapters, N = 1000 training and 500 dev sentences, tested on the 872 of the validation set. What a
step costs is read from the published record of `scripts/bench.sh directions`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from paczo.bounds import epsilon_for_success, posterior_success
from scripts.evidence import DP, PACZERO, ROOT, SEEDS, Evidence, Row
from scripts.sst2_tables import COSTS
from src.utils import Parser, UserError, run_cli

MODEL = "smollm2-135m"
PUBLISHED = ROOT / "result" / "published"
RECORD = PUBLISHED / f"{COSTS}.json"
BUDGET = 60.0  # bare forward passes over the N = 1000 sentences
NUM_TRAIN, NUM_DEV, EVALUATIONS = 1000, 500, 12
LARGER = {4000: SEEDS, 16000: SEEDS[:1]}  # training sentences, at as many steps, and draws
MANY, BEST = 64, 256
# At K = BEST; other K try what it says if the best rate grows with K, if it grows with its root, and twice that.
TOP_RATE = 0.8
SAMPLE_RATE = 0.064
EXACT = ("--dtype", "bfloat16", "--zo_derivative", "exact")
SHARED = (
    *("--task_name", "SST2", "--train_as_classification"),
    *("--lora", "--lora_r", "8", "--lora_alpha", "16", "--lora_layers", "last:10", "--num_eval", "872"),
    *("--report_to", "none", "--disable_tqdm", "True"),
)


@dataclass
class EvidenceArguments:
    """How long, and where to."""

    hours: float = field(default=12.0, metadata={"help": "Begin no run that would end later than that."})
    workers: int = field(default=os.cpu_count() or 1, metadata={"help": "Runs at a time, one thread each."})
    model_name: str = field(default=MODEL, metadata={"help": "SmolLM2-135M, by name or as a folder."})
    output_dir: str = field(default=str(PUBLISHED), metadata={"help": "Where the JSON goes."})
    work_dir: str = field(default="result/evidence/sst2", metadata={"help": "Of runs that are not finished."})

    def __post_init__(self) -> None:
        if not self.hours > 0 or self.workers < 1:
            raise UserError("--hours must be positive and --workers at least 1")


def costs() -> dict[str, float]:
    """Bare passes of a step over N = 1000, by "exact K" and "central"."""
    if not RECORD.exists():
        raise UserError(f"{RECORD.name} is missing: bash scripts/bench.sh directions writes it")
    median = json.loads(RECORD.read_text("utf-8"))["median"]
    return {name: seconds / median["floor"] for name, seconds in median.items() if name != "floor"}


def rows() -> list[Row]:
    """The plan, the most telling rows first."""
    best = f"K = {BEST}"
    zero, abstain = ("--pac_zpl",), ("--pac_zpl", "--pac_zpl_abstain")
    full = ("--no_privacy", "--ablation", "quant_full")
    matched = epsilon_for_success(posterior_success(0.11))
    plan = [
        paczero(f"PAC-ZPL abstain, {best}", BEST, (0.4, 0.8, 1.6), abstain),
        paczero(f"quant_full, {best}", BEST, (0.4, 0.8, 1.6), full),
        recipe("recipe: PAC-ZPL, K = 1, central, float32", (0.003, 0.01, 0.03, 0.1)),
        paczero(f"dev set alone, {NUM_DEV} rows", BEST, (), full, like=f"quant_full, {best}", on_dev=NUM_DEV),
        *(
            paczero(f"dev set alone, {count} rows", BEST, (), full, like=f"quant_full, {best}", on_dev=count)
            for count in (100, 32)
        ),
        *(paczero(f"PAC-ZPL abstain, K = {k}", k, rates_to_try(k), abstain) for k in (MANY, 1024, 16, 1)),
        *(
            paczero(f"{name}, {best}, N = {n}", BEST, (), mechanism, like=f"{name}, {best}", n=n, seeds=seeds)
            for n, seeds in LARGER.items()
            for name, mechanism in (("PAC-ZPL abstain", abstain), ("quant_full", full))
        ),
        paczero(f"PAC-ZPL, {best}", BEST, (0.2, 0.4, 0.8), zero),
        paczero(f"non-private, {best}", BEST, (0.03, 0.1, 0.3, 1.0), ("--no_privacy",)),
    ]
    plan += [
        paczero(f"PAC-MI {mi}, {charge}, {best}", BEST, (0.2, 0.4, 0.8), ("--pac_mi", mi, "--pac_charge", charge))
        for mi in ("0.33", "0.11")
        for charge in ("bit", "real")
    ]
    for epsilon in (2.0, matched):
        plan.append(private_mean(f"DPZero, epsilon {epsilon:.2f}", 1, epsilon, (0.0005, 0.0015, 0.005, 0.015)))
        for k, rates in ((MANY, (0.001, 0.003, 0.01)), (BEST, (0.0015, 0.005, 0.015))):
            plan.append(private_mean(f"DP-AggZO, epsilon {epsilon:.2f}, K = {k}", k, epsilon, rates))
    chosen = f"PAC-ZPL abstain, {best}"
    return [*plan, paczero(f"{chosen}, no dev set", BEST, (), abstain, like=chosen, dev=0)]


def rates_to_try(directions: int) -> tuple[float, ...]:
    """The rate chosen at K = 256, moved in proportion to K, to its root, and twice as far, to two figures."""
    share = directions / BEST
    scales = (share, math.sqrt(share), 2 * math.sqrt(share))
    return tuple(dict.fromkeys(float(f"{TOP_RATE * scale:.2g}") for scale in scales))


def paczero(
    name: str,
    directions: int,
    rates: tuple[float, ...],
    mechanism: tuple[str, ...],
    *,
    like: str = "",
    n: int = NUM_TRAIN,
    dev: int = NUM_DEV,
    on_dev: int = 0,
    seeds: tuple[int, ...] = SEEDS,
) -> Row:
    """A row of PACZero or of an ablation; as many steps at every N, and as the budget allows at N = 1000."""
    cost = costs()[f"exact {directions}"]
    steps = int(BUDGET / cost)
    options: tuple[str, ...] = (*mechanism, *EXACT, "--pac_k", str(directions), "--pac_clip", "25")
    data: tuple[str, ...] = ("--num_train", str(n), "--num_dev", str(on_dev or dev))
    if on_dev:
        data = (*data, "--train_on", "dev")
        n = on_dev
    options = (*options, *data, *schedule(steps, "pac", choose=dev > 0 and not on_dev))
    return Row(name, options, steps, steps * cost * n / NUM_TRAIN, rates, like, PACZERO, seeds)


def recipe(name: str, rates: tuple[float, ...]) -> Row:
    """The paper's own way: one direction, central differences, float32 weights; its passes are counted alike."""
    cost = costs()["central"]
    steps = int(BUDGET / cost)
    options = ("--pac_zpl", "--pac_k", "1", "--pac_clip", "25", "--dtype", "float32")
    data = ("--num_train", str(NUM_TRAIN), "--num_dev", str(NUM_DEV))
    return Row(name, (*options, *data, *schedule(steps, "pac", choose=True)), steps, steps * cost, rates)


def private_mean(name: str, directions: int, epsilon: float, rates: tuple[float, ...]) -> Row:
    """A row of a DP baseline, on Poisson batches of 64 expected sentences."""
    cost = costs()[f"exact {directions}"] * SAMPLE_RATE
    steps = int(BUDGET / cost)
    clip = 25 / math.sqrt(directions)  # as the norm of K derivatives divided by K
    noise = ("--dp_epsilon", f"{epsilon:.4f}", "--dp_sample_rate", str(SAMPLE_RATE), "--dp_clip", f"{clip:g}")
    data = ("--num_train", str(NUM_TRAIN), "--num_dev", str(NUM_DEV))
    options = ("--dp_k", str(directions), *noise, *EXACT, *data, *schedule(steps, "dp", choose=True))
    return Row(name, options, steps, steps * cost, rates, module=DP)


def schedule(steps: int, kind: str, *, choose: bool) -> tuple[str, ...]:
    """The rate falls linearly; evaluations, and which checkpoint is tested."""
    every = str(max(1, steps // EVALUATIONS))
    falling = ("--lr_scheduler_type", "polynomial", "--logging_steps", every)
    return (*falling, "--eval_steps", every, f"--{kind}_load_best_dev") if choose else falling


def main(argv: Sequence[str] | None = None) -> None:
    """Go on with the plan."""
    (args,) = Parser(EvidenceArguments).parse(argv)
    if not os.environ.get("DATA_DIR"):
        raise UserError("set DATA_DIR to a folder with sst2/train.jsonl and sst2/validation.jsonl")
    shared = (*SHARED, "--model_name", args.model_name)
    evidence = Evidence(rows(), Path(args.output_dir) / "sst2_evidence.json", Path(args.work_dir), shared)
    evidence.go_on(args.hours, args.workers)


if __name__ == "__main__":
    run_cli(main)
