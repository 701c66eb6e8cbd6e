"""The server's private folder: its key, its files of tensors, and the chain of what was done with them.

    key            32 bytes of operating-system entropy; not there where the run has a seed
    chain.jsonl    what was done, each line chained to the one before by SHA-256; holds the digest of every file
    ...            files of tensors, and what else was there at the beginning

A step writes its files under new names, and then one line: the line is what counts. Whatever a process that was
killed has left beyond the last line is written again by the next one. Both parts of it are functions of what was
there before, so they come out the same.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from torch import Tensor

from pum.noise import KEY_BYTES, SecretSource
from pum.tensors import Layout, TensorFile, file_digest, write_tensors
from src.record.chain import Record, RecordWriter, load_records, sync_folder
from src.utils import UserError

CHAIN, KEY = "chain.jsonl", "key"


class PrivateFolder:
    """An open private folder, made by `create` or `open`; locked while it is open, unless opened to be read."""

    def __init__(
        self, path: Path, records: list[Record], secrets: SecretSource, writer: RecordWriter | None
    ) -> None:
        self.path, self.records, self.secrets, self._writer = path, records, secrets, writer

    @classmethod
    def create(
        cls,
        path: Path,
        first: Record,
        secrets: SecretSource,
        fill: Callable[[Path], Mapping[str, str]] = lambda path: {},
    ) -> PrivateFolder:
        """Begin: make the folder (mode 0700), write the key, let `fill` write files, and the first line.

        Args:
            path: absent, empty, or left by a process that was killed before the first line.
            first: what the first line holds, beside the digests of the key and of the files.
            fill: writes files into the folder and returns their digests.
        """
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_mode(path)
            if begun(path):  # by another process, since it was looked at
                raise UserError(f"{path} holds a run already")
            _clear(path)
            if secrets.key is not None:
                _write_key(path / KEY, secrets.key)
        except OSError as error:
            raise UserError(f"cannot use {path}: {error.strerror}") from error
        content = {**first, "key": _key_digest(secrets), "secret_seed": secrets.seed, "files": dict(fill(path))}
        writer = RecordWriter(path / CHAIN, content, mode=0o600)
        return cls(path, [content], secrets, writer)

    @classmethod
    def open(cls, path: Path, *, to_read: bool = False) -> PrivateFolder:
        """Raises `UserError` where nothing was begun, the chain does not hold, or the key is not the chain's."""
        if not begun(path):
            raise UserError(f"{path} holds no state of a run")
        _check_mode(path)
        content = load_records(path / CHAIN)
        writer = None if to_read else RecordWriter.resume(content)
        try:
            first = content.records[0]
            if not first.keys() >= {"key", "secret_seed", "files"}:
                raise UserError(f"{path} holds another kind of run")
            seed = first["secret_seed"]
            secrets = SecretSource(_read_key(path / KEY) if seed is None else seed)
            if _key_digest(secrets) != first["key"]:
                raise UserError(f"{path / KEY} is not the key that the run began with")
        except BaseException:
            if writer is not None:
                writer.close()
            raise
        return cls(path, list(content.records), secrets, writer)

    def append(self, record: Record) -> None:
        assert self._writer is not None, "opened to be read"
        self._writer.append(record)
        self.records.append(record)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    @property
    def files(self) -> dict[str, str]:
        """Digest of each file that a line names."""
        return {name: digest for record in self.records for name, digest in record.get("files", {}).items()}

    def check(self, name: str) -> Path:
        """The path of a file that a line names; raises `UserError` where the file is not what the line says."""
        if file_digest(self.path / name) != self.files[name]:
            raise UserError(f"{self.path / name} is not what the chain says: it was changed")
        return self.path / name

    def tensors(self, name: str) -> TensorFile:
        """A file of tensors, checked."""
        return TensorFile(self.check(name))

    def write(self, name: str, layout: Layout, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
        """Write a file for the next line; what the line holds of it."""
        return {name: write_tensors(self.path / name, layout, tensors, mode=0o600)}

    def drop(self, *names: str) -> None:
        """Delete files that no later step reads."""
        for name in names:
            (self.path / name).unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete all of it: the secrets of a run that has ended."""
        self.close()
        remove(self.path)


def remove(path: Path) -> None:
    """Delete a private folder. Its chain goes last: as long as that is there, the folder can be told."""
    for entry in path.iterdir():
        if entry.name != CHAIN:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    (path / CHAIN).unlink(missing_ok=True)
    path.rmdir()


def begun(path: Path) -> bool:
    """Whether a folder holds a chain with a whole first line."""
    chain = path / CHAIN
    try:
        with chain.open("rb") as file:
            return file.readline().endswith(b"\n")
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UserError(f"cannot read {chain}: {error.strerror}") from error


def round_files(index: int) -> tuple[str, str]:
    """Names of theta and of the clipping reference before round `index`."""
    return f"theta{index}.safetensors", f"reference{index}.safetensors"


def _clear(path: Path) -> None:
    """Remove what a beginning that was cut off has left; a folder with anything else is refused."""
    ours = {CHAIN, KEY, "model", *round_files(0)}
    for entry in path.iterdir():
        if entry.name.removesuffix(".partial") not in ours:
            raise UserError(f"{path} holds {entry.name}, which no run has left there; choose another folder")
    for entry in list(path.iterdir()):
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _check_mode(path: Path) -> None:
    if path.stat().st_mode & 0o077:
        raise UserError(f"{path} can be read by others; chmod 700 it")


def _key_digest(secrets: SecretSource) -> str | None:
    return None if secrets.key is None else hashlib.sha256(secrets.key).hexdigest()


def _write_key(path: Path, key: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(descriptor, key)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    sync_folder(path.parent)


def _read_key(path: Path) -> bytes:
    try:
        key = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if len(key) != KEY_BYTES:
        raise UserError(f"{path} is no key: it has {len(key)} bytes, not {KEY_BYTES}")
    return key
