"""Several runs on one secret subset: what the earlier ones have said of S* is where the next one starts.

A run draws a fresh S* unless it continues another. Then S* stays, the posterior is carried over, and the budgets
add: I(S*; all releases of all runs) is at most their sum (chain rule; `paczo/proofs.md`). A finished run can be
continued once, by one run: two runs that both start from its posterior would each count less than was said.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paczo.ledger import check_facts, read_ledger, write_private
from paczo.pac_arguments import PACSettings
from paczo.randomness import SecretRandom
from paczo.run_mechanism import NonPrivate, make_mechanism, repeat, run_id
from src.record.chain import Record, RecordError, load_records
from src.record.steps import Transcript, load
from src.utils import UserError

_MARKER = "continued_by"


@dataclass(frozen=True)
class EarlierRuns:
    """What one or more finished runs on one secret have said of it. Private, but for `public_facts`.

    Attributes:
        secret: S*.
        log_posterior: (M,), after the last of them.
        runs: how many.
        budget_nats, spent_nats: of all of them together.
        from_bits: whether the posterior follows from public bits for whoever knows the data.
        last: the public name of the last one.
    """

    secret: int
    log_posterior: list[float]
    runs: int
    budget_nats: float
    spent_nats: float
    from_bits: bool
    last: str

    @classmethod
    def of_record(cls, record: Record | None) -> EarlierRuns | None:
        """As a ledger's first line keeps it (`asdict`)."""
        return None if record is None else cls(**record)

    def public_facts(self) -> dict[str, Any]:
        """For the transcript's header: that S* is an older run's, and what was spent on it before."""
        return {"run_id": self.last, "runs": self.runs, "budget_nats": self.budget_nats}


def secret_index(random: SecretRandom, num_subsets: int, earlier: EarlierRuns | None) -> int:
    """S*: the earlier runs', or a fresh one."""
    return random.uniform_index("secret", 0, num_subsets) if earlier is None else earlier.secret


def load_earlier(folder: Path, facts: Record, membership: NDArray[np.bool_], random: SecretRandom) -> EarlierRuns:
    """What the finished run with the private folder `folder`, and those it continued, leave of S*.

    All of its releases are made again from their signs and its key, and every number, the posterior at its end
    among them, must agree with ledger and transcript (`folder/../transcript.jsonl`).

    Args:
        folder: `private/` of the run to continue.
        facts: "secrets", "num_subsets", "membership" and "data" as the new run's ledger states them.
        membership: bool (N, M), of the new run.
        random: of the new run.

    Raises:
        UserError: the run has not ended, is of other data, membership or M, has no accounting, or shares its key.
        RecordError: its records are missing, damaged or do not give its posterior.
    """
    if not (folder / "ledger.jsonl").exists():
        raise UserError(f"{folder} holds no ledger.jsonl; --pac_continue_from wants private/ of a finished run")
    transcript = load(folder.parent / "transcript.jsonl")
    ledger = read_ledger(folder, transcript.content)
    path, first = ledger.content.path, ledger.first
    if not ledger.ended or transcript.end is None:
        raise UserError(f"the run in {folder} has not ended; resume it, then continue it")
    check_facts(first, facts, path)
    if first["key"] == random.export_key().hex():
        raise UserError("this run would draw the numbers of the run it continues; take another --pac_secret_seed")
    settings = _settings(transcript)
    if settings.no_privacy:
        raise UserError(f"the run in {folder} was not accounted: what it said of its subset is not known")
    before = EarlierRuns.of_record(first["earlier_runs"])
    own = SecretRandom(bytes.fromhex(first["key"]))
    secret = secret_index(own, settings.pac_m, before)
    if first["secret"] != secret:
        raise RecordError(f"{path} states a secret without the posterior that belongs to it")
    log_prior = None if before is None else before.log_posterior
    mechanism = make_mechanism(
        settings, transcript.head["public"]["max_steps"], secret, membership, own, log_prior
    )
    assert not isinstance(mechanism, NonPrivate)
    for line in ledger.steps:
        repeat(mechanism, line, path)
    if ledger.content.records[-1].get("posterior") != mechanism.posterior.tolist():
        raise RecordError(f"{path}: the posterior at its end is not the one that its releases give")
    return EarlierRuns(
        secret,
        mechanism.log_posterior.tolist(),
        1 + (before.runs if before else 0),
        (settings.pac_mi or 0.0) + (before.budget_nats if before else 0.0),
        mechanism.spent_nats + (before.spent_nats if before else 0.0),
        settings.tells_bits_only and (before is None or before.from_bits),
        run_id(own),
    )


def _settings(transcript: Transcript) -> PACSettings:
    public = transcript.head["public"]
    try:
        return PACSettings(**{entry.name: public[entry.name] for entry in fields(PACSettings)})
    except KeyError as error:
        raise RecordError(f"{transcript.path} does not state {error.args[0]}: it is of another version") from error


def check_free(folder: Path, run_dir: Path) -> None:
    """Raises `UserError` where the run of `folder` is the one in `run_dir`, or another than that continues it."""
    if folder.resolve().parent == run_dir.resolve():
        raise UserError("a run cannot continue itself; choose another --output_dir")
    if (folder / _MARKER).exists():
        _check_successor(folder, _public_name(run_dir))


def check_unclaimed(folder: Path) -> None:
    """Raises `UserError` where a run continues that of `folder` already: a new one would not be let do so."""
    if (folder / _MARKER).exists():
        _check_successor(folder, None)


def claim(folder: Path, name: str) -> None:
    """Notes in `folder` that the run called `name` continues its run; `UserError` where another one does."""
    marker, partial = folder / _MARKER, folder / f"{_MARKER}.{name}"
    write_private(partial, name + "\n")
    try:
        os.link(partial, marker)
    except FileExistsError:
        _check_successor(folder, name)
    finally:
        partial.unlink()


def _check_successor(folder: Path, name: str | None) -> None:
    taken = (folder / _MARKER).read_text("utf-8").strip()
    if taken != name:
        raise UserError(f"the run in {folder} was continued by run {taken} already; continue that one")


def _public_name(run_dir: Path) -> str | None:
    """Of the run whose ledger is in `run_dir`; None where there is none."""
    path = run_dir / "private" / "ledger.jsonl"
    lines = load_records(path).records if path.exists() else []
    return run_id(SecretRandom(bytes.fromhex(lines[0]["key"]))) if lines else None
