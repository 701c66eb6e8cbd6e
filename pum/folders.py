"""What crosses between server and client: folders with a manifest that any code can read and write.

    offer/round{r}/manifest.json, copy{k}/    an ordinary model folder for each copy k = 1..m
    reply/round{r}/manifest.json, copy{k}.safetensors

A manifest is a JSON object. Its entry "sha256" is the SHA-256 of the rest as JSON with sorted keys and without
spaces (`json.dumps(rest, sort_keys=True, separators=(",", ":"))`), and it holds the SHA-256 of every file beside
it, so that no byte of a folder changes unnoticed. It keeps nobody from writing a folder of his own.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pum.tensors import CODES, Layout, TensorFile, file_digest, open_plain
from src.record.chain import link, sync_folder
from src.utils import PRECISIONS, UserError, write_json

MANIFEST = "manifest.json"
WEIGHTS = "model.safetensors"
OFFER_FORMAT, REPLY_FORMAT = "pum-offer/1", "pum-reply/1"
LARGEST_MANIFEST = 10_000_000  # bytes
DIFFERENCE, LORA = "difference", "lora"
TASK = {
    "method": str,
    "local_epochs": (float, int, None),
    "local_max_steps": (int, None),
    "auto_balance": bool,
    "data_seed": int,
}

Manifest = dict[str, Any]


def copy_name(k: int) -> str:
    """Of copy k = 0..m-1, which folders count from 1."""
    return f"copy{k + 1}"


def round_name(index: int) -> str:
    return f"round{index + 1}"


@dataclass(frozen=True)
class Offer:
    """A round's published copies."""

    folder: Path
    manifest: Manifest

    @property
    def copies(self) -> int:
        return len(self.manifest["copies"])

    @property
    def name(self) -> str:
        """The offer's id."""
        return str(self.manifest["offer"])

    @property
    def number(self) -> int:
        """Of the round, from 1."""
        return int(self.manifest["round"])

    @property
    def digest(self) -> str:
        return link("", self.manifest)

    def copy(self, k: int) -> Path:
        return self.folder / copy_name(k)

    def check_copy(self, k: int) -> TensorFile:
        """The weights of copy k; raises `UserError` where a file is missing, changed or not in the manifest."""
        stated, folder = self.manifest["copies"][k], self.copy(k)
        check_files(folder, stated)
        weights = TensorFile(folder / WEIGHTS)
        wanted = PRECISIONS[self.manifest["dtype"]]
        if other := [name for name, kind in weights.layout.items() if kind.dtype != wanted]:
            raise UserError(f"{folder / WEIGHTS} holds {other[0]} in another dtype than the offer's")
        return weights


def read_offer(folder: Path) -> Offer:
    """The offer in a folder, its manifest checked; the copies are not looked at."""
    manifest = read_manifest(folder, OFFER_FORMAT)
    shape = {
        "offer": str,
        "round": int,
        "rounds": int,
        "architecture": str,
        "dtype": str,
        "task": dict,
        "copies": list,
    }
    _check_types(folder, manifest, shape)
    _check_types(folder, manifest["task"], TASK)
    files = manifest["copies"]
    if not files or not all(isinstance(found, dict) and WEIGHTS in found for found in files):
        raise UserError(f"{folder / MANIFEST} names no files of its copies")
    if manifest["dtype"] not in PRECISIONS:
        raise UserError(f"{folder / MANIFEST}: unknown dtype '{manifest['dtype']}'")
    return Offer(folder, manifest)


@dataclass(frozen=True)
class Reply:
    """What a client returns of one copy."""

    path: Path
    entry: Manifest

    def open(self, layout: Layout | None) -> TensorFile:
        """The tensors; raises `UserError` for a changed byte and, of a difference, what does not fit `layout`."""
        if file_digest(self.path) != self.entry["sha256"]:
            raise UserError(f"{self.path} is not what its manifest says: a byte was changed")
        found = TensorFile(self.path)
        if self.entry["kind"] == DIFFERENCE and layout is not None:
            check_fit(self.path, found, layout)
        return found


def check_fit(path: Path, found: TensorFile, layout: Layout) -> None:
    """Raise `UserError` unless a file holds a difference of just the tensors of `layout`."""
    if different := sorted(set(found) ^ set(layout)):
        raise UserError(f"{path} has other tensors than the copy: {', '.join(different[:3])}")
    for name, kind in layout.items():
        own = found.layout[name]
        if own.shape != kind.shape:
            raise UserError(f"{path}: {name} has shape {tuple(own.shape)}, not {tuple(kind.shape)}")
        if CODES[own.dtype] not in ("F32", CODES[kind.dtype]):
            raise UserError(f"{path}: {name} is neither float32 nor of the copy's dtype")


