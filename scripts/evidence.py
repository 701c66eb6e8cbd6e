"""Rows of runs that take hours: what is finished is published at once, and the next start goes on from there.

A plan (`scripts.evidence_sst2`, `scripts.evidence_tofu`) is a list of rows in the order of their weight. Each row
names a training command, its options and a few learning rates. The rate is chosen on a tuning draw that is not
among the reported ones, by the dev loss of the model that comes out; then the row is run on every reported draw.
All rows' first draw come before any row's second, so that a table that was stopped early has all its rows.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paczo.report.evidence import TUNING_SEED
from paczo.report.runs import evaluations
from scripts.bench_tools import machine, now, this_device
from src.utils import UserError, write_json

SEEDS = (0, 1, 2)
PACZERO, DP = "paczo.run_paczo", "baselines.run_dp_zo"
ROOT = Path(__file__).resolve().parents[1]
MOST_FAILURES = 5  # before no further run is begun


@dataclass(frozen=True)
class Row:
    """A line of a table.

    Attributes:
        name: as the table shows it.
        options: of the command, but for rate, seeds, steps and folder.
        steps: of each run.
        passes: what a run costs, in bare forward passes over the N = 1000 samples or in another unit.
        rates: to choose from; empty where `like` names the row whose choice is taken.
        like: see `rates`.
        module: whose command trains.
        seeds: draws that are reported.
    """

    name: str
    options: tuple[str, ...]
    steps: int
    passes: float
    rates: tuple[float, ...] = ()
    like: str = ""
    module: str = PACZERO
    seeds: tuple[int, ...] = SEEDS


@dataclass(frozen=True)
class Run:
    """A row at one rate on one draw."""

    row: Row
    rate: float
    seed: int

    @property
    def key(self) -> dict[str, Any]:
        """What makes it this run; a published one of the same key is not made again."""
        row = self.row
        return {
            "row": row.name,
            "rate": self.rate,
            "seed": self.seed,
            "steps": row.steps,
            "options": list(row.options),
        }

    @property
    def folder(self) -> str:
        """A name for its files."""
        letters = "".join(c if c.isalnum() else "-" for c in self.row.name.lower())
        return f"{letters}-r{self.rate:g}-s{self.seed}"


class Evidence:
    """The runs of a plan that are published, and those that are not.

    A plan of other commands overrides `_train`; one that chooses rates in another way `tuning_seed` and `score`;
    one whose runs need what others leave `ready`.

    Args:
        rows: the plan.
        published: JSON file of finished runs; made where it is missing.
        work: folder of runs that are not finished.
        shared: options of every run.
        threads: of each run.
    """

    tuning_seed = TUNING_SEED

    def __init__(
        self, rows: Sequence[Row], published: Path, work: Path, shared: Sequence[str], threads: int = 1
    ) -> None:
        self.rows = {row.name: row for row in rows}
        self._published, self._work, self._shared = published, work, tuple(shared)
        self.threads = threads
        self._processes: list[subprocess.Popen[bytes]] = []
        self.runs: list[dict[str, Any]] = []
        if published.exists():
            self.runs = json.loads(published.read_text("utf-8"))["runs"]

    def found(self, run: Run) -> dict[str, Any] | None:
        """The published figures of a run; None where there are none yet."""
        return next((one for one in self.runs if all(one[k] == v for k, v in run.key.items())), None)

    def rate(self, row: Row) -> float | None:
        """The rate whose tuning run has the lowest score; None as long as one is missing."""
        row = self.rows[row.like] if row.like else row
        if len(row.rates) == 1:
            return row.rates[0]
        tuning = [(self.found(Run(row, rate, self.tuning_seed)), rate) for rate in row.rates]
        if any(figures is None for figures, _ in tuning):
            return None
        return min((self.score(figures), rate) for figures, rate in tuning if figures is not None)[1]

    def score(self, figures: dict[str, Any]) -> float:
        """What a tuning run is judged by, the lower the better: the dev loss of the model that comes out."""
        return float(figures["after"]["dev"]["loss"])

    def missing(self) -> Iterator[Run]:
        """What is to be run, in order; each is looked for when it is asked for, after those before it."""
        seeds = sorted({seed for row in self.rows.values() for seed in row.seeds})
        for seed in seeds:
            for row in self.rows.values():
                if seed not in row.seeds:
                    continue
                yield from self._missing_tuning(row)
                rate = self.rate(row)
                if rate is not None and self.found(Run(row, rate, seed)) is None:
                    yield Run(row, rate, seed)

    def ready(self, run: Run) -> bool:
        """Whether all that the run starts from is there."""
        return True

    def _missing_tuning(self, row: Row) -> Iterator[Run]:
        row = self.rows[row.like] if row.like else row
        if self.rate(row) is None:
            tuning = (Run(row, rate, self.tuning_seed) for rate in row.rates)
            yield from (run for run in tuning if self.found(run) is None)

    def go_on(self, hours: float, workers: int) -> None:
        """Runs what is missing, `workers` at a time.

        None is begun that would not end in time, by the seconds that a pass took so far. A run that fails is set
        aside until the next start.

        Raises:
            UserError: runs failed; what is finished is published.
        """
        end = time.monotonic() + 3600 * hours
        flying: dict[Future[dict[str, Any]], Run] = {}
        failed: dict[str, str] = {}
        with ThreadPoolExecutor(workers) as pool:
            try:
                while True:
                    for run in self.missing():
                        if len(flying) == workers or len(failed) >= MOST_FAILURES:
                            break
                        begun = run in flying.values() or run.folder in failed
                        in_time = time.monotonic() + self._expected(run) <= end
                        if in_time and not begun and self.ready(run):
                            flying[pool.submit(self._train, run)] = run
                    if not flying:
                        break
                    for done in wait(flying, return_when=FIRST_COMPLETED).done:
                        run = flying.pop(done)
                        try:
                            self._publish({**run.key, **done.result()})
                        except UserError as error:
                            failed[run.folder] = str(error)
                            print(f"{run.folder}: {error}", file=sys.stderr, flush=True)
            finally:
                for process in self._processes:
                    process.terminate()
        if failed:
            raise UserError(f"{len(failed)} failed: {'; '.join(failed.values())}")
        left = next(self.missing(), None)
        print("nothing is missing" if left is None else f"out of time before {left.folder}")

    def _expected(self, run: Run) -> float:
        return self.seconds_a_pass() * run.row.passes

    def seconds_a_pass(self) -> float:
        """Of the published runs, all in all; 0 before the first."""
        passes = sum(run["passes"] for run in self.runs)
        return sum(run["seconds"] for run in self.runs) / passes if passes else 0.0

    def _train(self, run: Run) -> dict[str, Any]:
        """A run's figures; where it was interrupted, it goes on."""
        folder = self._work / run.folder
        words = [*self._shared, *run.row.options, "--output_dir", str(folder)]
        words += ["--learning_rate", f"{run.rate:g}", "--max_steps", str(run.row.steps)]
        words += ["--train_set_seed", str(run.seed), "--seed", str(run.seed)]
        secret = "pac_secret_seed" if run.row.module == PACZERO else "dp_secret_seed"
        words += [f"--{secret}", str(run.seed)]
        if not (folder / "metrics.json").exists():
            if (folder / "transcript.jsonl").exists():
                words += ["--resume_from_checkpoint", "True"]
            print(f"{run.folder}: {run.row.steps} steps, about {run.row.passes:.0f} passes", flush=True)
            self._run([sys.executable, "-m", run.row.module, *words], folder.with_name(f"{folder.name}.log"))
        metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
        return {**figures(metrics), "agreement": agreement(folder), "passes": run.row.passes}

    def _run(self, words: Sequence[str], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
        with log.open("a") as output:
            process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=ROOT)
            self._processes.append(process)
            if process.wait():
                last = log.read_text("utf-8", errors="replace").strip().rpartition("\n")[2]
                raise UserError(f"a run failed: {last} (see {log})")

    def _publish(self, figures: dict[str, Any]) -> None:
        """In the plan's order, whatever ended first."""
        self.runs.append(figures)
        order = {name: number for number, name in enumerate(self.rows)}
        self.runs.sort(key=lambda run: order.get(run["row"], len(order)))
        self._published.parent.mkdir(parents=True, exist_ok=True)
        # Beside the file and moved, so that a kill leaves the one or the other.
        partial = self._published.with_suffix(".partial")
        write_json(partial, {"runs": self.runs})
        os.replace(partial, self._published)


def figures(metrics: dict[str, Any]) -> dict[str, Any]:
    """What is published of a run's `metrics.json`."""
    evaluated = evaluations(metrics)
    return {
        "before": metrics["before"],
        "after": metrics["after"],
        "curve": [entry["step"] for entry in evaluated],
        "dev_loss": [entry["eval_loss"] for entry in evaluated],
        "dev_accuracy": [entry.get("eval_accuracy") for entry in evaluated],
        "best_step": metrics["best_step"],
        "privacy": metrics["privacy"],
        "seconds": metrics["seconds"]["total"],
        **machine(this_device()),
        **now(),
    }


def agreement(folder: Path) -> list[float]:
    """The share of a PACZero run's releases, step by step, in which all subsets agreed; empty for other runs."""
    path = folder / "private" / "ledger.jsonl"
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    steps = [[release["kind"] for release in line["releases"]] for line in lines if "releases" in line]
    if any("non-private" in kinds for kinds in steps):
        return []
    return [kinds.count("unanimous") / len(kinds) for kinds in steps]
