"""What PUM's noise costs, method by method: tiny models of the sample data, settings of the paper's code.

`bash scripts/evidence.sh kappa`. Two copies with alphas 1 and 2, disguised, rounds and epochs by method, a
constant rate, theta_0 as the client's reference (`PRESET=mpu` of `scripts/tofu_pum.sh`). The noise is none, 1 %
and 10 % of what fine-tuning changed in each layer (arXiv 2602.23798), the latter two with three draws of the
secrets. The plain run takes as many epochs; its rate is that of a small sweep which ends closest to the retain
model in forget and retain probability: such small models say nothing to questions about the world, so that their
utility is 0.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pum import run_pum, run_unlearn
from pum.unlearn.running import RunArguments, read_rows
from pum.unlearn.tiny import tiny_models
from scripts.evidence import ROOT, SEEDS, Row
from scripts.evidence_tofu import FULL, PLAIN, PUBLISHED, PUM, RETAIN, SEED, TofuEvidence
from scripts.tofu_tables import PROBABILITIES, distance
from src.tofu.logs import SUMMARY
from src.utils import Parser, UserError, run_cli

NONE, KAPPAS = "0", ("0.01", "0.1")
ROUNDS = {"GradAscent": 1, "GradDiff": 1, "UNDIAL": 1, "NPO": 2, "WGA": 2, "SimNPO": 10, "DPO": 10, "SatImp": 10}
EPOCHS = 10
RATES = (1e-3, 3e-4, 3e-3)
SPLIT = ("--forget_split", "forget10", "--max_new_tokens", "40", "--eval_gradnorm", "False")
ROWS = ("--max_retain", "120", "--eval_limit", "40")
TRAINING = (
    *("--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "1"),
    *("--lr_scheduler_type", "constant", "--warmup_epochs", "0", "--num_train_epochs", str(EPOCHS)),
)
OUTER = (
    *("--copies_m", "2", "--alphas", "fixed", "--use_orthogonal_reparam", "True"),
    *("--client_reference", "server"),
)


@dataclass
class KappaArguments:
    """How long, and where to."""

    hours: float = field(default=1.0, metadata={"help": "Begin no run that would end later than that."})
    output_dir: str = field(default=str(PUBLISHED), metadata={"help": "Where the JSON goes."})
    work_dir: str = field(default="result/evidence/kappa", metadata={"help": "Of the models and the runs' files."})

    def __post_init__(self) -> None:
        if not self.hours > 0:
            raise UserError("--hours must be positive")


def rows() -> list[Row]:
    """Each method's plain run, and with no noise, 1 % and 10 %."""
    plan = []
    for method, rounds in ROUNDS.items():
        steps, plain = 3 * EPOCHS, f"{method}, plain"
        plan.append(Row(plain, ("--method", method, *TRAINING), steps, 1.0, RATES, "", PLAIN, (SEED,)))
        share = ("--rounds_R", str(rounds), "--local_epochs", str(EPOCHS // rounds))
        for kappa in (NONE, *KAPPAS):
            words = ("--inner_handler", method, *TRAINING, *OUTER, *share, "--kappa", kappa)
            seeds = (SEED,) if kappa == NONE else SEEDS
            plan.append(Row(f"{method}, kappa {kappa}", words, steps, 2.0, (), plain, PUM, seeds))
    return plan


class KappaEvidence(TofuEvidence):
    """The plan's runs, from a folder of tiny models."""

    precision = "float32"
    trained = ROWS

    def __init__(self, tiny: Path, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.tiny, self.base = tiny, str(tiny / "base")

    def score(self, figures: dict[str, Any]) -> float:
        return distance(figures["scores"], self.goal(), PROBABILITIES)

    def goal(self) -> dict[str, float]:
        return dict(json.loads((self.tiny / "retain" / "evals" / SUMMARY).read_text("utf-8")))

    def _model(self, name: str) -> Path:
        return self.tiny / {FULL: "full", RETAIN: "retain"}[name]

    def _command(self, words: Sequence[str], folder: Path) -> None:
        """In this process: a run takes seconds, and starting one would take as many."""
        module, *options = words
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder.with_name(f"{folder.name}.log").open("a") as log, redirect_stdout(log), redirect_stderr(log):
            (run_pum if module == "pum.run_pum" else run_unlearn).main(options)


def main(argv: Sequence[str] | None = None) -> None:
    """Go on with the plan."""
    (args,) = Parser(KappaArguments).parse(argv)
    os.environ["DATA_DIR"] = str(ROOT / "src" / "sample_data")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    work = Path(args.work_dir).resolve()
    (run,) = Parser(RunArguments).parse([*SPLIT, *ROWS])
    tiny = tiny_models(read_rows(run), run, work / "tiny")
    published = Path(args.output_dir) / "kappa_evidence.json"
    evidence = KappaEvidence(tiny, rows(), published, work, SPLIT)
    torch.set_num_threads(evidence.threads)
    evidence.go_on(args.hours, workers=1)


if __name__ == "__main__":
    run_cli(main)
