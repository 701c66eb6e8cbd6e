"""What `ZOTrainer` hangs into the library's loop: the check of the first step, and the end of the records."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from src.engine.processes import check_equal
from src.utils import UserError


class FirstStepGuard(TrainerCallback):
    """Stops a run whose first effective step changed nothing that is trained, or anything that is frozen.

    Args:
        checksums: of the trainable and of the frozen parameters, as they are.
        effective: whether the step that is about to be taken has to change what is trained.
    """

    def __init__(self, checksums: Callable[[], tuple[str, str]], effective: Callable[[], bool]) -> None:
        self._checksums = checksums
        self._effective = effective
        self._before: tuple[str, str] | None = None
        self._done = False

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self._done and self._effective():
            self._before = self._checksums()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self._done or control.should_training_stop or self._before is None:
            return
        self._done = True
        trainable, frozen = self._checksums()
        check_equal("parameters after the first step", trainable + frozen)
        if frozen != self._before[1]:
            raise UserError("the first step changed parameters that are frozen; the run stops")
        if trainable == self._before[0]:
            raise UserError(
                "the first step changed no trainable parameter: the learning rate is too small for their dtype,"
                " or the model was moved after the trainer was made"
            )


class EndOfRecords(TrainerCallback):
    """Closes the run's records once the training is over.

    At the end of an epoch, which is one step, the parameters are still the last step's: the library loads the
    best checkpoint later.

    Args:
        finish: closes them, once; True where the parameters are the last step's.
    """

    def __init__(self, finish: Callable[[bool], None]) -> None:
        self._finish = finish

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # A run that died after its last checkpoint has no step left to make.
        if state.global_step >= state.max_steps:
            self._finish(True)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if control.should_training_stop:
            self._finish(True)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Another callback may stop the training after the end of an epoch.
        self._finish(False)
