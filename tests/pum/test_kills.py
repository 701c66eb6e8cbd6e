"""Commands that are killed at any step on the disk, or at any time, and given again: the same bits come out.

PUM_KILLS=30 kills that many at random times, and before every step on the disk; the suite takes fewer of both.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import parties as p
import pytest
from party_lives import Lives

from pum.run_pum import main as run_pum
from src.utils import UserError

KILLS = int(os.environ.get("PUM_KILLS", "2"))
ROUNDS = 2
STRIDE = 1 if KILLS >= 30 else 12  # of the steps on the disk that a command is killed before


class Stages(NamedTuple):
    """The folder of a run, its contents before and after each command, and the commands with their seconds."""

    work: Path
    before: list[Path]
    digests: list[dict[str, str]]
    commands: list[tuple[str, list[str]]]
    seconds: list[float]

    def restore(self, index: int) -> None:
        shutil.rmtree(self.work)
        shutil.copytree(self.before[index], self.work)


@pytest.fixture(scope="module")
def lives() -> Iterator[Lives]:
    process = Lives()
    yield process
    process.close()


@pytest.fixture(scope="module")
def stages(lives: Lives, tmp_path_factory: pytest.TempPathFactory) -> Stages:
    """An uninterrupted run of two rounds, with a reference that moves."""
    root = tmp_path_factory.mktemp("kills")
    work = root / "work"
    work.mkdir()
    moving = f"{p.SERVERS} --center_clip_C_per_layer [1.0,1.2] --jitter_tau 0.001"
    two = p.parties(work, servers=moving, clients=f"{p.CLIENTS} --num_train_epochs 1", rounds=ROUNDS)
    commands = [("publish", two.first())]
    for number in range(1, ROUNDS + 1):
        commands += [("client", two.work(number)), ("merge", two.merging(number))]
    found = Stages(work, [], [], commands, [])
    for index, (command, words) in enumerate([*commands, ("", [])]):
        found.before.append(root / str(index))
        shutil.copytree(work, found.before[-1])
        found.digests.append(p.digests(work))
        if command:
            begin = time.perf_counter()
            assert lives.run(command, words) == "0"
            found.seconds.append(time.perf_counter() - begin)
    return found


@pytest.mark.parametrize("index", [0, 1, 2, 4], ids=["publish", "client", "merge", "last merge"])
def test_killed_before_any_step_on_the_disk(index: int, stages: Stages, lives: Lives) -> None:
    command, words = stages.commands[index]
    # A merge's third step deletes the theta before it, when its line is written already.
    crash, ended = 3 if command == "merge" and STRIDE > 1 else 0, ""
    while ended != "0":
        stages.restore(index)
        ended = lives.run(command, words, crash=crash)
        if ended == "killed":
            is_done = p.digests(stages.work) == stages.digests[index + 1]
            # Killed when all was on the disk, it may as well say that it is done already.
            assert lives.run(command, words) in (("0", "2") if is_done else ("0",)), crash
        assert p.digests(stages.work) == stages.digests[index + 1], (crash, ended)
        crash += STRIDE
    assert crash > 1
    print(f"{command}: killed before steps up to {crash}")


def test_killed_at_a_random_time(stages: Stages, lives: Lives) -> None:
    """Once or several times in a row."""
    rng, killed = random.Random(1), 0
    while killed < KILLS:
        index = rng.randrange(len(stages.commands))
        command, words = stages.commands[index]
        stages.restore(index)
        for _ in range(rng.choice((1, 1, 2))):
            killed += lives.run(command, words, after=rng.uniform(0, stages.seconds[index])) == "killed"
        assert lives.run(command, words) in ("0", "2")  # 2: a merge that was not killed is not done again
        assert p.digests(stages.work) == stages.digests[index + 1], (command, killed)


def test_one_process_goes_on_at_its_copy(lives: Lives, tmp_path: Path) -> None:
    """Also where it is killed while it evaluates; theta of the round and its finished copies are kept."""
    two = p.parties(tmp_path, clients=f"{p.CLIENTS} --num_train_epochs 1", rounds=ROUNDS)
    words = ["--model_name", two.model, *two.servers, *two.clients, "--use_cpu", "True", "--disable_tqdm", "True"]

    def run(name: str, **kill: int) -> tuple[str, dict[str, str]]:
        ended = lives.run("run_pum", [*words, "--output_dir", str(tmp_path / name)], **kill)
        return ended, p.digests(tmp_path / name)

    ended, whole = run("whole")
    assert ended == "0"
    assert not any(path.startswith("private") for path in whole)
    crash, resumed = 0, 0
    while ended != "0" or not crash:
        name = f"killed{crash}"
        ended, left = run(name, crash=crash)
        resumed += any("reply" in path and path.endswith("manifest.json") for path in left)
        if ended == "killed":
            over = "metrics.json" in left and not any(path.startswith("private") for path in left)
            assert run(name)[0] == ("2" if over else "0"), crash  # 2: a finished run is not done again
        found = p.digests(tmp_path / name)
        same = ("model.safetensors", "privacy.json", "fingerprint.json", "config.json")
        assert {path: found[path] for path in same} == {path: whole[path] for path in same}
        assert found.keys() == whole.keys()
        shutil.rmtree(tmp_path / name)
        crash += 2 if KILLS >= 30 else 24
    assert resumed > 0


@pytest.mark.parametrize("left", ["all", "chain.jsonl"])
def test_a_run_that_was_killed_while_its_secrets_were_removed(
    left: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is done again: the secrets go, and the command says where the run is."""
    two = p.parties(tmp_path, servers="--copies_m 2 --sigma 0.01", clients=f"{p.CLIENTS} --num_train_epochs 1")
    words = ["--model_name", two.model, *two.servers, *two.clients, "--use_cpu", "True", "--disable_tqdm", "True"]
    words += ["--output_dir", str(tmp_path / "run"), "--evaluate", "False"]
    private = tmp_path / "run" / "private"

    def killed(path: Path) -> None:
        for file in path.iterdir():
            if left != "all" and file.name != left:
                shutil.rmtree(file) if file.is_dir() else file.unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("pum.private.remove", killed)
        with pytest.raises(KeyboardInterrupt):
            run_pum(words)
    assert (private / "chain.jsonl").exists()
    assert (private / "key").exists() == (left == "all")
    before = p.digests(tmp_path / "run")
    capsys.readouterr()
    run_pum(words)
    assert capsys.readouterr().out.endswith(f"wrote {tmp_path / 'run'}\n")
    assert not private.exists()
    after = p.digests(tmp_path / "run")
    assert after == {path: digest for path, digest in before.items() if not path.startswith("private")}
    with pytest.raises(UserError, match="already holds a run"):
        run_pum(words)
