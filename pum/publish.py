"""The server publishes a round: `python -m pum.publish --help`.

    python -m pum.publish --model_name M --offer offer/ --private server/ --copies_m 4 ...   the first round
    python -m pum.publish --private server/                                                  a later one

Writes `offer/round{r}/`, which holds nothing that tells theta, the noise or the disguises beyond the copies
themselves, and keeps theta, the key and the settings in `server/`, which nobody else may read. A command that was
killed goes on when it is given again.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import torch

from pum.arguments import PUMArguments
from pum.folders import OFFER_FORMAT, WEIGHTS, copy_name, read_offer, round_name, write_manifest
from pum.privacy import summary
from pum.private import begun, round_files
from pum.publication import Publication, privacy_report
from pum.server import PUBLISHED, Server, arguments, check_apart, offer_place
from pum.tensors import Kind, write_tensors
from pum.unlearn.arguments import UnlearnArguments
from src.models import load_model
from src.record.chain import sync_folder
from src.utils import Parser, UserError, precision, run_cli

# Of `PUMArguments`: all that is PUM's own, but what the client decides or what says how a trainer runs.
NOT_THE_SERVERS = {"lora", "lora_r", "lora_alpha", "accumulate_device"}
SERVERS_OWN = ("seed", "data_seed")


@dataclass
class Places:
    """Where the server's folders are, and what the first round starts from."""

    private: str = field(metadata={"help": "The server's folder: theta, key, state. Made with mode 0700."})
    offer: str | None = field(default=None, metadata={"help": "Folder of the offers. First round only."})
    model_name: str | None = field(
        default=None, metadata={"help": "Hub id, local folder or embedded name. First round only."}
    )
    dtype: str = field(default="float32", metadata={"help": "Of the weights: float32, float16 or bfloat16."})


def _settings() -> type:
    """A dataclass of the settings in `PUMArguments` that are the server's, and nothing else."""
    inner = {item.name for item in fields(UnlearnArguments)} - set(SERVERS_OWN)
    hints = get_type_hints(PUMArguments)
    chosen = [item for item in fields(PUMArguments) if item.name not in inner | NOT_THE_SERVERS]
    return make_dataclass(
        "ServerSettings",
        [(item.name, hints[item.name], field(default=item.default, metadata=item.metadata)) for item in chosen],
    )


ServerSettings: Any = _settings()


def main(argv: Sequence[str] | None = None) -> None:
    """Publish the next round; raises `UserError` before anything is written where that is refused."""
    words = without_nulls(sys.argv[1:] if argv is None else argv, Places, ServerSettings)
    places, settings = Parser((Places, ServerSettings)).parse(words)
    private = Path(places.private)
    again = begun(private)
    server = Server.open(private) if again else _begin(private, places, asdict(settings))
    try:
        if again and any(word.startswith("--") and word.split("=")[0] != "--private" for word in words):
            _check_same_beginning(server, places, asdict(settings))
        folder = publish_round(server)
        print(summary(privacy_report(server.args, server.plan, server.skeleton, server.folder.secrets)))
        print(f"wrote {folder}: {server.args.copies_m} copies for the client")
    finally:
        server.folder.close()


def _begin(private: Path, places: Places, settings: dict[str, Any]) -> Server:
    if places.model_name is None or places.offer is None:
        raise UserError(f"{private} holds no run; the first round needs --model_name and --offer")
    arguments(settings)  # contradictions are found before the model is loaded
    if settings["client_reference"] == "server":
        raise UserError(
            "client_reference server would hand the model itself to the client: an offer holds copies alone"
        )
    check_apart(private, Path(places.offer))
    if (Path(places.offer) / round_name(0)).exists():
        raise UserError(f"{Path(places.offer) / round_name(0)} is there already; choose another --offer")
    model, tokenizer = load_model(places.model_name, precision(places.dtype, torch.device("cpu")))
    return Server.begin(private, model, tokenizer, settings, Path(places.offer), places.model_name)


