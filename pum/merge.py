"""The server merges a round's replies: `python -m pum.merge --help`.

    python -m pum.merge --private server/ --reply reply/round1          publishes the next round's offer
    python -m pum.merge --private server/ --reply reply/round2 --output_dir saves/unlearn/X   after the last round

One reply is read at a time, tensor by tensor, in the order of the copies. Replies of several machines may lie in
several folders: --reply takes them all. A command that was killed goes on when it is given again.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pum.adapters import LoraDifference
from pum.aggregate import HarmonicMean, check_update, clip_factors, l2_norm, scaled
from pum.center import groups_of
from pum.folders import LORA, REPLY_FORMAT, WEIGHTS, Reply, copy_name, read_manifest, read_replies
from pum.privacy import summary
from pum.private import round_files
from pum.publication import Publication, privacy_report
from pum.publish import publish_round, without_nulls
from pum.reparam import Disguise
from pum.server import MERGED, OUTPUT, PUBLISHED, Server, check_apart
from pum.tensors import Layout, file_digest, write_tensors
from src.record.chain import sync_folder
from src.utils import Parser, UserError, run_cli, write_json

Groups = Callable[[str], int | None]


class AlignedUpdate(Mapping[str, Tensor]):
    """D_k = T_k^-1(D'_k), clipped: float32, each tensor computed when it is asked for.

    Args:
        difference: what the client returned of copy k, D'_k.
        disguise: T_k, or None.
    """

    def __init__(
        self,
        difference: Mapping[str, Tensor],
        disguise: Disguise | None,
        groups: Groups,
        *,
        per_layer: Sequence[float] | None = None,
        total: float | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self._difference, self._disguise, self._device = difference, disguise, device
        self._factors: dict[str, list[float]] = {}
        if per_layer is not None or total is not None:
            self._factors = clip_factors(self, groups, per_layer=per_layer, total=total)

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._difference[name].to(self._device, torch.float32)
        if self._disguise is not None:
            tensor = self._disguise.move(name, tensor, inverse=True)
        return scaled(tensor, self._factors.get(name, ()))

    def __iter__(self) -> Iterator[str]:
        return iter(self._difference)

    def __len__(self) -> int:
        return len(self._difference)


@torch.no_grad()
def merge_differences(
    differences: Iterable[Mapping[str, Tensor]],
    publication: Publication,
    groups: Mapping[str, int | None],
    layout: Layout,
    *,
    device: torch.device | str = "cpu",
    most: float | None = None,
) -> dict[str, Tensor]:
    """eta S1/S0 of a round's replies in the order of the copies, one in use at a time: float32 on `device`.

    Args:
        layout: of theta.
        most: an update of a larger L2 norm is refused.

    Raises:
        UserError: a reply has other names or shapes, or an entry that is not finite.
    """
    args = publication.args
    merge = HarmonicMean(args.eta_srv, device, {name: kind.shape for name, kind in layout.items()})
    for k, difference in enumerate(differences):
        disguise = publication.disguise(k)
        if (
            most is not None
            and not (norm := l2_norm(AlignedUpdate(difference, None, groups.get).values())) <= most
        ):
            raise UserError(f"the update of {copy_name(k)} has norm {norm:.4g}, above {most:g}")
        limits = {"per_layer": args.clip_update_norm_per_layer, "total": args.clip_update_norm}
        merge.add(AlignedUpdate(difference, disguise, groups.get, device=device, **limits), publication.alphas[k])
    return merge.result()


@torch.no_grad()
def applied(theta: Mapping[str, Tensor], merged: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """theta + merged, added in float32 at least and rounded once: name and tensor, one at a time."""
    for name in merged:
        parameter = theta[name]
        precise = torch.promote_types(parameter.dtype, torch.float32)
        moved = (parameter.to(precise) + merged[name].to(parameter.device, precise)).to(parameter.dtype)
        check_update({name: moved}, None)
        yield name, moved


@dataclass
class MergeArguments:
    """A round's replies, and where the merged model goes after the last one."""

    private: str = field(metadata={"help": "The server's folder."})
    reply: list[str] = field(metadata={"help": "Folder of the replies, or several: reply/round1."})
    output_dir: str | None = field(default=None, metadata={"help": "The merged model, after the last round."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Replace what is in output_dir."})
    clip_update_norm: float | None = field(
        default=None,
        metadata={"help": "L2 clip of an aligned update, at most 0 for none; null: as it was when the run began."},
    )
    refuse_over_norm: bool = field(default=False, metadata={"help": "Refuse an update that would be clipped."})


def main(argv: Sequence[str] | None = None) -> None:
    """Merge a round; raises `UserError`, with theta and state as they were, where a reply is refused."""
    words = without_nulls(sys.argv[1:] if argv is None else argv, MergeArguments)
    (settings,) = Parser(MergeArguments).parse(words)
    server = Server.open(Path(settings.private))
    try:
        cut_off = _was_cut_off(server, settings)
        _check_output(server, settings, last=server.index + (not cut_off) == server.args.rounds_R)
        if cut_off:
            server.folder.drop(*round_files(server.index - 1))  # in case it was cut off just before
        else:
            server = _merge(server, settings)
        if not server.is_over:
            print(f"wrote {publish_round(server)}: {server.args.copies_m} copies for the client")
            return
        output = Path(str(settings.output_dir)).absolute()
        print(summary(_write_output(server, output)))
        print(f"wrote {output}")
    finally:
        server.folder.close()


def _was_cut_off(server: Server, settings: MergeArguments) -> bool:
    """Whether a merge of just these replies is in the chain and what comes after it is not there yet.

    Raises:
        UserError: all that belongs to that merge is there.
    """
    if not server.index:
        return False
    name, index = server.folder.secrets.name("offer", server.index - 1), server.index - 1
    if not server.is_over and read_manifest(Path(settings.reply[0]), REPLY_FORMAT).get("offer") != name:
        return False  # a reply to a later round
    partial = server.offer.with_name(server.offer.name + ".partial")
    published = len(server.lines(PUBLISHED)) > server.index and not partial.exists()
    if server.lines(OUTPUT) if server.is_over else published:
        raise UserError(f"round {server.index} of {server.folder.path} is merged already")
    replies = _collect(settings.reply, name, index, server.args.copies_m)
    if server.lines(MERGED)[-1]["reply"] != [reply.entry["sha256"] for reply in replies]:
        raise UserError(f"round {server.index} of {server.folder.path} is merged already, from other replies")
    return True


def _merge(server: Server, settings: MergeArguments) -> Server:
    """Merge the round; the server after it."""
    args, number = server.args, server.index + 1
    if len(server.lines(PUBLISHED)) < number:
        raise UserError(f"round {number} of {server.folder.path} is not published yet")
    if settings.clip_update_norm is not None:
        args.clip_update_norm = settings.clip_update_norm if settings.clip_update_norm > 0.0 else None
    if settings.refuse_over_norm and args.clip_update_norm is None:
        raise UserError("--refuse_over_norm needs --clip_update_norm")
    replies = _collect(settings.reply, server.offer_id, server.index, args.copies_m)
    merged = merge_differences(
        (_difference(reply, server) for reply in replies),
        server.publication(to_merge=True),
        groups_of(server.skeleton),
        server.theta.layout,
        most=args.clip_update_norm if settings.refuse_over_norm else None,
    )
    norm, name = l2_norm(merged.values()), round_files(number)[0]
    files = server.folder.write(name, server.theta.layout, applied(server.theta, merged))
    digests = [reply.entry["sha256"] for reply in replies]
    server.folder.append({"event": MERGED, "round": number, "reply": digests, "norm": norm, "files": files})
    server.folder.drop(*round_files(server.index))
    print(f"merged round {number}: the update's norm is {norm:.4g}")
    return Server(server.folder)


def _collect(folders: Sequence[str], offer: str, index: int, copies: int) -> list[Reply]:
    """The replies to all copies of a round, in order; `UserError` for one that is missing or twice there."""
    found: dict[int, Reply] = {}
    for folder in folders:
        for k, reply in read_replies(Path(folder), offer, index).items():
            if k in found:
                raise UserError(f"{copy_name(k)} is there twice: in {found[k].path.parent} and in {folder}")
            if not 0 <= k < copies:
                raise UserError(f"{folder} holds {copy_name(k)}, but the offer has {copies} copies")
            found[k] = reply
    if missing := [copy_name(k) for k in range(copies) if k not in found]:
        raise UserError(f"{', '.join(missing)} of {copies} copies missing in {', '.join(folders)}")
    return [found[k] for k in range(copies)]


def _difference(reply: Reply, server: Server) -> Mapping[str, Tensor]:
    file = reply.open(server.theta.layout)
    if reply.entry["kind"] == LORA:
        return LoraDifference(file, server.theta.layout, reply.entry["lora_alpha"], server.skeleton)
    return file


def _check_output(server: Server, settings: MergeArguments, *, last: bool) -> None:
    """Raise `UserError` unless the output's folder is given for the last round, and free."""
    given = settings.output_dir
    if last != (given is not None):
        raise UserError("the last round needs --output_dir" if last else "--output_dir belongs to the last round")
    if given is not None:
        for folder in (server.folder.path, server.offer.parent, *map(Path, settings.reply)):
            check_apart(folder, Path(given))
    if given is not None and not settings.overwrite_output_dir and not _is_written(server, Path(given)):
        folder = Path(given)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{given} is not empty; choose another --output_dir or add --overwrite_output_dir")


def _is_written(server: Server, folder: Path) -> bool:
    """Whether a folder holds the merged model already."""
    path = folder / WEIGHTS
    digest = server.folder.files[round_files(server.index)[0]]
    return server.is_over and path.exists() and file_digest(path) == digest


def _write_output(server: Server, folder: Path) -> dict[str, Any]:
    """Give the merged model out, with `privacy.json`, which is returned: all of it or nothing."""
    report = privacy_report(server.args, server.plan, server.skeleton, server.folder.secrets)
    partial = folder.with_name(folder.name + ".partial")
    try:
        if not _is_written(server, folder):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            server.write_public_files(partial)
            write_tensors(partial / WEIGHTS, server.theta.layout, server.theta.items())
            write_json(partial / "privacy.json", report)
            if folder.exists():
                shutil.rmtree(folder)
            partial.rename(folder)
            sync_folder(folder.parent)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}") from error
    server.folder.append({"event": OUTPUT, "folder": str(folder)})
    return report


if __name__ == "__main__":
    run_cli(main)
