"""A run by one process and the same run by several, one a GPU: seconds a step, and whether the bits agree.

`python -m scripts.bench_processes --processes 2 --shape opt-1.3b`. Signs of the mean derivative, without noise, on
a model of one of the shapes of `scripts/bench.py` with random weights, on made-up sentences as long as SST-2's.
Where there is no GPU, the processes share the CPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from scripts.bench import SHAPES, VOCABULARY, BenchArguments, build_model, sst2_prompts
from scripts.bench_tools import machine, save, shown, this_device
from src.utils import PRECISIONS, Parser, UserError, run_cli

ROOT = Path(__file__).resolve().parents[1]
WORDS = ("<s>", "<pad>", "</s>", "<unk>", "It", "was", "terrible", "great")


@dataclass
class ProcessesArguments:
    """What is run."""

    processes: int = field(default=2, metadata={"help": "At most the number of GPUs."})
    shape: str = field(default="opt-1.3b", metadata={"help": ", ".join(SHAPES)})
    n: int = field(default=256, metadata={"help": "Samples."})
    k: int = field(default=4, metadata={"help": "Directions a step."})
    steps: int = field(default=10, metadata={"help": "Steps of each run."})
    dtype: str = field(default="float16", metadata={"help": ", ".join(PRECISIONS)})
    data_dir: str | None = field(default=None, metadata={"help": "Folder with sst2/train.jsonl."})
    output_dir: str = field(default="result/bench", metadata={"help": "Where the JSON goes."})

    def __post_init__(self) -> None:
        if self.shape not in SHAPES or self.dtype not in PRECISIONS:
            raise UserError(
                f"unknown shape or dtype; use --shape {'|'.join(SHAPES)} --dtype {'|'.join(PRECISIONS)}"
            )
        if self.processes < 2 or min(self.n, self.k, self.steps) < 1:
            raise UserError("processes must be at least 2; n, k and steps at least 1")


def main(argv: Sequence[str] | None = None) -> None:
    """Run both, print, and write the figures as JSON."""
    (args,) = Parser(ProcessesArguments).parse(argv)
    device = this_device()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(args, folder, device)
        runs = {count: run(args, folder, count) for count in (1, args.processes)}
    alone, together = runs.values()
    same = sum(a == b for a, b in zip(alone["bits"], together["bits"], strict=True))
    seconds = {f"{count} processes": [found["seconds_per_step"]] for count, found in runs.items()}
    figures: dict[str, Any] = {
        "processes": args.processes,
        "arguments": shown(args),
        "seconds": seconds,
        "median": {name: values[0] for name, values in seconds.items()},
        "same_bits": same,
        "bits": len(alone["bits"]),
        **machine(device),
    }
    for label, value in figures["median"].items():
        print(f"{label}: {value:.4f} s a step")
    print(f"{same} of {len(alone['bits'])} released numbers are the same")
    print(f"wrote {save(args.output_dir, f'processes-{args.processes}-{args.shape}-{args.dtype}', figures)}")


def prepare(args: ProcessesArguments, folder: Path, device: torch.device) -> None:
    """A model, its tokenizer and labelled sentences, as a run reads them."""
    bench = BenchArguments(
        shape=args.shape, n=args.n + 8, track="ft", dtype=args.dtype, device=device.type, data_dir=args.data_dir
    )
    build_model(bench, device, PRECISIONS[args.dtype]).save_pretrained(folder / "model")  # type: ignore[operator]
    words = {word: index for index, word in enumerate(WORDS)}
    words |= {f"w{index}": index for index in range(len(WORDS), VOCABULARY)}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=core, **special).save_pretrained(folder / "model")
    rows = [
        {"sentence": " ".join(f"w{token}" for token in prompt), "label": index % 2}
        for index, prompt in enumerate(sst2_prompts(bench))
    ]
    (folder / "sst2").mkdir()
    for split in ("train", "validation"):
        (folder / "sst2" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def run(args: ProcessesArguments, folder: Path, processes: int) -> dict[str, Any]:
    """Seconds a step and what was released. UserError with the run's last line where it fails."""
    launcher = [] if processes == 1 else ["scripts.launch", str(processes)]
    output = folder / f"run{processes}"
    options = {
        "--output_dir": output,
        "--task_name": "SST2",
        "--model_name": folder / "model",
        "--dtype": args.dtype,
        "--num_train": args.n,
        "--num_dev": 0,
        "--num_eval": 4,
        "--max_steps": args.steps,
        "--learning_rate": 1e-4,
        "--pac_m": 16,
        "--ablation": "quant_full",
        "--pac_k": args.k,
        "--report_to": "none",
    }
    words = [str(word) for pair in options.items() for word in pair]
    flags = ["--no_privacy", "--lora", "--train_as_classification"]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, "paczo.run_paczo", *words, *flags],
        cwd=ROOT,
        env={**os.environ, "DATA_DIR": str(folder)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise UserError(f"the run by {processes} processes failed: {lines[-1] if lines else done.returncode}")
    lines = (output / "transcript.jsonl").read_text("utf-8").splitlines()
    records = [record for record in map(json.loads, lines) if "step" in record]
    bits = [coefficient for record in records for coefficient in record["coefficients"]]
    timing = json.loads((output / "metrics.json").read_text("utf-8"))
    return {"bits": bits, "seconds_per_step": timing["seconds"]["per_step_median"]}


if __name__ == "__main__":
    run_cli(main)
