"""The private record of a run: the secret, its randomness, and what each step did with them. Never publish it.

`private/ledger.jsonl` is append-only and chained like the transcript. Its first line holds the secret index, the
key of the secret random stream, the membership, and what earlier runs on the same secret have left; each further
line one step's signs, noise and charges. That determines the mechanism's state, so a resumed run recomputes
posterior and spent nats by making the recorded releases again, and compares every number.

A step is written in this order: ledger line, transcript line, `private/head.json`, parameters. Each is on disk
before the next. The head names the length and the chain of both files, so that a file cut at a line's end, or both
set back to an older state, is told from a process that died between two writes.
"""

from __future__ import annotations

import base64
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from src.record.chain import Record, RecordError, RecordFile, RecordWriter, load_records, sync_folder
from src.utils import UserError

FORMAT = 2


@dataclass(frozen=True)
class LedgerContent:
    """A ledger as read and compared with the transcript.

    Attributes:
        first: the facts of the run.
        steps: one line a step; there may be one more than the transcript has.
        ended: whether the closing line is there.
        content: the file behind it.
        transcript_chain: of the transcript, where it has as many lines as the ledger, else None.
    """

    first: Record
    steps: list[Record]
    ended: bool
    content: RecordFile
    transcript_chain: str | None


class Ledger:
    """Writes `private/ledger.jsonl` and `private/head.json` (mode 0600) in a folder of mode 0700.

    What is in it depends on the secret subset beyond what the transcript says, so it stays with whoever holds
    the data.

    Args:
        folder: made if missing.
        first: the facts of the run: secret, its randomness, membership.

    Raises:
        UserError: the folder already holds a ledger.
    """

    def __init__(self, folder: Path, first: Record) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.chmod(0o700)
        except OSError as error:
            raise UserError(f"cannot use {folder}: {error.strerror}") from error
        self._folder, self._lines = folder, 1
        self._writer = RecordWriter(folder / "ledger.jsonl", {"format": FORMAT, **first}, mode=0o600)

    @classmethod
    def resume(cls, content: LedgerContent) -> Ledger:
        """Goes on after the last complete line.

        The head is written first where both files are ahead of it: after one more death they would be two lines
        ahead.
        """
        ledger = cls.__new__(cls)
        ledger._folder, ledger._lines = content.content.path.parent, len(content.content.records)
        ledger._writer = RecordWriter.resume(content.content)
        try:
            if content.transcript_chain is not None:
                ledger.seal(content.transcript_chain)
        except BaseException:
            ledger.close()
            raise
        return ledger

    def append(self, line: Record) -> None:
        self._writer.append(line)
        self._lines += 1

    def seal(self, transcript_chain: str) -> None:
        """Note in the head that ledger and transcript now have equally many lines, ending in these chains."""
        head = {"lines": self._lines, "ledger": self._writer.chain, "transcript": transcript_chain}
        write_private(self._folder / "head.json", json.dumps(head))

    def close(self) -> None:
        self._writer.close()


def write_private(path: Path, text: str) -> None:
    """Replace `path` by a file of mode 0600 that holds `text`, in one move; it is on disk afterwards."""
    partial = path.with_name(path.name + ".partial")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; the run can be resumed") from error


def check_facts(first: Record, expected: Record, path: Path) -> None:
    """Raises `RecordError` naming what a ledger's first line states otherwise than `expected`."""
    for name, value in expected.items():
        if first.get(name) != value:
            raise RecordError(f"{path} is of another run: its {name} differ(s) from this one's")


def read_ledger(folder: Path, transcript: RecordFile | None) -> LedgerContent:
    """The ledger of a run whose transcript is `transcript` (None: not begun), both compared with the head.

    Raises:
        RecordError: a file is damaged, was cut or set back, or the two are of different runs.
    """
    content = load_records(folder / "ledger.jsonl")
    path = content.path
    if not content.records:
        raise RecordError(f"{path} has no complete line: the run released nothing; start it anew")
    _check_lengths(content, transcript, _read_head(folder))
    first, *steps = content.records
    if first.get("format") != FORMAT:
        raise RecordError(f"{path} is no ledger of format {FORMAT}")
    ended = bool(steps) and "end" in steps[-1]
    if transcript is not None and transcript.records:
        if first["transcript"] != transcript.chains[0]:
            raise RecordError(f"{path} and {transcript.path} are of different runs")
        for number, (mine, public) in enumerate(zip(steps, transcript.records[1:], strict=False)):
            if _published(mine) != _published(public):
                raise RecordError(f"{path} and {transcript.path} differ in step {number}")
    if ended:
        steps.pop()
    level = transcript is not None and len(transcript.records) == len(content.records)
    return LedgerContent(first, steps, ended, content, transcript.chains[-1] if transcript and level else None)


def _published(line: Record) -> tuple[Any, Any]:
    """What a line of the ledger and the transcript's line of the same number both say."""
    return (line["end"], None) if "end" in line else (line["step"], line["coefficients"])


def _read_head(folder: Path) -> Record:
    """The head, or one that says that nothing is complete where there is none: a run that died at its start."""
    path = folder / "head.json"
    try:
        head = json.loads(path.read_text(encoding="utf-8"))
        return {"lines": int(head["lines"]), "ledger": str(head["ledger"]), "transcript": str(head["transcript"])}
    except FileNotFoundError:
        return {"lines": 0, "ledger": "", "transcript": ""}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecordError(f"{path} is damaged") from error


def _check_lengths(ledger: RecordFile, transcript: RecordFile | None, head: Record) -> None:
    """Only the states that a dying process can leave: both files as in the head, or one line further.

    The transcript never has a line that the ledger lacks, and only the line being written is incomplete.
    """
    lines = head["lines"]
    mine = len(ledger.records)
    public = 0 if transcript is None else len(transcript.records)
    allowed = (mine, public) in ((lines, lines), (lines + 1, lines), (lines + 1, lines + 1))
    if ledger.tail and (mine, public) != (lines, lines):
        allowed = False
    if transcript is not None and transcript.tail and (mine, public) != (lines + 1, lines):
        allowed = False
    if not allowed:
        raise RecordError(
            f"{ledger.path} has {mine} lines and the transcript {public}, but {lines} of each were complete:"
            " lines were removed or the files are of different moments"
        )
    if lines:
        for content, name in ((ledger, "ledger"), (transcript, "transcript")):
            if content is not None and content.chains[lines - 1] != head[name]:
                raise RecordError(f"{content.path} is not the file that this run has written")


def pack_signs(signs: NDArray[Any]) -> str:
    """M signs as hexadecimal digits, four a digit, +1 as a set bit."""
    return np.packbits(np.asarray(signs) > 0).tobytes().hex()


def unpack_signs(text: str, num_subsets: int) -> NDArray[np.float64]:
    """The inverse of `pack_signs`; `ValueError` for anything else."""
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8))[:num_subsets]
    return bits.astype(np.float64) * 2.0 - 1.0


def pack_membership(membership: NDArray[np.bool_]) -> str:
    """A bool (N, M) matrix as text."""
    return base64.b64encode(np.packbits(membership).tobytes()).decode()
