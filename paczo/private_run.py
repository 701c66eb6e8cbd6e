"""`PrivateRun`: what every trainer with a private record does alike, whatever its mechanism."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from paczo.ledger import Ledger, LedgerContent, check_facts, read_ledger
from paczo.publishing import public_folder, write_card
from paczo.randomness import SecretRandom
from src.engine.processes import on_first
from src.objectives import Objective
from src.record.chain import Record, RecordError, link
from src.transcript import Transcript, check_same, load
from src.zo.arguments import ZOArguments
from src.zo.directions import StepRecord
from src.zo.trainer import ZOTrainer


class PrivateRun(ZOTrainer):
    """A `ZOTrainer` that writes a private ledger before the transcript, and resumes from both, bit for bit.

    A subclass's `release` calls `note` with what it releases, and draws from `_random` alone. The ledger holds the
    key of that stream, a digest of the data, and what the subclass adds (`private_facts`, `note`,
    `closing_facts`); `repeat` reads it back. `output_dir/private/` stays with the data's owner.

    Args:
        secret_seed: None draws the key from the operating system; a seed is for experiments, and not private.
    """

    mechanism_name: str

    def __init__(
        self,
        model: PreTrainedModel | nn.Module,
        args: ZOArguments,
        train_dataset: Objective,
        eval_dataset: Objective | None = None,
        *,
        secret_seed: int | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, args, train_dataset, eval_dataset, **kwargs)
        self._random = SecretRandom.of_run(secret_seed, on_first)
        self._ledger: Ledger | None = None
        self._past_ledger: LedgerContent | None = None
        self._noted = 0  # steps in the ledger

    def private_facts(self) -> Record:
        """What the ledger's first line says besides key and data; it follows from `_random` and settings."""
        return {}

    def rekeyed(self, past: LedgerContent) -> None:
        """Called when `_random` has become the stream of the run to resume: draw from it again what was drawn."""

    def repeat(self, line: Record, path: Path) -> None:
        """Brings the mechanism's state behind a recorded step; `RecordError` where the line cannot be."""

    def closing_facts(self) -> Record:
        """What the ledger's closing line says besides the number of steps."""
        return {}

    @property
    def closed(self) -> bool:
        """Whether the run to resume had ended: nothing more may be released."""
        return self._past_ledger is not None and self._past_ledger.ended

    def note(self, step: int, coefficients: tuple[float, ...], facts: Record | None = None) -> None:
        """Puts a step into the ledger, before it is published: from now on it is never made again.

        Raises:
            RecordError: it is not the next step: its secrets may have been used already.
        """
        assert self._ledger is not None
        if step != self._noted:
            raise RecordError(f"step {step} is released where step {self._noted} belongs")
        self._noted += 1
        self._ledger.append({"step": step, "coefficients": list(coefficients), **(facts or {})})

    def public_header(self) -> dict[str, Any]:
        # Ties the transcript to its ledger. A pseudorandom function of the secret key, so it tells nothing of it.
        run_id = self._random.uniform_index("run id", 0, 1 << 64)
        return {
            **super().public_header(),
            "mechanism": self.mechanism_name,
            "secrets": self._random.label,
            "run_id": f"{run_id:016x}",
        }

    def card(self) -> str:
        """The model card: what holds of the model in the folder."""
        raise NotImplementedError

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        self._write_card(self.args.output_dir if output_dir is None else output_dir)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The run's own card in the place of the library's draft."""
        self._write_card(self.args.output_dir)

    def _write_card(self, folder: str | Path | None) -> None:
        if self.args.should_save:  # one of several processes saves
            write_card(str(folder), self.card())

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """As the base's, from a folder without the private files."""
        if self.hub_model_id is None:
            self.init_hf_repo(**{name: kwargs[name] for name in ("token", "private") if name in kwargs})
        kwargs.setdefault("model_name", self.run_dir.name)
        with public_folder(self.args, self.run_dir):
            return super().push_to_hub(*args, **kwargs)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        with public_folder(self.args, self.run_dir):
            super()._push_from_checkpoint(checkpoint_folder)

    def start_records(self, head: Record) -> None:
        """The ledger begins before the transcript, whose header it names."""
        if self._past_ledger is None:
            first = {"key": self._random.export_key().hex(), "transcript": link("", head)}
            self._ledger = Ledger(self.run_dir / "private", {**first, **self._facts_to_check()})
        elif self._past_ledger.first["transcript"] != link("", head):
            raise RecordError(f"{self._past_ledger.content.path} is of a run with other settings or another model")
        super().start_records(head)
        self._seal()

    def load_records(self) -> Transcript | None:
        """Reads ledger and transcript, and brings the key and the mechanism's state back."""
        path = self.run_dir / "transcript.jsonl"
        begun = path.exists() and b"\n" in path.read_bytes()
        transcript = load(path) if begun else None
        ledger = read_ledger(self.run_dir / "private", None if transcript is None else transcript.content)
        if path.exists() and not begun:
            path.unlink()  # a header that was not written to its end: nothing was released yet
        own_key = self._random.export_key().hex() if self._random.reproducible else ledger.first["key"]
        check_facts(ledger.first, {"secrets": self._random.label, "key": own_key}, ledger.content.path)
        self._random = SecretRandom(bytes.fromhex(own_key), reproducible=self._random.reproducible)
        self.rekeyed(ledger)
        check_facts(ledger.first, self._facts_to_check(), ledger.content.path)
        if transcript is not None:
            check_same(transcript, {**transcript.head, "public": self.public_header()})
        for line in ledger.steps:
            self.repeat(line, ledger.content.path)
        self._past_ledger, self._noted = ledger, len(ledger.steps)
        self._ledger = Ledger.resume(ledger)
        return transcript

    def _facts_to_check(self) -> Record:
        return {"secrets": self._random.label, "data": self.data_fingerprint, **self.private_facts()}

    def unpublished(self, step: int) -> tuple[float, ...] | None:
        """A step that is in the ledger is never made again: its noise is spent."""
        if self._past_ledger is None or step >= len(self._past_ledger.steps):
            return None
        return tuple(self._past_ledger.steps[step]["coefficients"])

    def publish(self, record: StepRecord) -> None:
        super().publish(record)
        self._seal()

    def end_records(self, trainable_checksum: str | None) -> None:
        assert self._ledger is not None
        assert self.transcript is not None
        if not self.closed:
            self._ledger.append({"end": self.transcript.num_steps, **self.closing_facts()})
        super().end_records(trainable_checksum)
        self._seal()

    def close_records(self) -> None:
        super().close_records()
        if self._ledger is not None:
            self._ledger.close()

    def _seal(self) -> None:
        assert self._ledger is not None
        assert self.transcript is not None
        self._ledger.seal(self.transcript.chain)
