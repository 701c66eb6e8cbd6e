"""What an offer or a reply says, and whether it is whole: `python -m pum.check offer/ reply/round1 ...`.

With `--offer offer/round1` it is also checked that a reply fits that offer. One line and exit code 2 where a
folder is not what it says.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from pum.aggregate import check_update, l2_norm
from pum.folders import (
    MANIFEST,
    OFFER_FORMAT,
    REPLY_FORMAT,
    copy_name,
    manifest_format,
    read_manifest,
    read_offer,
    read_replies,
)
from pum.tensors import Layout, TensorFile
from src.utils import UserError, run_cli


def main(argv: Sequence[str] | None = None) -> None:
    """Print what each folder says; raises `UserError` for the first thing that is wrong."""
    parser = argparse.ArgumentParser(prog="python -m pum.check", description="What an offer or a reply says.")
    parser.add_argument("folders", nargs="+", type=Path, help="offer/, offer/round1 or reply/round1")
    parser.add_argument("--offer", type=Path, help="the offer that a reply answers: offer/round1")
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    for folder in args.folders:
        for found in _rounds(folder):
            kind = manifest_format(found)
            lines = offer_lines(found) if kind == OFFER_FORMAT else reply_lines(found, args.offer)
            print("\n".join([f"{found} ({kind})", *(f"  {line}" for line in lines)]))


def offer_lines(folder: Path) -> Iterator[str]:
    """What an offer says, line by line; each copy is checked before its line."""
    offer = read_offer(folder)
    content, task = offer.manifest, offer.manifest["task"]
    yield f"offer {content['offer']}, round {content['round']} of {content['rounds']}"
    yield f"{content['architecture']}, {content['dtype']}, {offer.copies} copies"
    yield "to do: " + ", ".join(f"{name} {value}" for name, value in task.items() if value is not None)
    for k in range(offer.copies):
        yield f"{copy_name(k)}: {_contents(offer.check_copy(k))}"


def reply_lines(folder: Path, offer_folder: Path | None) -> Iterator[str]:
    """What a reply says, line by line; each file is checked before its line, and against the offer if given."""
    content = read_manifest(folder, REPLY_FORMAT)
    offer = None if offer_folder is None else read_offer(offer_folder)
    name, number = (content["offer"], content["round"]) if offer is None else (offer.name, offer.number)
    yield f"answers offer {name}, round {number}"
    replies = read_replies(folder, name, number - 1)
    expected = {MANIFEST, *(reply.path.name for reply in replies.values())}
    if others := sorted({path.name for path in folder.iterdir()} - expected):
        raise UserError(f"{folder / others[0]} is not in the manifest")
    for k, reply in sorted(replies.items()):
        layout: Layout | None = None
        if offer is not None:
            if k not in range(offer.copies):
                raise UserError(f"{folder} holds {copy_name(k)}, but the offer has {offer.copies} copies")
            layout = offer.check_copy(k).layout
        entry = reply.entry
        what = f"{copy_name(k)}: {entry['kind']}, {entry['steps']} steps of {entry['method']}"
        yield f"{what}, {_contents(reply.open(layout))}"
    if offer is not None and (missing := [copy_name(k) for k in range(offer.copies) if k not in replies]):
        yield f"not there yet: {', '.join(missing)}"


def _contents(file: TensorFile) -> str:
    """Counts and norm; raises `UserError` where an entry is not finite."""
    check_update(file, None)
    count = sum(kind.shape.numel() for kind in file.layout.values())
    return f"{len(file)} tensors, {count:,} numbers, norm {l2_norm(file.values()):.6g}"


def _rounds(folder: Path) -> list[Path]:
    rounds = sorted(path.parent for path in folder.glob(f"round*/{MANIFEST}"))
    if not rounds and not (folder / MANIFEST).exists():
        raise UserError(f"{folder} holds no offer and no reply")
    return rounds or [folder]


if __name__ == "__main__":
    run_cli(main)
