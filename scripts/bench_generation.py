"""Time greedy generation beside the library's `generate` on micro-batches of 16 padded to the longest prompt.

`DATA_DIR=/my/data bash scripts/bench.sh generation --model smollm2-135m --n 93` on SQuAD's validation questions.
Of a shape of `scripts/bench.py` the weights and the words are random, and the prompts as long as the questions'.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from scripts.bench import SHAPES, VOCABULARY, BenchArguments, build_model, text_length, word_tokenizer
from scripts.bench_reference import reference_generation
from scripts.bench_tools import machine, save, shown, this_device, timed
from src.engine.decoding import stop_tokens
from src.models import load_model
from src.objectives import GenerationF1
from src.tasks import get_task
from src.utils import PRECISIONS, Parser, UserError, encode, read_jsonl, run_cli


@dataclass
class GenerationArguments:
    """What is timed."""

    model: str = field(default="smollm2-135m", metadata={"help": f"A model, or {', '.join(SHAPES)}."})
    n: int = field(default=93, metadata={"help": "Questions."})
    max_new_tokens: int = field(default=50, metadata={"help": "At most so many a question."})
    dtype: str = field(default="float32", metadata={"help": ", ".join(PRECISIONS)})
    repeats: int = field(default=1, metadata={"help": "Timed repetitions of each."})
    data_dir: str | None = field(default=None, metadata={"help": "Folder with squad/validation.jsonl."})
    output_dir: str = field(default="result/bench", metadata={"help": "Where the JSON goes."})

    def __post_init__(self) -> None:
        if self.dtype not in PRECISIONS or self.n < 1 or self.repeats < 1:
            raise UserError(f"--dtype takes {', '.join(PRECISIONS)}; n and repeats must be at least 1")


def main(argv: Sequence[str] | None = None) -> None:
    """Time both in turn, compare their answers, print, and write the figures as JSON."""
    (args,) = Parser(GenerationArguments).parse(argv)
    device = this_device()
    model, tokenizer, prompts, answers = questions(args, device)
    objective = GenerationF1(model, tokenizer, prompts, answers, args.max_new_tokens)
    encoded = list(encode(tokenizer, prompts))
    stops = stop_tokens(tokenizer, model.config.vocab_size).nonzero()[:, 0].tolist()
    texts: dict[str, list[str]] = {}
    times: dict[str, list[float]] = {"reference": [], "step": []}
    for _ in range(args.repeats):
        times["step"].append(timed(lambda: texts.update(step=objective.texts()), device))
        times["reference"].append(
            timed(
                lambda: texts.update(
                    reference=reference_generation(model, tokenizer, encoded, args.max_new_tokens, stops)
                ),
                device,
            )
        )
    median = {name: statistics.median(values) for name, values in times.items()}
    same = sum(a == b for a, b in zip(texts["step"], texts["reference"], strict=True))
    arguments = {**shown(args), "model": Path(args.model).name}
    figures: dict[str, Any] = {"arguments": arguments, "seconds": times, "median": median, **machine(device)}
    figures |= {"tokens": objective.num_tokens, "identical_answers": same, "questions": len(prompts)}
    print(f"{figures['device']}, {len(prompts)} questions, {objective.num_tokens} prompt tokens")
    print(f"reference {median['reference']:.2f} s, ours {median['step']:.2f} s")
    ratio = median["reference"] / median["step"]
    print(f"reference against ours: {ratio:.2f}; {same} of {len(prompts)} answers identical")
    name = f"generation-{Path(args.model).name}-{args.dtype}-n{len(prompts)}"
    print(f"wrote {save(args.output_dir, name, figures)}")


def questions(
    args: GenerationArguments, device: torch.device
) -> tuple[Any, PreTrainedTokenizerBase, list[str], list[list[str]]]:
    """The model, its tokenizer, prompts and answers; of a shape, n prompts of as many questions as there are."""
    if args.data_dir is None:
        raise UserError("set DATA_DIR to a folder with squad/validation.jsonl")
    dtype = PRECISIONS[args.dtype]
    rows = read_jsonl(Path(args.data_dir) / "squad" / "validation.jsonl")
    samples = [get_task("SQuAD").sample(row) for row in rows[: args.n]]
    if args.model not in SHAPES:
        model, tokenizer = load_model(args.model, dtype, device)
        return model, tokenizer, [sample.prompt for sample in samples], [list(s.answers) for s in samples]
    samples = [samples[index % len(samples)] for index in range(args.n)]
    shape = BenchArguments(shape=args.model, track="ft", dtype=args.dtype, device=device.type)
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.randint(8, VOCABULARY, (text_length(s.prompt),), generator=generator) for s in samples]
    prompts = [" ".join(f"w{token}" for token in tokens.tolist()) for tokens in drawn]
    return build_model(shape, device, dtype), word_tokenizer(), prompts, [["w8"]] * args.n


if __name__ == "__main__":
    run_cli(main)
