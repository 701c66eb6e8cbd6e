"""The command line of a training run: words of the sources are translated, then one run for each train set."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

from src.engine.processes import is_first
from src.evaluating import EvaluationArguments, evaluate
from src.running import RunArguments, run
from src.upstream import translated
from src.utils import Parser
from src.zo.arguments import ZOArguments


def command(
    kind: type[ZOArguments],
    make_trainer: Callable[..., Any],
    argv: Sequence[str] | None = None,
    *,
    renamed: Mapping[str, str] = {},
) -> None:
    """Run from the command line; raises `UserError` before anything is written where the input is wrong.

    Args:
        kind: the trainer's arguments.
        make_trainer: its class.
        argv: the words after the module's name; None for the process's own.
        renamed: options of the sources that this command alone has, and their names here.
    """
    given = sys.argv[1:] if argv is None else list(argv)
    words, notes = translated(given, renamed)
    settings = Parser(RunArguments, add_help=False).parse_known(words)
    if not settings.trains:
        settings, args = Parser((RunArguments, EvaluationArguments)).parse(words)
    else:
        settings, args = Parser((RunArguments, kind)).parse(words)
    for note in notes if is_first() else []:
        print(f"note: {note}", file=sys.stderr)
    several = settings.each_train_set()
    for number, one in enumerate(several):
        mine = deepcopy(args)
        if len(several) > 1:
            mine.output_dir = f"{args.output_dir}-trainset{number}"
        if settings.trains:
            run(one, mine, make_trainer, given, number=number)
        else:
            evaluate(one, mine, given, number=number)
