"""Several processes: PUM's share the copies, a plain run shares its batches; each gives what one process gives."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import parties as p
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from pum.unlearn.arguments import UnlearnArguments
from pum.unlearn.data import PairedRows, UnlearnData
from pum.workers import Workers, join
from src.utils import UserError

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = [sys.executable, "-m", "scripts.launch", "2"]
RunHere = Callable[[Sequence[str]], None]
COMMON = "--use_cpu True --disable_tqdm True --evaluate False"
MESSAGES = """
import os, sys
from pum.workers import join
from src.utils import UserError, run_cli
from torch import distributed

def main():
    workers = join()
    assert not {"WORLD_SIZE", "LOCAL_RANK"} & set(os.environ)
    assert not distributed.is_initialized()
    rank = workers.rank
    assert workers.size == 3
    assert workers.on_first("word", lambda: ["said by", rank]) == ["said by", 0]
    workers.tell(f"here {rank}", lambda: rank)
    if workers.is_first:
        workers.wait_for("here")
    def work():
        if rank == 1:
            raise UserError("the second process\\nstopped")
    workers.tell(f"done {rank}", work)
    workers.wait_for("done")
    sys.exit("a failure was not seen")

run_cli(main)
"""


def launched(words: Sequence[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)


def test_one_process_is_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    workers = join()
    assert (workers.rank, workers.size, workers.is_first) == (0, 1, True)
    assert workers.on_first("a", lambda: 5) == 5
    with pytest.raises(OSError, match="no space"):
        Workers().tell("b", lambda: (_ for _ in ()).throw(OSError("no space")))


def test_messages_and_who_speaks(environment: dict[str, str], tmp_path: Path) -> None:
    """Of a failure in one process, that process says so, once; the launcher then ends the others."""
    (tmp_path / "messages.py").write_text(MESSAGES)
    words = ["torch.distributed.run", "--nproc_per_node", "3", "--standalone", str(tmp_path / "messages.py")]
    done = launched([sys.executable, "-m", *words], environment)
    assert done.returncode != 0
    assert done.stderr.count("error: the second process stopped") == 1
    assert "was not seen" not in done.stderr


def test_eight_copies_on_two_processes(
    environment: dict[str, str], tmp_path: Path, run_here: RunHere, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two rounds with a reference that moves: the same bits as one process, and one folder, clean."""
    servers = "--copies_m 8 --sigma 0.01 --secret_seed 1 --center_clip_C_per_layer [1.0,1.2] --rounds_R 2"
    two = p.parties(tmp_path, servers=servers, clients=f"{p.CLIENTS} --num_train_epochs 1", rounds=2)
    words = ["pum.run_pum", "--model_name", two.model, *two.servers, *two.clients, *COMMON.split()]
    run_here([*words, "--output_dir", str(tmp_path / "one")])
    assert capsys.readouterr().out.count("wrote ") == 1
    done = launched([*LAUNCH, *words, "--output_dir", str(tmp_path / "two")], environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote ") == 1
    one, both = (p.digests(tmp_path / name) for name in ("one", "two"))
    assert one.keys() == both.keys()
    for name in ("model.safetensors", "privacy.json", "fingerprint.json"):
        assert one[name] == both[name]
    assert not (tmp_path / "two" / "private").exists()


def test_a_wrong_argument_is_one_line(environment: dict[str, str], tmp_path: Path) -> None:
    two = p.parties(tmp_path)
    words = ["--model_name", two.model, *two.clients, *COMMON.split(), "--output_dir", str(tmp_path / "out")]
    done = launched([*LAUNCH, "pum.run_pum", *words, "--alpha_min", "0.5"], environment)
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1
    assert "error: 1 <= alpha_min" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("method", ["GradDiff", "RMU", "PDU"])
def test_a_plain_run_shares_its_batches(
    method: str,
    environment: dict[str, str],
    tmp_path: Path,
    run_here: RunHere,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Up to the rounding of a mean. RMU has no gradient above its layer; PDU moves by the retain loss of all."""
    two = p.parties(tmp_path, clients="--learning_rate 1e-2 --per_device_train_batch_size 1 --num_train_epochs 3")
    # That it is the CPU need not be said where there is nothing else.
    common = COMMON if torch.cuda.is_available() else COMMON.replace("--use_cpu True ", "")
    words = ["pum.run_unlearn", "unlearn", "--model_name", two.model, *two.clients, *common.split()]
    words += ["--method", method, "--gradient_accumulation_steps", "2"]
    run_here([*words, "--output_dir", str(tmp_path / "one")])
    assert capsys.readouterr().out.count("wrote ") == 1
    done = launched([*LAUNCH, *words, "--output_dir", str(tmp_path / "two")], environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote ") == 1
    before, one, both = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "one", "two"))
    moved = max(float((one[name] - before[name]).abs().max()) for name in one)
    apart = max(float((one[name] - both[name]).abs().max()) for name in one)
    print(f"{method}: moved {moved:.2g}, apart {apart:.2g}")
    assert apart < 1e-3 * moved
    settings = json.loads((tmp_path / "two" / "metrics.json").read_text())["configuration"]
    assert settings["gradient_accumulation_steps"] == 1


@pytest.mark.parametrize(
    ("batch", "accumulation", "processes", "left"),
    [
        (8, 4, 1, (8, 4)),
        (8, 4, 2, (8, 2)),
        (8, 4, 4, (8, 1)),
        (8, 4, 8, (1, 4)),
        (6, 1, 3, (2, 1)),
        (1, 1, 2, None),
    ],
)
def test_the_effective_batch_is_kept(
    batch: int, accumulation: int, processes: int, left: tuple[int, int] | None
) -> None:
    args = UnlearnArguments(
        per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, use_cpu=True
    )
    if left is None:
        with pytest.raises(UserError, match="2 processes cannot share a batch of 1 x 1"):
            args._share_batch(processes)
        return
    args._share_batch(processes)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == left


def test_processes_draw_what_one_process_draws() -> None:
    data = UnlearnData([{"id": i} for i in range(12)], [{"id": i} for i in range(1000)])

    def retained(place: tuple[int, int]) -> list[list[int]]:
        rows = PairedRows(data, 7, batch=2, place=place)
        order = [
            i for epoch in range(2) for batch in range(place[0], 6, place[1]) for i in (2 * batch, 2 * batch + 1)
        ]
        loader = DataLoader(rows, batch_size=2, sampler=order, collate_fn=list)
        return [[item["retain"]["id"] for item in batch] for batch in loader]

    whole = retained((0, 1))
    assert len({i for batch in whole for i in batch}) > 20
    for size in (2, 3):
        parts = [retained((rank, size)) for rank in range(size)]
        assert [batch for batches in zip(*parts, strict=True) for batch in batches] == whole
    assert torch.equal(torch.tensor(whole), torch.tensor(retained((0, 1))))
