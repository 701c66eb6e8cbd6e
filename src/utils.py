"""Small things every entry point needs: one-line errors, argument parsing, JSON files, text encoding."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from transformers import HfArgumentParser, PreTrainedTokenizerBase

# A launcher ends all processes once one of them has ended: the others wait for the first one to speak.
SILENT_SECONDS = 3
PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class UserError(ValueError):
    """A mistake the user can mend. Its message is one line that says what is wrong and what to do."""


class Parser(HfArgumentParser):
    """`HfArgumentParser` that takes no abbreviations and reports a bad argument as one line."""

    def __init__(self, dataclass_types: Any, **kwargs: Any) -> None:
        super().__init__(dataclass_types, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise UserError(message)

    def parse(self, argv: Sequence[str] | None) -> tuple[Any, ...]:
        """Dataclass instances of `argv` (None: the process's own); raises `UserError` for anything wrong."""
        *found, unknown = self._parsed(None if argv is None else list(argv))
        if unknown:
            raise UserError(f"unknown option or value: {' '.join(unknown)}; --help lists the options")
        return tuple(found)

    def parse_known(self, argv: Sequence[str]) -> Any:
        """The first dataclass of `argv`, whatever else is in it; raises `UserError` for a wrong value."""
        return self._parsed(list(argv))[0]

    def _parsed(self, argv: list[str] | None) -> tuple[Any, ...]:
        """Dataclass instances, and behind them the list of words that are no option's."""
        try:
            return self.parse_args_into_dataclasses(args=argv, return_remaining_strings=True)
        except UserError:
            raise
        except ValueError as error:
            raise UserError(one_line(error)) from error


def one_line(error: BaseException) -> str:
    """The message of an error with its line breaks folded, or its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def run_cli(main: Callable[[], None]) -> NoReturn:
    """Run an entry point: `UserError` becomes one line on stderr (of a run's first process) and exit code 2.

    A warning is one line too, without the place in the source.
    """
    warnings.formatwarning = lambda message, *_, **__: f"warning: {' '.join(str(message).split())}\n"
    try:
        main()
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {one_line(error)}", file=sys.stderr)
        else:
            time.sleep(SILENT_SECONDS)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; a missing or damaged file raises `UserError` naming path and line."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # JSON may hold other line separators
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check DATA_DIR") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path} line {number} is not JSON: {error.msg}") from error
        if not isinstance(row, dict):
            raise UserError(f"{path} line {number} is not a JSON object")
        rows.append(row)
    return rows


def write_json(path: Path, value: Any) -> None:
    """Write `value` so that `path` holds either its old content or all of the new."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, sort_keys=True, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype called `name`; "auto" is float16 on CUDA (the paper's recipe) and float32 elsewhere."""
    if name == "auto":
        return torch.float16 if device.type == "cuda" else torch.float32
    if name not in PRECISIONS:
        raise UserError(f"unknown dtype '{name}': use auto, {', '.join(PRECISIONS)}")
    return PRECISIONS[name]


def versions() -> dict[str, str]:
    """Versions of the interpreter and of the libraries that numbers depend on."""
    import accelerate
    import numpy
    import peft
    import scipy
    import transformers

    modules = (torch, transformers, peft, accelerate, numpy, scipy)
    found = {module.__name__: str(module.__version__) for module in modules}
    return {"python": platform.python_version(), **found}


def prompt_prefix(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids that start every prompt: what the tokenizer puts before a text on its own.

    `load_model` overrides it for OPT by the attribute `prompt_prefix_ids`.
    """
    override = getattr(tokenizer, "prompt_prefix_ids", None)
    if override is not None:
        return list(override)
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for start in range(len(full) - len(plain) + 1):
        if full[start : start + len(plain)] == plain:
            return full[:start]
    return []


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Iterator[list[int]]:
    """Token ids of each text, with the prompt prefix in front and nothing behind."""
    prefix = prompt_prefix(tokenizer)
    # What is too long is cut or refused by `Window`, which says so where it may.
    for ids in tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]:
        yield prefix + ids
