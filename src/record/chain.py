"""Append-only files of JSON lines in which every line is chained to the one before by SHA-256.

An edited, dropped, repeated or moved line is found when the file is read. A line is on disk before `append`
returns. A process that dies while it writes leaves an incomplete last line, which is told apart from damage and
completed when the run goes on. The public transcript and the private ledger are both such files.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from src.utils import UserError

Record = dict[str, Any]


class RecordError(UserError):
    """A file of records is damaged, or belongs to something else."""


@dataclass(frozen=True)
class RecordFile:
    """What a file of records holds.

    Attributes:
        path: of the file.
        records: the complete lines, without their chain.
        chains: their chain values; each is a digest of the file up to and including its line.
        tail: the bytes of an incomplete last line, empty where there is none.
    """

    path: Path
    records: list[Record]
    chains: list[str]
    tail: bytes


class RecordWriter:
    """Creates a file of records, and locks it while it is open.

    Args:
        path: must not exist; its folder is made.
        first: the first line.
        mode: permission bits of the file.

    Raises:
        UserError: `path` exists, or cannot be written.
    """

    def __init__(self, path: Path, first: Record, *, mode: int = 0o644) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, mode)
        except FileExistsError as error:
            raise UserError(f"{path} holds another run; choose another output folder") from error
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from error
        sync_folder(path.parent)
        self._begin(path, descriptor, "", b"")
        try:
            self.append(first)
        except BaseException:
            self.close()
            raise

    @classmethod
    def resume(cls, content: RecordFile) -> RecordWriter:
        """Goes on after the last complete line of a file that was read; an incomplete one is completed."""
        writer = cls.__new__(cls)
        try:
            descriptor = os.open(content.path, os.O_WRONLY | os.O_APPEND)
        except OSError as error:
            raise UserError(f"cannot write {content.path}: {error.strerror}") from error
        writer._begin(content.path, descriptor, content.chains[-1] if content.chains else "", content.tail)
        return writer

    def _begin(self, path: Path, descriptor: int, chain: str, tail: bytes) -> None:
        self._path, self._chain, self._tail = path, chain, tail
        self._descriptor: int | None = descriptor
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.close()
            raise UserError(f"another process is writing {path}; wait until it has ended") from error

    @property
    def chain(self) -> str:
        """The last line's chain: a digest of the whole file."""
        return self._chain

    def append(self, content: Record) -> None:
        chain = link(self._chain, content)
        line = (_canonical({**content, "chain": chain}) + "\n").encode()
        if not line.startswith(self._tail):
            raise RecordError(
                f"{self._path}: the incomplete last line is not the start of the line that belongs there"
            )
        assert self._descriptor is not None
        try:
            rest = line[len(self._tail) :]
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
            os.fsync(self._descriptor)
        except OSError as error:
            raise UserError(f"cannot write {self._path}: {error.strerror}; the run can be resumed") from error
        self._chain, self._tail = chain, b""

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def load_records(path: str | Path) -> RecordFile:
    """All of a file; raises `RecordError` with the line where the chain does not hold."""
    path = Path(path)
    try:
        *lines, tail = path.read_bytes().split(b"\n")
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror}") from error
    chain = ""
    records, chains = [], []
    for number, line in enumerate(lines, start=1):
        try:
            content = json.loads(line.decode("utf-8"))
            stated = content.pop("chain")
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise RecordError(f"{path} line {number} is not a record") from error
        chain = link(chain, content)
        if stated != chain or line != _canonical({**content, "chain": chain}).encode():
            raise RecordError(f"{path} line {number} does not follow from the lines before it")
        records.append(content)
        chains.append(chain)
    return RecordFile(path, records, chains, tail)


def read_records(path: str | Path) -> list[Record]:
    """All lines, without their chain; raises `RecordError` also for an incomplete last line."""
    content = load_records(path)
    if content.tail:
        raise RecordError(f"{path}: the last line is incomplete; the run was stopped while it wrote it")
    if not content.records:
        raise RecordError(f"{path} is empty")
    return content.records


def link(chain: str, content: Record) -> str:
    """The chain value of a line with `content` after a line whose chain value is `chain`."""
    return hashlib.sha256((chain + _canonical(content)).encode()).hexdigest()


def sync_folder(folder: Path) -> None:
    """Make names created or replaced in `folder` survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _canonical(content: Record) -> str:
    try:
        return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except ValueError as error:
        # The values are not shown: the record may be a line of the private ledger.
        raise RecordError(f"a record holds a number that is not finite: {', '.join(content)}") from error
