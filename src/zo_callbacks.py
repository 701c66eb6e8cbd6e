"""What `ZOTrainer` hangs into the library's loop: the check of the first step, and the end of the records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from src.processes import check_equal
from src.utils import UserError
from src.zo import frozen_checksum

if TYPE_CHECKING:
    from src.zo_trainer import ZOTrainer


class FirstStepGuard(TrainerCallback):
    """Stops a run whose first effective step changed nothing that is trained, or anything that is frozen."""

    def __init__(self, trainer: ZOTrainer) -> None:
        self._trainer = trainer
        self._before: tuple[str, str] | None = None
        self._done = False

    def _checksums(self) -> tuple[str, str]:
        return self._trainer.space.checksum(), frozen_checksum(self._trainer.model)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not self._done:
            self._before = self._checksums()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # A warm-up schedule's first rate is zero: such a step changes nothing, and rightly so.
        if self._done or control.should_training_stop or not self._trainer._get_learning_rate():
            return
        self._done = True
        trainable, frozen = self._checksums()
        assert self._before is not None
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
    """

    def __init__(self, trainer: ZOTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # A run that died after its last checkpoint has no step left to make.
        if state.global_step >= state.max_steps:
            self._trainer.finish(self._trainer.space.checksum())

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if control.should_training_stop:
            self._trainer.finish(self._trainer.space.checksum())

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Another callback may stop the training after the end of an epoch.
        self._trainer.finish(None)
