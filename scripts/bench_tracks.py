"""What each track trains, keeps and costs: a step of all weights, LoRA adapters, a prefix, the head's rows.

`DATA_DIR=... bash scripts/bench.sh tracks --model smollm2-135m --n 64`. A step is the two passes of one direction
over SST-2 sentences, by classification, and the update along it. Timed in turn with the floor, one pass through
the bare trunk over as many tokens as the samples have, without any padding. The first step, in which the head's
track keeps the states in front of it for all later ones, is timed apart.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scripts.bench import bare_passes
from scripts.bench_tools import machine, save, shown, timed
from src.ht_opt import candidate_tokens
from src.models import add_track, load_model
from src.record.checkpoints import weights_size
from src.tasks import Sample, get_task
from src.utils import PRECISIONS, Parser, UserError, run_cli
from src.zo.directions import ParameterSpace, StepRecord
from src.zo.sources import CentralDifferences

TRACKS = ("full", "lora", "prefix", "head")
EPS, RATE = 1e-3, 1e-6


@dataclass
class TracksArguments:
    """What is timed."""

    model: str = field(default="smollm2-135m", metadata={"help": "Hub id, local folder or embedded name."})
    n: int = field(default=64, metadata={"help": "SST-2 sentences."})
    dtype: str = field(default="float32", metadata={"help": ", ".join(PRECISIONS)})
    repeats: int = field(default=3, metadata={"help": "Timed repetitions."})
    data_dir: str | None = field(default=None, metadata={"help": "Folder with sst2/train.jsonl."})
    output_dir: str = field(default="result/bench", metadata={"help": "Where the JSON goes."})

    def __post_init__(self) -> None:
        if self.dtype not in PRECISIONS or self.n < 1 or self.repeats < 1:
            raise UserError(f"--dtype takes {', '.join(PRECISIONS)}, --n and --repeats at least 1")


def main(argv: Sequence[str] | None = None) -> None:
    """Time, print, and write the figures as JSON."""
    (args,) = Parser(TracksArguments).parse(argv)
    if args.data_dir is None:
        raise UserError("set DATA_DIR to a folder with sst2/train.jsonl")
    device, dtype, task = torch.device("cpu"), PRECISIONS[args.dtype], get_task("SST2")
    samples = task.splits(args.data_dir, num_train=args.n, num_dev=1, num_eval=1, train_set_seed=0).train
    bare, tokenizer = load_model(args.model, dtype)
    objective: Any = task.objective(bare, tokenizer, samples)
    floor = bare_passes(bare, objective, device, passes=1)
    floor()
    size = sum(p.numel() for p in bare.parameters())
    rows: list[dict[str, Any]] = []
    for track in TRACKS:
        model = trainable(bare if track == "full" else load_model(args.model, dtype)[0], tokenizer, track, samples)
        space, tracked = ParameterSpace(model), task.objective(model, tokenizer, samples)
        source = CentralDifferences(space, tracked, EPS)
        first = timed(lambda: source((0,)), device)  # noqa: B023  # is called now
        times: dict[str, list[float]] = {"floor": [], "step": []}
        for number in range(args.repeats):
            times["floor"].append(timed(floor, device))
            times["step"].append(timed(lambda: step(source, space, number + 1), device))  # noqa: B023
        rows.append(
            {
                "track": track,
                "trained": space.num_elements,
                "share": space.num_elements / size,
                "snapshot_bytes": sum(p.numel() * p.element_size() for p in space.parameters.values()),
                "saved_bytes": saved_bytes(model),
                "first_seconds": first,
                "seconds": times,
                "median": {name: statistics.median(values) for name, values in times.items()},
            }
        )
    median = {row["track"]: row["median"]["step"] for row in rows}
    figures = {"tracks": rows, "median": median, "tokens": objective.num_tokens, "parameters": size}
    figures |= {"arguments": shown(args), **machine(device)}
    report(figures)
    print(f"wrote {save(args.output_dir, f'tracks-{Path(args.model).name}-{args.dtype}-n{args.n}', figures)}")


def step(source: CentralDifferences, space: ParameterSpace, number: int) -> None:
    """Two passes along a new direction, and the update."""
    source((number,))
    space.apply(StepRecord(number, (number,), (1.0,), RATE))


def trainable(model: Any, tokenizer: Any, track: str, samples: Sequence[Sample]) -> nn.Module:
    """The model with the track, in the recipe's size."""
    if track == "full":
        return model.requires_grad_(True)
    settings: dict[str, Any] = {"name": track}
    if track == "head":
        settings["tokens"] = candidate_tokens(tokenizer, samples[0].prompt, samples[0].continuations)
    return add_track(model, settings)


def saved_bytes(model: Any) -> int:
    """What a checkpoint's weights take on disk."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return weights_size(Path(folder))


def report(figures: dict[str, Any]) -> None:
    print(f"{figures['device']}, {figures['threads']} threads, {figures['tokens']} tokens")
    print(f"{'':<8}{'trained':>12}{'share':>10}{'saved, bytes':>15}{'first, s':>10}{'step, s':>10}{'passes':>10}")
    for row in figures["tracks"]:
        median = row["median"]
        print(
            f"{row['track']:<8}{row['trained']:>12,}{row['share']:>10.4%}{row['saved_bytes']:>15,}"
            f"{row['first_seconds']:>10.3f}{median['step']:>10.4f}{median['step'] / median['floor']:>10.4f}"
        )


if __name__ == "__main__":
    run_cli(main)
