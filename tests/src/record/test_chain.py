"""The chained record files and the transcript on top of them."""

from __future__ import annotations

import random
import stat

import pytest
import torch
from builders import make_model

from src import transcript
from src.lora import LoraSettings, add_lora
from src.record.chain import RecordError, RecordWriter, read_records
from src.record.steps import FORMAT
from src.utils import UserError
from src.zo.directions import ParameterSpace, StepRecord

SETTINGS = LoraSettings(r=2, alpha=4, seed=7)


def write_run(path, track, dtype=torch.float32, steps=12, weight_decay=0.0):
    """A run of random coefficients; the trained model."""
    model = make_model("opt").to(dtype)
    if track == "lora":
        model = add_lora(model, SETTINGS)
    decayed = [name for name, p in model.named_parameters() if p.requires_grad and p.dim() > 1]
    space = ParameterSpace(model, weight_decay, decayed if weight_decay else ())
    writer = transcript.TranscriptWriter(path, transcript.header(model, space, {"base_model": "tiny"}))
    rng = random.Random(3)
    for step in range(steps):
        seeds = tuple(rng.randrange(2**48) for _ in range(1 + step % 3))
        record = StepRecord(step, seeds, tuple(rng.choice([-1.0, 1.0]) for _ in seeds), 0.01 / (step + 1))
        writer.append(record)
        space.apply(record)
    writer.close()
    return model


def assert_equal_parameters(left, right):
    for (name, a), (_, b) in zip(left.named_parameters(), right.named_parameters(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("track", ["lora", "ft"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_replay_is_bit_identical(track, dtype, weight_decay, tmp_path):
    path = tmp_path / "transcript.jsonl"
    trained = write_run(path, track, dtype, weight_decay=weight_decay)
    again = transcript.replay(make_model("opt").to(dtype), path)
    assert_equal_parameters(trained, again)
    start = make_model("opt").to(dtype)
    start = add_lora(start, SETTINGS) if track == "lora" else start
    assert ParameterSpace(start).checksum() != ParameterSpace(again).checksum(), "the run changed something"


def test_replay_refuses_another_model(tmp_path):
    path = tmp_path / "transcript.jsonl"
    write_run(path, "ft")
    with pytest.raises(RecordError, match="trainable checksum differ"):
        transcript.replay(make_model("opt", seed=1), path)
    with pytest.raises(RecordError, match="parameters differ"):
        transcript.replay(make_model("llama"), path)
    with pytest.raises(RecordError, match="parameters differ"):
        transcript.replay(make_model("opt").to(torch.float16), path)
    write_run(tmp_path / "lora.jsonl", "lora")
    with pytest.raises(RecordError, match="frozen checksum differ"):
        transcript.replay(make_model("opt", seed=1), tmp_path / "lora.jsonl")


def test_a_second_run_does_not_overwrite_the_first(tmp_path):
    path = tmp_path / "transcript.jsonl"
    write_run(path, "ft")
    content = path.read_bytes()
    with pytest.raises(UserError, match="holds another run"):
        write_run(path, "ft")
    assert path.read_bytes() == content


@pytest.mark.parametrize("attempt", range(200))
def test_any_damage_is_found(attempt, tmp_path):
    """One random byte changed, or one line dropped, repeated or swapped; the cut-off last line among them."""
    path = tmp_path / "transcript.jsonl"
    writer = RecordWriter(path, {"format": 1, "text": "head"})
    for step in range(8):
        writer.append({"step": step, "value": step / 7})
    content = path.read_bytes()
    rng = random.Random(attempt)
    lines = content.splitlines(keepends=True)
    kind = rng.choice(["byte", "drop", "repeat", "swap", "cut"])
    if kind == "byte":
        position = rng.randrange(len(content))
        damaged = bytearray(content)
        damaged[position] = rng.choice([b for b in range(256) if b != content[position]])
        content = bytes(damaged)
    elif kind == "cut":
        content = content[: rng.randrange(len(content) - len(lines[-1]) + 1, len(content))]
    else:
        index = rng.randrange(len(lines) - 1)
        if kind == "drop":
            del lines[index]
        elif kind == "repeat":
            lines.insert(index, lines[index])
        else:
            lines[index], lines[index + 1] = lines[index + 1], lines[index]
        content = b"".join(lines)
    path.write_bytes(content)
    with pytest.raises(RecordError):
        read_records(path)


def test_an_undamaged_file_is_read_as_written(tmp_path):
    path = tmp_path / "folder" / "records.jsonl"
    writer = RecordWriter(path, {"first": True}, mode=0o600)
    writer.append({"value": 0.1 + 0.2})
    assert read_records(path) == [{"first": True}, {"value": 0.1 + 0.2}]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_is_not_a_number_is_not_recorded(tmp_path):
    writer = RecordWriter(tmp_path / "records.jsonl", {})
    with pytest.raises(RecordError, match=r"not finite: secret, value$"):
        writer.append({"secret": 77, "value": float("nan")})
    assert read_records(tmp_path / "records.jsonl") == [{}]


def test_steps_must_count_up(tmp_path):
    path = tmp_path / "records.jsonl"
    writer = RecordWriter(path, {"format": FORMAT})
    writer.append({"step": 1, "seeds": [1], "coefficients": [1.0], "learning_rate": 0.1})
    with pytest.raises(RecordError, match="step 1 where step 0 belongs"):
        transcript.read(path)
