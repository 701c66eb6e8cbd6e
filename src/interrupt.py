"""Stopping a run by a signal, between two steps."""

from __future__ import annotations

import signal
import sys
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

SIGNALS = (signal.SIGUSR1, signal.SIGINT)


class StopOnSignal(TrainerCallback):
    """Ends the process after the step in which SIGUSR1 or SIGINT came.

    Nothing needs to be saved: a step is on disk before the parameters change, and a run goes on from there.
    """

    def __init__(self) -> None:
        self._came: int | None = None
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}

    def _note(self, number: int, frame: Any) -> None:
        self._came = number

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._came is None:
            return
        self._restore()
        print(
            f"{signal.Signals(self._came).name}: stopped after step {state.global_step}, which is on disk;"
            " --resume_from_checkpoint True goes on where the method can",
            file=sys.stderr,
        )
        raise KeyboardInterrupt

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._restore()
