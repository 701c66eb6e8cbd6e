"""What PUM's parties need: memory of a run with few and many copies, memory of a merge, time on two processes.

    bash scripts/bench.sh parties                      all three
    bash scripts/bench.sh parties --what memory merge  of these

- memory: `pum.run_pum` on --model, one step a copy, in one process, for 2 and for 8 copies; beyond the interpreter
  with its libraries.
- merge: `pum.merge` of 4 replies to an offer of --model, float32, likewise, beside the model's size.
- time: `pum.run_pum` with 4 copies of a Llama with random weights, all of it, from the start of the command to its
  end, on one process and on two, single-threaded; and whether the results are equal bit for bit.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pum.client import difference_layout
from pum.folders import DIFFERENCE, WEIGHTS, add_reply, copy_name, read_offer
from pum.tensors import TensorFile, file_digest, write_tensors
from pum.unlearn.tiny import train_tokenizer
from scripts.bench_tools import machine, peak_resident, save
from src.tofu.rows import SAMPLE_DATA, load_split
from src.utils import Parser, UserError, run_cli

ROOT = Path(__file__).resolve().parents[1]
WHAT = ("memory", "merge", "time")
FEW, MANY, COPIES = 2, 8, 4
WIDTH, LAYERS = 256, 4
TRAINING = (
    *("--inner_handler", "NPO", "--sigma_rms", "0.01", "--secret_seed", "1", "--dtype", "float32"),
    *("--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "1", "--evaluate", "False"),
    *("--use_cpu", "True", "--disable_tqdm", "True", "--fingerprint", "False"),
)


@dataclass
class PartiesArguments:
    """What is measured."""

    what: list[str] = field(default_factory=lambda: list(WHAT), metadata={"help": ", ".join(WHAT)})
    model: str = field(default="smollm2-135m", metadata={"help": "Of memory and merge."})
    steps: int = field(default=150, metadata={"help": "Of each copy, where time is measured."})
    data_dir: str | None = field(default=None, metadata={"help": "Not used: the rows are the sample data's."})
    output_dir: str = field(default="result/bench", metadata={"help": "Where the JSON goes."})

    def __post_init__(self) -> None:
        if unknown := set(self.what) - set(WHAT):
            raise UserError(f"unknown measurement '{min(unknown)}'; known: {', '.join(WHAT)}")
        if self.steps < 1:
            raise UserError(f"steps must be at least 1, got {self.steps}")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and write the figures as JSON."""
    (args,) = Parser(PartiesArguments).parse(argv)
    figures: dict[str, Any] = {"arguments": {"model": args.model, "steps": args.steps}}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        split = load_split("forget10", str(SAMPLE_DATA))
        for name, rows in (("forget", split.forget), ("retain", split.retain)):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        makers = {"memory": memory, "merge": merge, "time": times}
        for what in WHAT:
            if what in args.what:
                figures[what] = makers[what](args, folder)
                print(
                    f"{what}: " + ", ".join(f"{key} {value}" for key, value in figures[what].items()), flush=True
                )
    print(f"wrote {save(args.output_dir, 'parties', {**figures, **machine(torch.device('cpu'))})}")


def memory(args: PartiesArguments, folder: Path) -> dict[str, float]:
    """Peaks in MiB of a run of few copies and of many, beyond the interpreter's."""
    own = command(["-c", "import pum.run_pum"])[1]
    found: dict[str, float] = {"interpreter": own}
    for copies in (FEW, MANY):
        words = ["--model_name", args.model, "--copies_m", str(copies), "--max_steps", "1"]
        _, peak = unlearned(words, folder, f"memory{copies}")
        found[f"{copies} copies"] = round(peak - own, 1)
    return found


