"""Time exact derivatives along K directions beside central differences and beside one bare forward pass.

`DATA_DIR=... bash scripts/bench.sh directions --model smollm2-135m --n 64 --track lora --dtype float32`. The model
is an embedded one, or one of the shapes of `scripts/bench.py` with random weights. Timed in turn, so that all see
the same machine:

- exact: the derivatives of all samples along K directions, noise included, for each K;
- central: the two passes of one direction; K of them take K times as long;
- floor: one pass through the bare trunk over as many tokens as the samples have, without any padding.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from scripts.bench import SHAPES, BenchArguments, bare_passes, build_model, sst2_prompts, word_tokenizer
from scripts.bench_reference import CANDIDATES, EPS
from scripts.bench_tools import PeakMemory, machine, save, shown, this_device, timed, utilisation
from src.engine.derivatives import exact_derivatives
from src.lora import LoraSettings, add_lora
from src.models import EMBEDDED, load_model
from src.objectives import CandidateScoring
from src.tasks import get_task
from src.utils import PRECISIONS, Parser, UserError, run_cli
from src.zo.directions import ParameterSpace
from src.zo.sources import CentralDifferences


@dataclass
class DirectionsArguments:
    """What is timed."""

    model: str = field(default="opt-125m", metadata={"help": f"{', '.join([*SHAPES, *EMBEDDED])}."})
    n: int = field(default=64, metadata={"help": "Samples."})
    k: list[int] = field(default_factory=lambda: [1, 4, 16, 64], metadata={"help": "Numbers of directions."})
    track: str = field(default="lora", metadata={"help": "lora or ft."})
    lora_layers: str = field(default="all", metadata={"help": "all, last:N, or numbers as 3,5,7."})
    dtype: str = field(default="float32", metadata={"help": ", ".join(PRECISIONS)})
    repeats: int = field(default=3, metadata={"help": "Timed repetitions."})
    derivative_budget: int | None = field(
        default=None, metadata={"help": "Tokens of a pass forward and backward."}
    )
    data_dir: str | None = field(default=None, metadata={"help": "Folder with sst2/train.jsonl."})
    output_dir: str = field(default="result/bench", metadata={"help": "Where the JSON goes."})

    def __post_init__(self) -> None:
        models = [*SHAPES, *EMBEDDED]
        if self.model not in models or self.track not in ("lora", "ft") or self.dtype not in PRECISIONS:
            known = f"--model {'|'.join(models)} --track lora|ft --dtype {'|'.join(PRECISIONS)}"
            raise UserError(f"unknown model, track or dtype; use {known}")
        if self.n < 1 or self.repeats < 1 or min(self.k) < 1:
            raise UserError("n, repeats and each k must be at least 1")


def main(argv: Sequence[str] | None = None) -> None:
    """Time, print, and write the figures as JSON."""
    (args,) = Parser(DirectionsArguments).parse(argv)
    device = this_device()
    memory = PeakMemory(device)
    objective = make_objective(args, device)
    objective.derivative_budget = args.derivative_budget
    space = ParameterSpace(objective.model)
    exact = {k: lambda seeds=tuple(range(k)): exact_derivatives(objective, space, seeds) for k in args.k}
    central = CentralDifferences(space, objective, EPS)
    floor = bare_passes(objective.model, objective, device, passes=1)
    peaks = {str(k): memory.during(run, since_start=True) for k, run in exact.items()}
    floor()
    central((1,))  # keeps a front, if there is one
    times: dict[str, list[float]] = {"floor": [], "central": [], **{f"exact {k}": [] for k in exact}}
    for _ in range(args.repeats):
        times["floor"].append(timed(floor, device))
        times["central"].append(timed(lambda: central((1,)), device))
        for k, run in exact.items():
            space.forget_noise()
            times[f"exact {k}"].append(timed(run, device))
    median = {name: statistics.median(values) for name, values in times.items()}
    passes = {"floor": 1, "central": 2, **{f"exact {k}": 2 for k in exact}}
    figures: dict[str, Any] = {
        "directions": True,
        "arguments": shown(args),
        "tokens": objective.num_tokens,
        "trained": space.num_elements,
        "seconds": times,
        "median": median,
        "peak": peaks,
        **machine(device),
    }
    figures["utilisation"] = {
        name: utilisation(
            objective.model, objective.num_tokens, count, median[name], device, PRECISIONS[args.dtype]
        )
        for name, count in passes.items()
    }
    report(figures)
    layers = "" if args.lora_layers == "all" else "-" + args.lora_layers.replace(":", "")
    name = f"directions-{args.model}-{args.track}{layers}-{args.dtype}-n{args.n}-{device.type}"
    print(f"wrote {save(args.output_dir, name, figures)}")


def make_objective(args: DirectionsArguments, device: torch.device) -> CandidateScoring:
    """SST-2 sentences on the model, with adapters or trained as a whole."""
    dtype = PRECISIONS[args.dtype]
    if args.model in EMBEDDED:
        if args.data_dir is None:
            raise UserError("set DATA_DIR to a folder with sst2/train.jsonl")
        base, tokenizer = load_model(args.model, dtype, device)
        task = get_task("SST2")
        splits = task.splits(args.data_dir, num_train=args.n, num_dev=1, num_eval=1, train_set_seed=0)
        return task.objective(trainable(base, args), tokenizer, splits.train)  # type: ignore[return-value]
    bench = BenchArguments(
        shape=args.model, n=args.n, track="ft", dtype=args.dtype, device=device.type, data_dir=args.data_dir
    )
    model = trainable(build_model(bench, device, dtype), args)
    texts = [" ".join(f"w{token}" for token in prompt) for prompt in sst2_prompts(bench)]
    words = [[f"w{token}" for token in CANDIDATES]] * args.n
    return CandidateScoring(model, word_tokenizer(), texts, words, [index % 2 for index in range(args.n)])


def trainable(model: Any, args: DirectionsArguments) -> nn.Module:
    """Adapters, in float32 also on half-precision weights, or the whole model."""
    if args.track == "ft":
        return model.requires_grad_(True)
    return add_lora(model, LoraSettings(dtype="float32", layers=args.lora_layers))


def report(figures: dict[str, Any]) -> None:
    median, peak = figures["median"], figures["peak"]
    print(f"{figures['device']}, {figures['threads']} threads, {figures['tokens']} tokens")
    shares = {name: values["share"] for name, values in figures["utilisation"].items()}
    print(f"{'':<14}{'seconds':>10}{'passes':>9}{'central / exact':>17}{'peak MiB':>10}{'of a product':>14}")
    print(f"{'floor':<14}{median['floor']:>10.3f}{1:>9.2f}")
    print(f"{'central K=1':<14}{median['central']:>10.3f}{median['central'] / median['floor']:>9.2f}")
    for k, bytes_held in peak.items():
        seconds = median[f"exact {k}"]
        ratio = int(k) * median["central"] / seconds
        passes = seconds / median["floor"]
        row = f"{'exact K=' + k:<14}{seconds:>10.3f}{passes:>9.2f}{ratio:>17.1f}{bytes_held / 2**20:>10.0f}"
        print(f"{row}{shares['exact ' + k]:>14.1%}")


if __name__ == "__main__":
    run_cli(main)
