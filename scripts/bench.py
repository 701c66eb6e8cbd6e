"""Time one zeroth-order step beside a plain way of doing it and beside two bare forward passes.

`bash scripts/bench.sh --shape opt-125m --n 64 --track lora --dtype float32`. Random weights of OPT's shapes, the
lengths of SST-2 sentences. Three things are timed in turn, so that all see the same machine:

- reference (`scripts/bench_reference.py`): one padded sequence a candidate, the whole batch as long as its longest
  sample, log-softmax over the vocabulary at every position, a third pass for a log line, caches flushed between
  micro-batches, a perturbation parameter by parameter, undone by subtraction;
- step: this project's, without the mechanism, which takes well under a millisecond;
- floor: two passes through the bare trunk (no head, no adapters) over as many tokens as the samples have, without
  any padding.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from scripts.bench_reference import CANDIDATES, EPS, LEARNING_RATE, reference_step
from scripts.bench_tools import PeakMemory, machine, save, shown, timed, utilisation
from src.lora import LoraSettings, add_lora
from src.objectives import CandidateScoring
from src.utils import PRECISIONS, Parser, UserError, read_jsonl, run_cli
from src.zo.directions import ParameterSpace, StepRecord

# name -> hidden size, feed-forward size, layers, heads
SHAPES = {
    "tiny": (32, 128, 2, 4),
    "opt-125m": (768, 3072, 12, 12),
    "opt-1.3b": (2048, 8192, 24, 32),
    "opt-6.7b": (4096, 16384, 32, 32),
}
VOCABULARY = 50272


@dataclass
class BenchArguments:
    """What is timed."""

    shape: str = field(default="opt-125m", metadata={"help": ", ".join(SHAPES)})
    n: int = field(default=64, metadata={"help": "Samples."})
    track: str = field(default="lora", metadata={"help": "lora or ft."})
    dtype: str = field(default="float32", metadata={"help": ", ".join(PRECISIONS)})
    device: str = field(default="auto", metadata={"help": "cpu, cuda or auto."})
    repeats: int = field(default=5, metadata={"help": "Timed repetitions of the step and of the floor."})
    reference_repeats: int = field(default=1, metadata={"help": "Of the reference; 0 leaves it out."})
    token_budget: int | None = field(default=None, metadata={"help": "Padded tokens in one micro-batch."})
    zo_inplace: bool = field(default=False, metadata={"help": "No snapshot of what is trained."})
    data_dir: str | None = field(default=None, metadata={"help": "Folder with sst2/train.jsonl."})
    output_dir: str = field(default="result/bench", metadata={"help": "Where the JSON goes."})

    def __post_init__(self) -> None:
        if self.shape not in SHAPES or self.track not in ("lora", "ft") or self.dtype not in PRECISIONS:
            known = f"--shape {'|'.join(SHAPES)} --track lora|ft --dtype {'|'.join(PRECISIONS)}"
            raise UserError(f"unknown shape, track or dtype; use {known}")
        if self.n < 1 or self.repeats < 1 or self.reference_repeats < 0:
            raise UserError("n and repeats must be at least 1, reference_repeats at least 0")
        if self.device == "auto":
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        if self.device not in ("cpu", "cuda") or (self.device == "cuda" and not torch.cuda.is_available()):
            raise UserError(f"device '{self.device}' is not there; use cpu, cuda or auto")


def main(argv: Sequence[str] | None = None) -> None:
    """Time, print, and write the figures as JSON."""
    (args,) = Parser(BenchArguments).parse(argv)
    device, dtype = torch.device(args.device), PRECISIONS[args.dtype]
    prompts, tokenizer = sst2_prompts(args), word_tokenizer()
    memory = PeakMemory(device)
    model = build_model(args, device, dtype)
    labels = [index % 2 for index in range(args.n)]
    words = [[f"w{token}" for token in CANDIDATES]] * args.n
    texts = [" ".join(f"w{token}" for token in prompt) for prompt in prompts]
    objective = CandidateScoring(model, tokenizer, texts, words, labels, token_budget=args.token_budget)
    space = ParameterSpace(model, inplace=args.zo_inplace)
    step, floor = zeroth_order_step(space, objective), bare_passes(model, objective, device)
    figures: dict[str, Any] = {"arguments": shown(args), "tokens": objective.num_tokens, **machine(device)}
    figures["memory"] = memory_figures(args, model, space, objective, memory, lambda: step(1))
    floor()
    times: dict[str, list[float]] = {"reference": [], "step": [], "floor": []}
    for repeat in range(max(args.repeats, args.reference_repeats)):
        if repeat < args.reference_repeats:
            times["reference"].append(timed(lambda: reference_step(model, prompts, labels, 1), device))
        if repeat < args.repeats:
            times["step"].append(timed(lambda: step(2), device))
            times["floor"].append(timed(floor, device))
    figures["seconds"] = {name: values for name, values in times.items() if values}
    figures["median"] = {name: statistics.median(values) for name, values in times.items() if values}
    figures["utilisation"] = utilisation(model, objective.num_tokens, 2, figures["median"]["step"], device, dtype)
    report(figures)
    name = f"{args.shape}-{args.track}-{args.dtype}-n{args.n}-{args.device}{'-inplace' if args.zo_inplace else ''}"
    print(f"wrote {save(args.output_dir, name, figures)}")


def sst2_prompts(args: BenchArguments) -> list[list[int]]:
    """Random token ids; as many a sample as its sentence has pieces of at most six letters, and "It was"."""
    folder = Path(args.data_dir) if args.data_dir else Path(__file__).parents[1] / "src" / "sample_data"
    rows = read_jsonl(folder / "sst2" / "train.jsonl")
    if len(rows) < args.n:
        raise UserError(f"{folder} has {len(rows)} sentences, fewer than n = {args.n}; set DATA_DIR")
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(rows), generator=generator)[: args.n].tolist()
    lengths = [text_length(rows[index]["sentence"]) + 3 for index in chosen]
    return [torch.randint(8, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


def text_length(text: str) -> int:
    """Pieces of at most six letters, and marks: about as many as a tokenizer of that vocabulary makes."""
    return len(re.findall(r"\w{1,6}|[^\w\s]", text))


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Token i is the word "w<i>"."""
    words = {"<unk>": 0, "<pad>": 1, **{f"w{i}": i for i in range(2, VOCABULARY)}}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", pad_token="<pad>")


