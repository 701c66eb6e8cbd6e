"""`RecordedTrainer`: a `Trainer` whose run is a transcript on disk, from which it can go on exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, Trainer

from src.engine.objective import Objective
from src.engine.processes import check_equal, is_first, on_first
from src.record.chain import Record, RecordError
from src.record.checkpoints import Checkpoint, check_weights, choose_checkpoint, load_parameters
from src.record.fingerprint import data_fingerprint, frozen_checksum
from src.record.steps import StepRecord, Transcript, TranscriptWriter, check_same, load
from src.utils import UserError
from src.zo.arguments import ZOArguments, recorded_settings
from src.zo.callbacks import EndOfRecords, FirstStepGuard
from src.zo.directions import ParameterSpace
from src.zo.optimizer import ZOOptimizer
from src.zo.replay import header


class RecordedTrainer(Trainer):
    """A `Trainer` whose parameters change by published records only, and whose run can be resumed from them.

    It differs from the base in its optimizer (which applies records) and in `train`, which opens or reads the
    records. How a step's record comes about is a subclass's business, see `ZOTrainer`. The run's folder is
    `args.output_dir`, with `transcript.jsonl` and `checkpoints/` in it.

    To resume, make the trainer as for a new run, with the base model, and call
    `train(resume_from_checkpoint=True)`. The steps up to the latest complete checkpoint are applied from the
    transcript and compared with it; the trainer's own state comes from it. The recorded steps after it (all of
    them where there is no checkpoint) pass through the library's loop without a forward pass, so that
    schedule, evaluations, checkpoints and callbacks are those of the uninterrupted run.

    The methods that keep records run in the first process only: `load_records`, `start_records`, `publish`,
    `end_records`, `close_records`, `unpublished`, `recorded_loss`.
    """

    args: ZOArguments
    model: nn.Module
    train_dataset: Objective

    def __init__(
        self,
        model: PreTrainedModel | nn.Module,
        args: ZOArguments,
        train_dataset: Objective,
        eval_dataset: Objective | None = None,
        *,
        public: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, args, train_dataset=train_dataset, eval_dataset=eval_dataset, **kwargs)
        self.public = dict(public or {})
        self.transcript: TranscriptWriter | None = None
        self.data_fingerprint = data_fingerprint(train_dataset)
        self._past: Transcript | None = None
        self._past_checkpoint: Checkpoint | None = None
        self._resuming = self._started = self._ended = False
        self.add_callback(FirstStepGuard(self._checksums, self._is_effective))
        self.add_callback(EndOfRecords(self._finish))

    @property
    def run_dir(self) -> Path:
        return Path(str(self.args.output_dir))

    def public_header(self) -> dict[str, Any]:
        """What the transcript's header says besides the parameters; a run goes on only where it is the same."""
        return {**recorded_settings(self.args), **self.public}

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As the base's; once for each trainer.

        Args:
            resume_from_checkpoint: True goes on from the latest complete checkpoint, or from the transcript
                alone where there is none; a path goes on from that one. None takes the arguments' value.

        Raises:
            UserError: there is no run to resume, it is damaged, or it had other settings, data or base model.
        """
        if self._started:
            raise UserError("this trainer has trained already; make a new one, with the base model")
        self._started = True
        wanted = self.args.resume_from_checkpoint if resume_from_checkpoint is None else resume_from_checkpoint
        try:
            return super().train(self._prepare_to_resume(wanted), *args, **kwargs)
        finally:
            if is_first():
                self.close_records()

    def _prepare_to_resume(self, wanted: str | bool | None) -> str | None:
        """Reads and checks what is there; returns the checkpoint's path for the base class."""
        text = str(wanted)
        if text in ("None", "False", "false", ""):
            return None
        if self.args.zo_inplace:
            raise UserError("a run with zo_inplace cannot be resumed: its rounding is not in the transcript")
        if self.optimizer is not None:
            raise UserError("resume with a new trainer over the base model")
        self._resuming = True
        self._past = on_first(self.load_records)
        steps = [] if self._past is None else self._past.steps
        found = choose_checkpoint(self.run_dir / "checkpoints", None if text in ("True", "true") else text)
        if found is not None and found.step > len(steps):
            raise RecordError(f"{found.path} is after {found.step} steps, but only {len(steps)} are recorded")
        self._past_checkpoint = found
        return None if found is None else str(found.path)

    def load_records(self) -> Transcript | None:
        """The records of the run to resume, checked; None where nothing but private state is there yet."""
        return load(self.run_dir / "transcript.jsonl")

    def start_records(self, head: Record) -> None:
        """Opens the files of a new run; `head` is the transcript's first line."""
        self.transcript = TranscriptWriter(self.run_dir / "transcript.jsonl", head)

    def publish(self, record: StepRecord) -> None:
        """Writes a step to the transcript, before the parameters change."""
        assert self.transcript is not None
        self.transcript.append(record)

    def end_records(self, trainable_checksum: str | None) -> None:
        """Writes the transcript's closing line."""
        assert self.transcript is not None
        self.transcript.end(trainable_checksum)

    def _finish(self, at_last_step: bool) -> None:
        """`end_records`, once, with the parameters' checksum where they are the last step's."""
        if not self._ended:
            trained = self.space.checksum() if at_last_step else None
            check_equal("trained parameters", str(trained))
            on_first(lambda: self.end_records(trained))
            self._ended = True

    @property
    def may_rest(self) -> bool:
        """Whether a sound step's coefficients may all be 0."""
        return False

    def _is_effective(self) -> bool:
        """Whether the queued step has to change something: not at rate 0, which a warm-up begins with."""
        return bool(self._get_learning_rate()) and not (self.may_rest and self.zo_optimizer.rests)

    def _checksums(self) -> tuple[str, str]:
        return self.space.checksum(), frozen_checksum(self.model)

    def close_records(self) -> None:
        """Closes the files."""
        if self.transcript is not None:
            self.transcript.close()

    def unpublished(self, step: int) -> tuple[float, ...] | None:
        """Coefficients that a run released before it died, without having published them."""
        return None

    def recorded_loss(self, step: int) -> float:
        """The logged loss of a step that is not made again; NaN, which the library's log skips, if unknown."""
        return float("nan")

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """The base's decay rule decides which parameters decay; the optimizer only applies records."""
        if self.optimizer is None:
            decayed = set(self.get_decay_parameter_names(self.model)) if self.args.weight_decay else set()
            trainable = {name for name, p in self.model.named_parameters() if p.requires_grad}
            self.space = ParameterSpace(
                self.model, self.args.weight_decay, decayed & trainable, self.args.zo_inplace
            )
            self.zo_optimizer = ZOOptimizer(self.space, lr=self.args.learning_rate)
            self.optimizer = self.zo_optimizer
            head = header(self.model, self.space, self.public_header())
            past = self._past
            if past is None:
                on_first(lambda: self.start_records(head))
            else:
                on_first(lambda: check_same(past, head))
                self._catch_up(past)
                on_first(lambda: self._reopen(past))
        return self.optimizer

    def _catch_up(self, past: Transcript) -> None:
        """Brings the parameters to the checkpoint's."""
        if self._past_checkpoint is not None:
            for record in past.steps[: self._past_checkpoint.step]:
                self.space.apply(record)
        self._ended = past.end is not None

    def _reopen(self, past: Transcript) -> None:
        """Opens the transcript behind its last line, if the parameters are the checkpoint's."""
        if self._past_checkpoint is not None:
            check_weights(self._past_checkpoint.path, self.space.parameters)
        self.transcript = TranscriptWriter.resume(past)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Parameters come from the transcript: see `_continue`."""

    def _load_best_model(self) -> None:
        """Gives what is trained the best checkpoint's values, whichever file its track has."""
        load_parameters(Path(str(self.state.best_model_checkpoint)), self.space.parameters)

    def check_new(self) -> None:
        """Raises `UserError` where no new run can begin; called before an old one's folder is emptied."""

    def _get_output_dir(self, trial: Any) -> str:
        """Checkpoints lie below the run's folder, beside the transcript."""
        return str(self.run_dir / "checkpoints")