def merge(args: PartiesArguments, folder: Path) -> dict[str, float]:
    """Peak in MiB of a merge beyond the interpreter's, beside the size of the model's weights; seconds."""
    server, offer, reply = folder / "server", folder / "offer", folder / "reply"
    words = ["--model_name", args.model, "--dtype", "float32", "--copies_m", str(COPIES), "--sigma_rms", "0.01"]
    places = ["--offer", str(offer), "--private", str(server)]
    command(["-m", "pum.publish", *words, *places, "--use_orthogonal_reparam", "True"])
    size = answer(offer / "round1", reply)
    own = command(["-c", "import pum.merge"])[1]
    words = ["--private", str(server), "--reply", str(reply), "--output_dir", str(folder / "merged")]
    seconds, peak = command(["-m", "pum.merge", *words])
    return {
        "interpreter": own,
        "model": size,
        "peak": round(peak - own, 1),
        "peak / model": round((peak - own) / size, 2),
        "seconds": round(seconds, 1),
    }


@torch.no_grad()
def answer(offer: Path, reply: Path) -> float:
    """A reply to all copies, made up: small random differences. Returns the MiB of one."""
    published = read_offer(offer)
    reply.mkdir()
    for k in range(published.copies):
        weights = TensorFile(published.copy(k) / WEIGHTS)
        generator = torch.Generator().manual_seed(k)
        path = reply / f"{copy_name(k)}.safetensors"
        layout = difference_layout(weights.layout)
        made = ((n, 1e-4 * torch.randn(kind.shape, generator=generator)) for n, kind in layout.items())
        digest = write_tensors(path, layout, made)
        entry = {"copy": k + 1, "method": "NPO", "steps": 1, "kind": DIFFERENCE, "sha256": digest}
        add_reply(reply, published.manifest["offer"], 0, entry)
    return round(path.stat().st_size / 2**20, 1)


def times(args: PartiesArguments, folder: Path) -> dict[str, Any]:
    """Seconds of a whole run on one process and on two, their ratio, and whether their weights are equal."""
    model, rows = folder / "llama", load_split("forget10", str(SAMPLE_DATA))
    tokenizer = train_tokenizer([*rows.forget, *rows.retain])
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(model)
    tokenizer.save_pretrained(model)
    words = ["--model_name", str(model), "--copies_m", str(COPIES), "--max_steps", str(args.steps)]
    one, _ = unlearned(words, folder, "one")
    two, _ = unlearned(words, folder, "two", processes=2)
    digests = {file_digest(folder / name / WEIGHTS) for name in ("one", "two")}
    figures = {"one process": round(one, 1), "two processes": round(two, 1), "two / one": round(two / one, 3)}
    return {**figures, "bits": "equal" if len(digests) == 1 else "different"}


def unlearned(words: Sequence[str], folder: Path, name: str, *, processes: int = 1) -> tuple[float, float]:
    """A run of `pum.run_pum`: seconds, and the peak in MiB of its largest process."""
    launch = [] if processes == 1 else ["scripts.launch", str(processes)]
    rows = ["--forget_path", str(folder / "forget.jsonl"), "--retain_path", str(folder / "retain.jsonl")]
    return command(["-m", *launch, "pum.run_pum", *words, *rows, *TRAINING, "--output_dir", str(folder / name)])


def command(words: Sequence[str]) -> tuple[float, float]:
    """Seconds and peak resident MiB of Python with these words, single-threaded; of several processes the largest.

    The kernel keeps each process's own peak, which is read until the process ends.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    begin, peak = time.perf_counter(), 0.0
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [sys.executable, *words], cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        while process.poll() is None:
            time.sleep(0.1)
            peak = max([peak, *(peak_resident(one) / 2**20 for one in _processes(process.pid))])
        seconds = time.perf_counter() - begin
        if process.returncode:
            output.seek(0)
            lines = output.read().strip().splitlines()
            raise UserError(f"{' '.join(words[:3])} failed: {lines[-1] if lines else process.returncode}")
    return seconds, round(peak, 1)


def _processes(pid: int) -> list[int]:
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.Error:
        return []


if __name__ == "__main__":
    run_cli(main)
