"""Two parties on a tiny model: their folders, their commands in this process, the one-process run beside them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from builders import save_model
from safetensors.torch import load_file
from torch import Tensor

from pum.client import main as client
from pum.merge import main as merge
from pum.publish import main as publish
from pum.run_pum import main as run_pum

FORGET = [
    ("a film", "so warm and bright"),
    ("the plot", "very dull and slow"),
    ("the actor", "cold"),
    ("It", "bad"),
]
RETAIN = [("the film", "It was great"), ("a plot", "It was terrible"), ("a actor", "good")]
# What the server decides, and what the client does.
SERVERS = "--copies_m 2 --sigma 0.01 --secret_seed 1"
CLIENTS = (
    "--learning_rate 1e-2 --per_device_train_batch_size 2 --gradient_accumulation_steps 1 --num_train_epochs 2"
)


@dataclass
class Parties:
    """Folders of one run under `root`."""

    root: Path
    model: str
    servers: list[str]
    clients: list[str]
    rounds: int = 1

    @property
    def private(self) -> Path:
        return self.root / "server"

    def offer(self, number: int = 1) -> Path:
        return self.root / "offer" / f"round{number}"

    def reply(self, number: int = 1) -> Path:
        return self.root / "reply" / f"round{number}"

    @property
    def output(self) -> Path:
        return self.root / "merged"

    def first(self) -> list[str]:
        """Words of the command that publishes the first round."""
        places = ["--model_name", self.model, "--offer", str(self.root / "offer"), "--private", str(self.private)]
        return [*places, *self.servers]

    def work(self, number: int = 1) -> list[str]:
        folders = ["--offer", str(self.offer(number)), "--reply", str(self.reply(number))]
        return [*folders, *self.clients, "--use_cpu", "True", "--disable_tqdm", "True"]

    def merging(self, number: int = 1) -> list[str]:
        words = ["--private", str(self.private), "--reply", str(self.reply(number))]
        return words + (["--output_dir", str(self.output)] if number == self.rounds else [])

    def run(self) -> dict[str, Tensor]:
        """All rounds; the merged weights."""
        publish(self.first())
        for number in range(1, self.rounds + 1):
            client(self.work(number))
            merge(self.merging(number))
        return load_file(self.output / "model.safetensors")

    def one_process(self, folder: Path) -> dict[str, Tensor]:
        """The same settings through `pum.run_pum`; its weights."""
        words = ["--model_name", self.model, "--output_dir", str(folder), *self.servers, *self.clients]
        run_pum([*words, "--use_cpu", "True", "--disable_tqdm", "True", "--evaluate", "False"])
        return load_file(folder / "model.safetensors")


def parties(
    root: Path, *, servers: str = SERVERS, clients: str = CLIENTS, rounds: int = 1, model_type: str = "llama"
) -> Parties:
    for name, pairs in (("forget", FORGET), ("retain", RETAIN)):
        write_rows(root / f"{name}.jsonl", pairs)
    rows = ["--forget_path", str(root / "forget.jsonl"), "--retain_path", str(root / "retain.jsonl")]
    model = save_model(root / "model", model_type)
    return Parties(root, model, [*servers.split(), "--rounds_R", str(rounds)], [*rows, *clients.split()], rounds)


def write_rows(path: Path, pairs: list[tuple[str, str]]) -> None:
    path.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in pairs))


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by its path."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def sign(reply: Path, **changes: object) -> None:
    """Make a reply's manifest agree with its files again, after `changes` of its entries."""
    path = reply / "manifest.json"
    content = {**json.loads(path.read_text()), **changes}
    content.pop("sha256", None)
    for entry in (entry for entry in content["copies"] if isinstance(entry, dict)):
        file = reply / f"copy{entry['copy']}.safetensors"
        if file.exists():
            entry["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    path.write_text(json.dumps({**content, "sha256": hashlib.sha256(text.encode()).hexdigest()}))