def build_model(args: BenchArguments, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Random weights of the shape, made on the device in the dtype."""
    hidden, inner, layers, heads = SHAPES[args.shape]
    config = OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        word_embed_proj_dim=hidden,
        ffn_dim=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        dtype=dtype,
    )
    with torch.device(device):
        previous = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            model = OPTForCausalLM(config).eval()
        finally:
            torch.set_default_dtype(previous)
    return add_lora(model, LoraSettings()) if args.track == "lora" else model


def zeroth_order_step(space: ParameterSpace, objective: CandidateScoring) -> Callable[[int], None]:
    """This project's step with the sign of the mean derivative."""

    def step(seed: int) -> None:
        plus, minus = space.two_point(seed, EPS, objective.losses)
        sign = 1.0 if (plus - minus).mean() >= 0 else -1.0
        space.apply(StepRecord(0, (seed,), (sign,), LEARNING_RATE))

    return step


def bare_passes(
    model: nn.Module, objective: CandidateScoring, device: torch.device, passes: int = 2
) -> Callable[[], None]:
    """Passes through the base model's trunk over the samples' number of tokens in full rectangles."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    width = max(1, objective.num_tokens // len(objective))
    rows = max(1, objective.token_budget // width)
    vocabulary = base.config.vocab_size
    left, batches = objective.num_tokens, []
    while left > 0:
        batches.append(torch.randint(8, vocabulary, (max(1, min(rows, left // width)), width), device=device))
        left -= batches[-1].numel()

    @torch.no_grad()
    def floor() -> None:
        with model.disable_adapter() if isinstance(model, PeftModel) else nullcontext():
            for batch in batches * passes:
                base.model(input_ids=batch, use_cache=False)

    return floor


def memory_figures(
    args: BenchArguments,
    model: nn.Module,
    space: ParameterSpace,
    objective: CandidateScoring,
    memory: PeakMemory,
    step: Callable[[], None],
) -> dict[str, float]:
    """Peak of a step in bytes beside weights + one snapshot + activations of one micro-batch.

    These passes must be the first: later ones reuse what the allocator keeps.
    """
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    trainable = sum(p.numel() * p.element_size() for p in space.parameters.values())
    snapshot = 0 if args.zo_inplace else trainable
    largest = max(objective.micro_batches(), key=lambda batch: batch.input_ids.numel())
    activations = memory.during(lambda: objective.losses(largest.rows.tolist()))
    peak = memory.during(step, since_start=True)
    parts = {"weights": weights, "snapshot": snapshot, "activations": activations, "peak": peak}
    return {**parts, "ratio": peak / (weights + snapshot + activations)}


def report(figures: dict[str, Any]) -> None:
    median, memory = figures["median"], figures["memory"]
    print(f"{figures['device']}, {figures['threads']} threads, {figures['tokens']} tokens")
    for name, seconds in median.items():
        passes = 2 * figures["tokens"] / seconds
        print(
            f"{name:<10}{seconds:>10.4f} s {passes:>12.0f} tokens/s {seconds / median['step']:>8.2f} of the step"
        )
    print(f"step against floor: {median['step'] / median['floor']:.3f}")
    if "reference" in median:
        print(f"reference against step: {median['reference'] / median['step']:.1f}")
    parts = ", ".join(f"{name} {value / 2**20:.0f}" for name, value in memory.items() if name != "ratio")
    print(f"MiB: {parts}; peak of a step is {memory['ratio']:.3f} of the sum of the other three")
    print(f"model-FLOP utilisation {figures['utilisation']['share']:.1%} of a matrix product's rate")


if __name__ == "__main__":
    run_cli(main)
