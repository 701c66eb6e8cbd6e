"""How true per-sample derivatives are in each precision: central differences and exact ones, beside float64.

`DATA_DIR=... bash scripts/bench.sh precision --model smollm2-135m --n 64`. For each dtype of the weights, with
adapters in it, the correlation over the samples with the exact derivatives in float64, direction by direction. The
weights are rounded to the dtype first and the truth is that of the rounded weights: what is compared is the
arithmetic alone. Then what that does to learning: PAC-ZPL on the small problem of `scripts/learning_check.py`,
trained in each dtype with both kinds of derivatives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import logging

from scripts.bench_tools import machine, save, shown
from scripts.learning_check import accuracy_after
from src.engine.derivatives import exact_derivatives
from src.lora import LoraSettings, add_lora
from src.models import load_model
from src.sample_data.learning_task import pretrain
from src.tasks import get_task
from src.utils import PRECISIONS, Parser, UserError, run_cli
from src.zo.directions import ParameterSpace
from src.zo.sources import CentralDifferences

SPREAD = 0.02  # of the adapters' B, which start at zero, where half of the derivatives are zero too


@dataclass
class PrecisionArguments:
    """What is compared."""

    model: str = field(default="smollm2-135m", metadata={"help": "Hub id, local folder or embedded name."})
    n: int = field(default=64, metadata={"help": "SST-2 sentences."})
    k: int = field(default=4, metadata={"help": "Directions."})
    dtypes: list[str] = field(default_factory=lambda: list(PRECISIONS), metadata={"help": "Of the weights."})
    eps: list[float] = field(default_factory=lambda: [1e-3, 1e-2], metadata={"help": "Of central differences."})
    seeds: int = field(default=3, metadata={"help": "Runs on the small problem, for each dtype and kind."})
    data_dir: str | None = field(default=None, metadata={"help": "Folder with sst2/train.jsonl."})
    output_dir: str = field(default="result/bench", metadata={"help": "Where the JSON goes."})

    def __post_init__(self) -> None:
        unknown = [name for name in self.dtypes if name not in PRECISIONS]
        if unknown or self.n < 2 or self.k < 1:
            raise UserError(f"--dtypes takes {', '.join(PRECISIONS)}, --n at least 2 and --k at least 1")


def main(argv: Sequence[str] | None = None) -> None:
    """Compare, print, and write the figures as JSON."""
    (args,) = Parser(PrecisionArguments).parse(argv)
    if args.data_dir is None:
        raise UserError("set DATA_DIR to a folder with sst2/train.jsonl")
    rows = [row for dtype in args.dtypes for row in compare(args, dtype)]
    learned = [row for dtype in args.dtypes for row in learning(args, dtype)]
    figures = {"precision": rows, "learning": learned, "arguments": shown(args), **machine(torch.device("cpu"))}
    print(f"{'weights':<10}{'derivatives':<16}{'correlation with float64':<34}{'error / signal':>14}")
    for row in rows:
        shares = " ".join(f"{value:.3f}" for value in row["correlation"])
        print(f"{row['dtype']:<10}{row['derivative']:<16}{shares:<34}{row['error']:>14.3g}")
    for row in learned:
        shares = " ".join(f"{value:.3f}" for value in row["accuracy"])
        print(f"PAC-ZPL in {row['dtype']}, {row['derivative']} derivatives: held-out accuracy {shares}")
    print(f"wrote {save(args.output_dir, f'precision-{Path(args.model).name}-n{args.n}', figures)}")


def learning(args: PrecisionArguments, dtype: str) -> list[dict[str, Any]]:
    """Held-out accuracy of PAC-ZPL on the small problem, one for each seed, by either kind of derivatives."""
    logging.set_verbosity_error()
    accuracies: dict[str, list[float]] = {"central": [], "exact": []}
    for seed in range(args.seeds):
        task = pretrain(seed)
        torch.nn.Module.to(task.model, PRECISIONS[dtype])
        start = {name: value.clone() for name, value in task.model.state_dict().items()}
        for kind, found in accuracies.items():
            mode = {"pac_zpl": True, "pac_secret_seed": seed, "seed": seed, "zo_derivative": kind}
            found.append(accuracy_after(task, start, no_derivative_check=True, **mode)[0])
    return [{"dtype": dtype, "derivative": kind, "accuracy": found} for kind, found in accuracies.items()]


def compare(args: PrecisionArguments, dtype: str) -> list[dict[str, Any]]:
    """A row for central differences at each eps, and one for exact derivatives."""
    seeds = tuple(range(1, args.k + 1))
    objective = make_objective(args, PRECISIONS[dtype])
    rounded = [parameter.detach().double() for parameter in objective.model.parameters()]
    space = ParameterSpace(objective.model)
    found = {f"eps {eps:g}": CentralDifferences(space, objective, eps)(seeds)[0] for eps in args.eps}
    found["exact"] = exact_derivatives(objective, space, seeds)[0].numpy()
    wide = make_objective(args, torch.float64)
    for parameter, value in zip(wide.model.parameters(), rounded, strict=True):
        parameter.data.copy_(value)
    truth = exact_derivatives(wide, ParameterSpace(wide.model), seeds)[0].numpy()
    return [
        {
            "dtype": dtype,
            "derivative": name,
            "correlation": [float(np.corrcoef(a, b)[0, 1]) for a, b in zip(values, truth, strict=True)],
            "error": float(np.sqrt(np.mean((values - truth) ** 2) / np.mean(truth**2))),
        }
        for name, values in found.items()
    ]


def make_objective(args: PrecisionArguments, dtype: torch.dtype) -> Any:
    """SST-2 sentences on the model with adapters away from zero."""
    base, tokenizer = load_model(args.model, dtype)
    model = add_lora(base, LoraSettings())
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.copy_(SPREAD * torch.randn(parameter.shape, generator=generator))
    task = get_task("SST2")
    splits = task.splits(args.data_dir, num_train=args.n, num_dev=1, num_eval=1, train_set_seed=0)
    return task.objective(model, tokenizer, splits.train)


if __name__ == "__main__":
    run_cli(main)
