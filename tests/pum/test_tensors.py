"""Files of tensors: the library reads what is written here and the reverse; damage is found; nothing is mapped."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pum.tensors import Kind, TensorFile, file_digest, layout_of, write_tensors
from src.utils import UserError


def state() -> dict[str, Tensor]:
    gen = torch.Generator().manual_seed(0)
    return {
        "b": torch.randn(3, 4, generator=gen),
        "a": torch.randn(5, generator=gen).double(),
        "half": torch.randn(2, 2, 2, generator=gen).bfloat16(),
        "h": torch.randn(7, generator=gen).half(),
        "one": torch.tensor(1.5),
        "none": torch.zeros(0, 3),
    }


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    path, tensors = tmp_path / "x.safetensors", state()
    digest = write_tensors(path, layout_of(tensors.items()), iter(tensors.items()))
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest() == file_digest(path)
    found = load_file(path)
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in tensors.items()
    )
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.safetensors"]


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    tensors = state()
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    found = TensorFile(tmp_path / "x.safetensors")
    assert set(found) == set(tensors)
    assert len(found) == len(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor)
        assert found.layout[name] == Kind(tensor.shape, tensor.dtype)
    found["b"].zero_()
    assert torch.equal(found["b"], tensors["b"])


def header_and_data(path: Path) -> tuple[dict[str, object], bytes]:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def rebuilt(header: object, data: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(4), "b": torch.ones(2, 3)}, path)
    header, data = header_and_data(path)
    whole = path.read_bytes()

    def with_a(**changes: object) -> bytes:
        return rebuilt({**header, "a": {**header["a"], **changes}}, data)  # type: ignore[dict-item]

    cases = {
        "empty": b"",
        "short": whole[:7],
        "cut": whole[:-1],
        "longer": whole + b"\0",
        "giant header": (2**63).to_bytes(8, "little") + whole[8:],
        "no header": rebuilt(b"[]", data),
        "text": rebuilt(b"{", data),
        "not text": rebuilt(b"\xff\xfe", data),
        "deep": rebuilt(b'{"a":' * 100_000, data),
        "twice": rebuilt(
            json.dumps(header)[:-1].encode() + b', "a": ' + json.dumps(header["a"]).encode() + b"}", data
        ),
        "gap": with_a(data_offsets=[1, 17]),
        "overlap": with_a(data_offsets=[0, 12], shape=[3]),
        "negative": with_a(data_offsets=[-16, 0]),
        "backwards": with_a(data_offsets=[16, 0]),
        "shape": with_a(shape=[5]),
        "negative shape": with_a(shape=[-2, -2]),
        "product overflows": with_a(shape=[2**32, 2**32, 4]),
        "shape of fractions": with_a(shape=[4.0]),
        "truth for a number": with_a(shape=[4, True]),
        "integers": with_a(dtype="I32"),
        "unknown": with_a(dtype="F8_E4M3"),
        "no dtype": rebuilt({**header, "a": {"shape": [4]}}, data),
        "no object": rebuilt({**header, "a": 3}, data),
    }
    for name, content in cases.items():
        path.write_bytes(content)
        with pytest.raises(UserError, match="is no readable safetensors file") as caught:
            TensorFile(path)
        assert "\n" not in str(caught.value), name
    for number in range(60):  # random bytes of the header
        rng = random.Random(number)
        changed = bytearray(whole)
        place = rng.randrange(len(whole) - len(data))
        changed[place] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        try:
            found = TensorFile(path)
        except UserError:
            continue
        assert sum(kind.shape.numel() * kind.dtype.itemsize for kind in found.layout.values()) == len(data)


def test_a_file_that_is_shortened_under_its_reader_is_an_error_and_no_signal(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(100_000)}, path)
    found = TensorFile(path)
    os.truncate(path, 5000)
    with pytest.raises(UserError, match="became shorter"):
        found["a"]


def test_pipes_devices_and_folders_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("/dev/zero")
    for name in ("pipe", "folder", "link", "absent"):
        with pytest.raises(UserError):
            TensorFile(tmp_path / name)
        with pytest.raises(UserError, match="cannot read"):
            file_digest(tmp_path / name)


def test_a_failed_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path, tensors = tmp_path / "x.safetensors", state()
    write_tensors(path, layout_of(tensors.items()), tensors.items())
    before = path.read_bytes()

    def broken() -> Iterator[tuple[str, Tensor]]:
        yield "b", tensors["b"]
        raise UserError("no more")

    with pytest.raises(UserError, match="no more"):
        write_tensors(path, layout_of(tensors.items()), broken())
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.safetensors"]
    with pytest.raises(UserError, match="cannot write"):
        write_tensors(tmp_path / "no" / "x", {}, [])


def test_two_writers_of_one_file(tmp_path: Path) -> None:
    path, tensors = tmp_path / "x.safetensors", {"a": torch.ones(3)}
    holder = os.open(tmp_path / "x.safetensors.partial", os.O_CREAT | os.O_WRONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="another process is writing"):
        write_tensors(path, layout_of(tensors.items()), tensors.items())
    os.close(holder)
    write_tensors(path, layout_of(tensors.items()), tensors.items())
    assert torch.equal(load_file(path)["a"], tensors["a"])
