"""Damaged offers, replies and states: each is refused in one line, and nothing of the server's changes.

PUM_CORRUPTIONS=200 tries that many; the suite takes fewer.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import parties as p
import pytest
import torch
from safetensors.torch import load_file, save_file

from pum.check import main as check
from src.utils import run_cli

COUNT = int(os.environ.get("PUM_CORRUPTIONS", "80"))
Damage = Callable[[Path], None]


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> p.Parties:
    """A round that is published and answered, of a server with a key."""
    two = p.parties(
        tmp_path_factory.mktemp("ready"),
        servers="--copies_m 2 --sigma 0.01 --clip_update_norm 100",
        clients=f"{p.CLIENTS} --num_train_epochs 1",
        rounds=2,
    )
    p.publish(two.first())
    p.client(two.work())
    return two


def another(ready: p.Parties, root: Path) -> p.Parties:
    """The same run elsewhere."""
    for name in ("server", "offer", "reply"):
        shutil.copytree(ready.root / name, root / name)
    return p.Parties(root, ready.model, ready.servers, ready.clients, ready.rounds)


def refused(capsys: pytest.CaptureFixture[str], main: Callable[[list[str]], None], words: list[str]) -> str:
    """The one line with which a command ends."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run_cli(lambda: main(words))
    lines = capsys.readouterr().err.strip().splitlines()
    assert caught.value.code == 2, lines
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


def flip(folder: Path, rng: random.Random) -> str:
    """Damage one random file below a folder: a bit, a byte more, a piece less, all of it, its name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = rng.choice(files)
    content = bytearray(path.read_bytes())
    kind = rng.choice(("bit", "bit", "bit", "bit", "longer", "shorter", "gone", "empty", "renamed"))
    if kind == "bit":
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    elif kind == "longer":
        content.insert(rng.randrange(len(content) + 1), rng.randrange(256))
    elif kind == "shorter":
        del content[rng.randrange(len(content)) :]
    elif kind == "empty":
        content.clear()
    path.unlink()
    if kind != "gone":
        (path.with_name("other") if kind == "renamed" else path).write_bytes(content)
    return f"{kind} {path.relative_to(folder)}"


def test_random_damage(ready: p.Parties, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In turn of what the client reads, of what it returned, and of the server's own."""
    for number in range(COUNT):
        rng, root = random.Random(number), tmp_path / str(number)
        root.mkdir()
        two = another(ready, root)
        where = ("offer", "reply", "server")[number % 3]
        what = flip(root / where, rng)
        before = p.digests(two.private)
        if where == "offer":
            shutil.rmtree(two.reply())
            message = refused(capsys, p.client, two.work())
            assert not list(root.glob("reply/*/*"))
            refused(capsys, check, [str(two.offer())])
        else:
            message = refused(capsys, p.merge, two.merging())
        assert p.digests(two.private) == before, (what, message)
        assert not any(path.exists() for path in (two.output, two.offer(2))), (what, message)
        shutil.rmtree(root)


# --- damage that keeps the digests right


def edit(name: str, change: Callable[[dict[str, torch.Tensor]], Any]) -> Damage:
    def damage(reply: Path) -> None:
        tensors = load_file(reply / name)
        change(tensors)
        save_file(tensors, reply / name)
        p.sign(reply)

    return damage


def entries(change: Callable[[list[dict[str, Any]]], Any]) -> Damage:
    def damage(reply: Path) -> None:
        found = json.loads((reply / "manifest.json").read_text())["copies"]
        change(found)
        p.sign(reply, copies=found)

    return damage


def put(name: str, value: float) -> Damage:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"][3] = value

    return edit(name, change)


FIRST = "model.embed_tokens.weight"
SIGNED: list[tuple[str, Damage, str]] = [
    ("nan", put("copy2.safetensors", float("nan")), "holds NaN or infinity"),
    ("infinity", put("copy1.safetensors", float("-inf")), "holds NaN or infinity"),
    ("missing", edit("copy1.safetensors", lambda t: t.pop(FIRST)), f"other tensors than the copy: {FIRST}"),
    (
        "more",
        edit("copy1.safetensors", lambda t: t.update(extra=torch.ones(2))),
        "other tensors than the copy: extra",
    ),
    ("name", edit("copy1.safetensors", lambda t: t.update(x=t.pop(FIRST))), "other tensors than the copy"),
    ("shape", edit("copy2.safetensors", lambda t: t.update({FIRST: t[FIRST][:-1].clone()})), "has shape"),
    ("turned", edit("copy2.safetensors", lambda t: t.update({FIRST: t[FIRST].T.contiguous()})), "has shape"),
    ("dtype", edit("copy2.safetensors", lambda t: t.update({FIRST: t[FIRST].half()})), "neither float32 nor"),
    (
        "integers",
        edit("copy2.safetensors", lambda t: t.update({FIRST: t[FIRST].int()})),
        "no readable safetensors",
    ),
    ("copy missing", entries(lambda e: e.pop()), "copy2 of 2 copies missing"),
    ("all missing", entries(lambda e: e.clear()), "copy1, copy2 of 2 copies missing"),
    ("copy twice", entries(lambda e: e.append(e[0])), "holds copy1 twice"),
    ("third copy", entries(lambda e: e[0].update(copy=3)), "holds copy3, but the offer has 2"),
    ("copy zero", entries(lambda e: e[0].update(copy=0)), "holds copy0"),
    ("kind", entries(lambda e: e[0].update(kind="model")), "unknown kind"),
    ("adapters", entries(lambda e: e[0].update(kind="lora", lora_alpha=8)), "is no adapter of the model"),
    ("text for a number", entries(lambda e: e[0].update(steps="3")), "'steps' is '3'"),
    ("truth for a number", entries(lambda e: e[0].update(copy=True)), "'copy' is 'True'"),
    ("more said", entries(lambda e: e[0].update(loss=0.3)), "'loss' is missing or unknown"),
    ("less said", entries(lambda e: e[0].pop("steps")), "'steps' is missing or unknown"),
    ("no entry", entries(lambda e: e.insert(0, 5)), "no object"),
    ("another round", lambda reply: p.sign(reply, round=2), "answers round 2, not round 1"),
    ("another offer", lambda reply: p.sign(reply, offer="0" * 32), "answers another offer"),
    ("another format", lambda reply: p.sign(reply, format="pum-reply/2"), "not pum-reply/1"),
    ("no manifest", lambda reply: (reply / "manifest.json").unlink(), "cannot read"),
    ("no folder", shutil.rmtree, "cannot read"),
    (
        "pipe",
        lambda reply: ((reply / "copy1.safetensors").unlink(), os.mkfifo(reply / "copy1.safetensors")),
        "cannot read",
    ),
]