def read_replies(folder: Path, offer: str, index: int) -> dict[int, Reply]:
    """The finished copies of a reply folder by k = 0..; raises `UserError` where they answer another offer."""
    manifest = read_manifest(folder, REPLY_FORMAT)
    _check_types(folder, manifest, {"offer": str, "round": int, "copies": list})
    if manifest["round"] != index + 1:
        raise UserError(f"{folder} answers round {manifest['round']}, not round {index + 1}")
    if manifest["offer"] != offer:
        raise UserError(f"{folder} answers another offer")
    found: dict[int, Reply] = {}
    for entry in manifest["copies"]:
        if not isinstance(entry, dict):
            raise UserError(f"{folder / MANIFEST} has an entry that is no object")
        shape = {"copy": int, "method": str, "steps": int, "kind": str, "sha256": str}
        if entry.get("kind") == LORA:
            shape["lora_alpha"] = (int, float)  # type: ignore[assignment]
        _check_types(folder, entry, shape)
        k = entry["copy"] - 1
        if k in found:
            raise UserError(f"{folder} holds {copy_name(k)} twice")
        if entry["kind"] not in (DIFFERENCE, LORA):
            raise UserError(f"{folder}: {copy_name(k)} is of unknown kind '{entry['kind']}'")
        found[k] = Reply(folder / f"{copy_name(k)}.safetensors", entry)
    return found


def add_reply(folder: Path, offer: str, index: int, entry: Manifest) -> None:
    """Enter a finished copy, whose file is there, into a reply's manifest, in the place of an earlier one."""
    with locked(folder):
        found = read_replies(folder, offer, index) if (folder / MANIFEST).exists() else {}
        entries = {k: reply.entry for k, reply in found.items()} | {entry["copy"] - 1: entry}
        content = {"format": REPLY_FORMAT, "offer": offer, "round": index + 1}
        write_manifest(folder, {**content, "copies": [entries[k] for k in sorted(entries)]})


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Alone in a folder among those who lock it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def write_manifest(folder: Path, content: Manifest) -> str:
    """Write `content` with its digest, which is returned."""
    digest = link("", content)
    write_json(folder / MANIFEST, {**content, "sha256": digest})
    sync_folder(folder)
    return digest


def read_manifest(folder: Path, expected: str) -> Manifest:
    """A manifest without its digest; raises `UserError` unless it is whole and of the expected format."""
    path, content = folder / MANIFEST, _read_manifest(folder)
    if content.get("format") != expected:
        raise UserError(f"{path} is of format '{content.get('format')}', not {expected}")
    return content


def manifest_format(folder: Path) -> str:
    """The format that a manifest names; raises `UserError` unless the manifest is whole."""
    return str(_read_manifest(folder).get("format"))


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    try:
        with open_plain(path) as file:
            content = json.loads(file.read(LARGEST_MANIFEST).decode("utf-8"), parse_constant=_no_number)
        stated = content.pop("sha256")
        if stated != link("", content):
            raise UserError(f"{path} is not what its own digest says: a byte was changed")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is no manifest") from error
    return dict(content)


def check_files(folder: Path, digests: Mapping[str, str]) -> None:
    """Raise `UserError` unless a folder holds just the files of `digests`, unchanged."""
    try:
        present = {path.name for path in folder.iterdir()}
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}") from error
    if different := sorted(present ^ set(digests)):
        there = different[0] in present
        raise UserError(f"{folder / different[0]} is {'not in the manifest' if there else 'missing'}")
    for name, digest in digests.items():
        if file_digest(folder / name) != digest:
            raise UserError(f"{folder / name} is not what the manifest says: a byte was changed")


def _check_types(folder: Path, found: Manifest, shape: Mapping[str, Any]) -> None:
    if different := sorted(set(found) ^ {*shape, *({"format"} & set(found))}):
        raise UserError(f"{folder / MANIFEST}: '{different[0]}' is missing or unknown")
    for name, kinds in shape.items():
        allowed = kinds if isinstance(kinds, tuple) else (kinds,)
        value = found[name]
        if type(value) not in allowed and not (value is None and None in allowed):
            raise UserError(f"{folder / MANIFEST}: '{name}' is '{value}'")


def _no_number(text: str) -> None:
    raise ValueError(text)
