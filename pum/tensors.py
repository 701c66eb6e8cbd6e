"""Safetensors files, read and written one tensor at a time.

The library's reader maps a file into memory, where whoever can shorten the file can end the process that reads
it, and its writer wants all tensors at once. What crosses between two parties is read here with plain reads, and a
file as large as a model passes through the memory of its largest tensor. The format (8 bytes of length, a JSON
header, the data without gaps) is the library's: either reads what the other wrote.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import math
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from io import FileIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

from src.record.chain import sync_folder
from src.utils import UserError

LARGEST_HEADER = 100_000_000  # bytes; the library's own limit
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
CODES = {dtype: code for code, dtype in DTYPES.items()}


class Kind(NamedTuple):
    """What is known of a tensor before its values."""

    shape: torch.Size
    dtype: torch.dtype


Layout = Mapping[str, Kind]


def layout_of(tensors: Iterable[tuple[str, Tensor]], dtype: torch.dtype | None = None) -> dict[str, Kind]:
    """Shape and dtype (or `dtype`) by name, in order: of `named_parameters()`, say."""
    return {name: Kind(tensor.shape, dtype or tensor.dtype) for name, tensor in tensors}


class TensorFile(Mapping[str, Tensor]):
    """The tensors of a file; each is read when it is asked for, into memory of its own.

    Raises:
        UserError: the file cannot be read, or is not what the format demands: every byte belongs to one tensor.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # The descriptor stays, so that all tensors are of one file even where its name is given to another.
            self._file = open_plain(path)
            self.layout, self._places = _read_header(self._file)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise UserError(f"{path} is no readable safetensors file: {reason}") from error

    def __getitem__(self, name: str) -> Tensor:
        kind = self.layout[name]
        tensor = torch.empty(kind.shape, dtype=kind.dtype)
        if tensor.numel():
            self._file.seek(self._places[name])
            view = memoryview(_bytes(tensor))
            while view:
                count = self._file.readinto(view)
                if not count:
                    raise UserError(f"{self.path} became shorter while it was read")
                view = view[count:]
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.layout)

    def __len__(self) -> int:
        return len(self.layout)

    def __contains__(self, name: object) -> bool:
        return name in self.layout


def write_tensors(path: Path, layout: Layout, tensors: Iterable[tuple[str, Tensor]], *, mode: int = 0o644) -> str:
    """Write a file from tensors that come one by one, in the layout's order; its SHA-256.

    `path` holds either its old content or all of the new, which is on disk before this returns.

    Raises:
        UserError: the file cannot be written, or another process is writing it.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT, mode), "wb") as file:
            _lock(file, partial)
            try:
                file.truncate()
                digest = hashlib.sha256()
                for piece in _pieces(layout, tensors):
                    file.write(piece)
                    digest.update(piece)
                file.flush()
                os.fsync(file.fileno())
                partial.replace(path)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
        sync_folder(path.parent)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    return digest.hexdigest()


def _lock(file: BinaryIO, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine = os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except (BlockingIOError, FileNotFoundError):
        mine = False
    if not mine:  # or the writer before has just given the file its name
        raise UserError(f"another process is writing {path.stem}; wait until it has ended")


def open_plain(path: Path) -> FileIO:
    """An ordinary file for reading; a pipe or a device in its place raises OSError, and nobody waits for it."""
    file = FileIO(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not an ordinary file")
    return file


def file_digest(path: Path) -> str:
    """SHA-256 of a file in hexadecimal; raises `UserError` where it cannot be read."""
    try:
        with open_plain(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def _pieces(layout: Layout, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[bytes | memoryview]:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, kind in layout.items():
        begin, end = end, end + math.prod(kind.shape) * kind.dtype.itemsize
        header[name] = {"dtype": CODES[kind.dtype], "shape": list(kind.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for (name, kind), (given, tensor) in zip(layout.items(), tensors, strict=True):
        assert (name, kind) == (given, Kind(tensor.shape, tensor.dtype)), f"{given} is not what follows"
        if tensor.numel():
            yield memoryview(_bytes(tensor.detach().cpu().contiguous()))


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _read_header(file: FileIO) -> tuple[dict[str, Kind], dict[str, int]]:
    """Layout and each tensor's place in the file; raises ValueError, KeyError or TypeError for a bad header."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(LARGEST_HEADER, size - 8):
        raise ValueError("its header's length is impossible")
    header = json.loads(file.read(length).decode("utf-8"), object_pairs_hook=_without_repeats)
    header.pop("__metadata__", None)
    layout, places, ends = {}, {}, [0]
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        (begin, end), shape = entry["data_offsets"], entry["shape"]
        if not all(type(number) is int and 0 <= number <= size for number in (begin, end, *shape)):
            raise ValueError(f"the header's numbers of {name[:80]} are none")
        kind = Kind(torch.Size(shape), DTYPES[entry["dtype"]])
        if begin != ends[-1] or end - begin != math.prod(shape) * kind.dtype.itemsize:
            raise ValueError(f"{name[:80]} is not where its header puts it")
        layout[name], places[name] = kind, 8 + length + begin
        ends.append(end)
    if 8 + length + ends[-1] != size:
        raise ValueError("its size is not that of its tensors")
    return layout, places


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice")
    return found