@pytest.mark.parametrize(("name", "damage", "message"), SIGNED, ids=[name for name, _, _ in SIGNED])
def test_what_does_not_fit_is_refused(
    name: str, damage: Damage, message: str, ready: p.Parties, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two = another(ready, tmp_path)
    damage(two.reply())
    before = p.digests(two.private)
    assert message in refused(capsys, p.merge, two.merging())
    assert p.digests(two.private) == before


def test_commands_out_of_turn(ready: p.Parties, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A merge too early, twice or from elsewhere; a publication with a key whose round is merged."""
    two = another(ready, tmp_path)

    def no(message: str, main: Callable[[list[str]], None], words: list[str]) -> None:
        before = p.digests(two.private)
        assert message in refused(capsys, main, words)
        assert p.digests(two.private) == before

    private = ["--private", str(two.private)]
    no("--output_dir belongs to the last round", p.merge, [*two.merging(), "--output_dir", str(two.output)])
    no("copy1 is there twice", p.merge, [*two.merging(), str(shutil.copytree(two.reply(), tmp_path / "again"))])
    no("above 1e-06", p.merge, [*two.merging(), "--clip_update_norm", "1e-6", "--refuse_over_norm", "True"])
    no("holds no state of a run", p.merge, ["--private", str(tmp_path / "none"), "--reply", "x"])
    no("the first round needs --model_name", p.publish, ["--private", str(tmp_path / "none")])
    no("began with other settings", p.publish, [*private, "--copies_m", "3"])
    other = p.Parties(tmp_path / "more", two.model, two.servers, two.clients)
    no("offer/round1 is there already", p.publish, [*private[:1], str(tmp_path / "new"), *two.first()[:4]])
    del other
    p.merge(two.merging())
    assert two.offer(2).is_dir()
    no("is merged already", p.merge, two.merging())
    words = two.first()
    words[words.index("--private") + 1] = str(two.private)
    no("noise would cancel", p.publish, words)
    no("cannot read", p.merge, two.merging(2))
    p.client(two.work(2))
    no("the last round needs --output_dir", p.merge, two.merging(2)[:4])
    two.output.mkdir()
    (two.output / "mine").touch()
    no("is not empty", p.merge, two.merging(2))
    shutil.move(two.reply(2), tmp_path / "kept")
    shutil.copytree(two.reply(1), two.reply(2))
    no("is merged already", p.merge, two.merging(2))
    shutil.rmtree(two.reply(2))
    shutil.move(tmp_path / "kept", two.reply(2))
    p.merge([*two.merging(2), "--overwrite_output_dir", "True"])
    assert not (two.output / "mine").exists()
    no("round 2 of", p.merge, two.merging(2))
    no("noise would cancel", p.publish, private)
    no("noise would cancel", p.publish, words)


def test_an_older_state_publishes_nothing(
    ready: p.Parties, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server's folder from a backup does not know that its round was merged, but its offers tell."""
    (tmp_path / "run").mkdir()
    two = p.parties(tmp_path / "run", servers="--copies_m 2 --sigma 0.01", rounds=2)
    p.publish(two.first())
    p.client(two.work())
    shutil.copytree(two.private, tmp_path / "backup")
    p.merge(two.merging())
    shutil.rmtree(two.private)
    shutil.move(tmp_path / "backup", two.private)
    assert "is older than" in refused(capsys, p.publish, ["--private", str(two.private)])
    before = (two.private / "theta0.safetensors").read_bytes()
    chain = (two.private / "chain.jsonl").read_text().splitlines(keepends=True)
    (two.private / "chain.jsonl").write_text(chain[0])  # a line dropped at the end leaves a whole chain
    assert "is older than" in refused(capsys, p.publish, ["--private", str(two.private)])
    assert "is not published yet" in refused(capsys, p.merge, two.merging())
    assert (two.private / "theta0.safetensors").read_bytes() == before
