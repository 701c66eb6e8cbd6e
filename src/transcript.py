"""The public record of a run: a header, one line a step, and a closing line. The model is a function of it.

python -m src.transcript replay --model M --transcript T --out DIR
python -m src.transcript verify --model M --transcript T --checkpoint DIR
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from src.models import load_model
from src.record.checkpoints import first_difference, read_weights, stated_step, weights_size
from src.record.steps import Transcript, TranscriptWriter, check_same, load, load_complete, read
from src.utils import Parser, UserError, one_line, run_cli
from src.zo.replay import at_start, check_end, header, replay

__all__ = [
    "Transcript",
    "TranscriptWriter",
    "at_start",
    "check_end",
    "check_same",
    "header",
    "load",
    "load_complete",
    "read",
    "replay",
]


@dataclass
class CommonArguments:
    """The base model and the transcript."""

    model: str = field(metadata={"help": "The base model: hub id, local folder or embedded name."})
    transcript: str = field(metadata={"help": "The transcript.jsonl of the run."})
    unfinished: bool = field(
        default=False, metadata={"help": "Take a transcript without a closing line: of a run that has not ended."}
    )


@dataclass
class ReplayArguments(CommonArguments):
    """Where the model goes."""

    out: str = field(default="", metadata={"help": "Folder for the fine-tuned model; must not hold anything."})
    steps: int | None = field(default=None, metadata={"help": "Apply this many steps only, e.g. the best one's."})


@dataclass
class VerifyArguments(CommonArguments):
    """What the transcript is compared with."""

    checkpoint: str = field(default="", metadata={"help": "Folder with a checkpoint or a saved model."})


def main(argv: Sequence[str] | None = None) -> None:
    """`replay` or `verify`; raises `UserError` for anything wrong."""
    words = list(sys.argv[1:] if argv is None else argv)
    commands: dict[str, Callable[[list[str]], None]] = {"replay": _replay, "verify": _verify}
    if not words or words[0] not in commands:
        raise UserError(
            "use: python -m src.transcript replay|verify --model M --transcript T ... (--help says more)"
        )
    commands[words[0]](words[1:])


def _replay(words: list[str]) -> None:
    (args,) = Parser((ReplayArguments,)).parse(words)
    out = Path(args.out)
    if not args.out or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise UserError(f"--out must name a folder that is empty or does not exist, got '{args.out}'")
    transcript, base, tokenizer = _load(args)
    model = replay(base, args.transcript, steps=args.steps)
    steps = len(transcript.steps) if args.steps is None else args.steps
    try:
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {one_line(error)}") from error
    print(f"applied {steps} of {len(transcript.steps)} steps to {args.model}; wrote {out}")
    _print_sizes(transcript, out)


def _verify(words: list[str]) -> None:
    """The checkpoint must be what the transcript gives after one of its steps.

    Where the checkpoint says after which, it must be after that one. All steps are applied in any case, so
    that the parameters at the end are compared with the closing line too.
    """
    (args,) = Parser((VerifyArguments,)).parse(words)
    checkpoint = Path(args.checkpoint)
    saved = read_weights(checkpoint)
    transcript, base, _ = _load(args)
    _, space = at_start(base, transcript)
    found = [0] if first_difference(space.parameters, saved) is None else []
    for number, record in enumerate(transcript.steps, start=1):
        space.apply(record)
        if first_difference(space.parameters, saved) is None:
            found.append(number)
    check_end(space, transcript)
    stated = stated_step(checkpoint)
    if not found or (stated is not None and stated not in found):
        where = "any step" if stated is None else f"step {stated}, where it says it was made"
        raise UserError(f"{checkpoint} is not what {args.transcript} gives after {where}")
    step = found[-1] if stated is None else stated
    which = f"after {step} of the transcript's {len(transcript.steps)} steps"
    print(f"{checkpoint} is, bit for bit, {args.model} {which}")
    _print_sizes(transcript, checkpoint)


def _load(args: CommonArguments) -> tuple[Transcript, PreTrainedModel, PreTrainedTokenizerBase]:
    transcript = load_complete(args.transcript)
    if not args.unfinished:
        transcript.check_finished()
    device = transcript.head["start"]["device_types"][0]
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(f"{args.transcript} is of a run on a CUDA device, and there is none here")
    dtype = getattr(torch, transcript.head["dtype"].removeprefix("torch."))
    model, tokenizer = load_model(args.model, dtype, device)
    return transcript, model, tokenizer


def _print_sizes(transcript: Transcript, folder: Path) -> None:
    print(f"transcript {transcript.path.stat().st_size:>14,} bytes")
    print(f"weights    {weights_size(folder):>14,} bytes")


if __name__ == "__main__":
    run_cli(main)