def _check_same_beginning(server: Server, places: Places, settings: dict[str, Any]) -> None:
    """Raise `UserError` unless the command is that of the first round, which was cut off, word by word."""
    first = server.folder.records[0]
    if server.index:
        raise UserError(
            f"round 1 of {server.folder.path} is merged: published again with the same key, noise would cancel."
            " A later round takes --private alone, a new run another --private"
        )
    asked = [settings, places.model_name, places.dtype, offer_place(Path(str(places.offer)), server.folder.path)]
    if asked != [first["settings"], first["model_name"], first["dtype"], first["offer"]]:
        raise UserError(f"{server.folder.path} began with other settings; choose another --private")


def publish_round(server: Server) -> Path:
    """Write the round's offer, or finish writing it; returns its folder.

    The copies are written beside the folder and take its name when all are there and the chain holds their digest.
    An offer that was published and is gone is written again, byte for byte, as long as the round is not merged.

    Raises:
        UserError: all rounds are merged, or the folder holds something else.
    """
    target, partial = server.offer, server.offer.with_name(server.offer.name + ".partial")
    if server.is_over:
        raise UserError(
            f"all {server.index} rounds of {server.folder.path} are merged; published again with the same key, the"
            " noise would cancel. Start a new run with another --private"
        )
    line = next((line for line in server.lines(PUBLISHED) if line["round"] == server.index + 1), None)
    if server.offer.with_name(round_name(server.index + 1)).exists():
        raise UserError(f"{server.folder.path} is older than {target.parent}: a later round was published")
    if target.exists():
        found = read_offer(target).digest
        if line is None or found != line["manifest"]:
            raise UserError(f"{target} is not what {server.folder.path} published; choose another --offer")
        return target
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        digest, files = _write_offer(server, partial)
        written = {"event": PUBLISHED, "round": server.index + 1, "manifest": digest, "files": files}
        if line is None:
            server.folder.append(written)
        elif line != written:
            shutil.rmtree(partial)  # with other noise of the same key it must not stay where it can be taken
            raise UserError(f"{target} cannot be written as it was: the libraries or the machine are others")
        partial.rename(target)
        sync_folder(target.parent)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}") from error
    return target


def _write_offer(server: Server, folder: Path) -> tuple[str, dict[str, str]]:
    """Write copies and manifest; the manifest's digest, and that of the next round's reference."""
    publication = server.publication()
    copies = [_write_copy(server, publication, k, folder / copy_name(k)) for k in range(server.args.copies_m)]
    args = server.args
    assert args.data_seed is not None
    content = {
        "format": OFFER_FORMAT,
        "offer": server.offer_id,
        "round": server.index + 1,
        "rounds": args.rounds_R,
        "architecture": str(server.skeleton.config.model_type),
        "dtype": server.dtype,
        "task": {
            "method": args.method,
            "local_epochs": args.local_epochs,
            "local_max_steps": args.local_max_steps,
            "auto_balance": args.auto_balance,
            "data_seed": args.data_seed + server.index,
        },
        "copies": copies,
    }
    digest = write_manifest(folder, content)
    files = {}
    if server.keeps_mean:
        layout = {name: Kind(kind.shape, torch.float32) for name, kind in server.theta.layout.items()}
        files = server.folder.write(round_files(server.index + 1)[1], layout, publication.next_reference())
    return digest, files


def _write_copy(server: Server, publication: Publication, k: int, folder: Path) -> dict[str, str]:
    """A model folder; the digests of its files."""
    folder.mkdir()
    files = server.write_public_files(folder)
    files[WEIGHTS] = write_tensors(folder / WEIGHTS, server.theta.layout, publication.copy(k))
    return files


def without_nulls(argv: Sequence[str], *classes: Any) -> list[str]:
    """`argv` without the pairs `--name null` whose argument is null by default anyway."""
    nullable = {
        f"--{item.name}"
        for arguments in classes
        for item in fields(arguments)
        if item.default is None and item.default_factory is MISSING
    }
    kept: list[str] = []
    for word in argv:
        if word == "null" and kept and kept[-1] in nullable:
            kept.pop()
        else:
            kept.append(word)
    return kept


if __name__ == "__main__":
    run_cli(main)
