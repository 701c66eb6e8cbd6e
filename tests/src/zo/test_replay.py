"""The transcript's command line on real folders: runs of every track, several dtypes, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from builders import save_model
from safetensors.torch import load_file, save_file

from src import transcript
from src.ht_opt import HeadSettings, add_head
from src.lora import LoraSettings, add_lora
from src.models import load_model
from src.objectives import CandidateScoring
from src.prefix import PrefixSettings, add_prefix
from src.transcript import main
from src.utils import UserError
from src.zo.arguments import ZOArguments
from src.zo.directions import ParameterSpace
from src.zo.trainer import ZOTrainer

TRACKS = {
    "ft": lambda model: model,
    "lora": lambda model: add_lora(model, LoraSettings(r=2, alpha=4, seed=3)),
    "prefix": lambda model: add_prefix(model, PrefixSettings(num_prefix=3, seed=3)),
    "head": lambda model: add_head(model, HeadSettings(tokens=(6, 7))),
}
PROMPTS = ["a very good film It was", "dull It was", "cold and slow It was", "warm It was"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("base"))


def train(base, folder, track, dtype=torch.float32):
    """Six steps with checkpoints after every second, the second best by force; the trained model."""
    model, tokenizer = load_model(base, dtype)
    model = TRACKS[track](model)
    args = ZOArguments(
        output_dir=str(folder),
        max_steps=6,
        learning_rate=0.01,
        weight_decay=0.1,
        save_strategy="steps",
        save_steps=2,
        logging_steps=2,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    objective = CandidateScoring(model, tokenizer, PROMPTS, [["terrible", "great"]] * 4, [1, 0, 0, 1])
    trainer = ZOTrainer(model, args, objective, processing_class=tokenizer)
    trainer.train()
    return trainer


def options(base, folder):
    return ["--model", base, "--transcript", str(folder / "transcript.jsonl")]


def weights(folder):
    return load_file(next(iter(folder.glob("*.safetensors"))))


@pytest.mark.parametrize("track", TRACKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_replay_rebuilds_the_trained_model_bit_for_bit(track, dtype, base, tmp_path, capsys):
    trainer = train(base, tmp_path, track, dtype)
    main(["replay", *options(base, tmp_path), "--out", str(tmp_path / "out")])
    rebuilt, trained = weights(tmp_path / "out"), weights(tmp_path / "checkpoints" / "checkpoint-6")
    assert rebuilt.keys() == trained.keys()
    for name, tensor in trained.items():
        assert torch.equal(rebuilt[name], tensor), name
        assert rebuilt[name].dtype == tensor.dtype == dtype
    for step in (2, 4, 6):
        main(
            [
                "verify",
                *options(base, tmp_path),
                "--checkpoint",
                str(tmp_path / "checkpoints" / f"checkpoint-{step}"),
            ]
        )
        assert f"after {step} of the transcript's 6 steps" in capsys.readouterr().out
    main(["verify", *options(base, tmp_path), "--checkpoint", str(tmp_path / "out")])
    sizes = [int(text.replace(",", "")) for text in re.findall(r"([\d,]+) bytes", capsys.readouterr().out)]
    assert sizes[0] == (tmp_path / "transcript.jsonl").stat().st_size
    assert sizes[1] == next(iter((tmp_path / "out").glob("*.safetensors"))).stat().st_size
    again = transcript.replay(load_model(base, dtype)[0], tmp_path / "transcript.jsonl")
    for left, right in zip(again.parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(left, right)


def test_part_of_a_transcript_gives_an_earlier_checkpoint(base, tmp_path):
    train(base, tmp_path, "lora")
    main(["replay", *options(base, tmp_path), "--out", str(tmp_path / "out"), "--steps", "4"])
    expected = weights(tmp_path / "checkpoints" / "checkpoint-4")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(tmp_path / "out").items())


@pytest.mark.parametrize("track", TRACKS)
def test_verify_finds_one_changed_bit(track, base, tmp_path):
    train(base, tmp_path, track)
    checkpoint = tmp_path / "checkpoints" / "checkpoint-4"
    file = next(iter(checkpoint.glob("*.safetensors")))
    tensors = load_file(file)
    name = sorted(tensors)[len(tensors) // 2]
    value = tensors[name].flatten()[-1]
    tensors[name].view(-1)[-1] = torch.nextafter(value, torch.tensor(9.0))
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"is not what .* gives after step 4"):
        main(["verify", *options(base, tmp_path), "--checkpoint", str(checkpoint)])


def test_verify_knows_the_step(base, tmp_path):
    """A checkpoint in the place of another is noticed."""
    train(base, tmp_path, "lora")
    folders = tmp_path / "checkpoints"
    shutil.copy(folders / "checkpoint-2" / "adapter_model.safetensors", folders / "checkpoint-6")
    with pytest.raises(UserError, match="after step 6, where it says"):
        main(["verify", *options(base, tmp_path), "--checkpoint", str(folders / "checkpoint-6")])


def test_an_unfinished_transcript_needs_a_word(base, tmp_path):
    train(base, tmp_path, "ft")
    path = tmp_path / "transcript.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-2]))
    checkpoint = str(tmp_path / "checkpoints" / "checkpoint-4")
    with pytest.raises(UserError, match="no closing line"):
        main(["verify", *options(base, tmp_path), "--checkpoint", checkpoint])
    main(["verify", *options(base, tmp_path), "--checkpoint", checkpoint, "--unfinished"])
    path.write_bytes(b"".join(lines[:-2]) + lines[-2][:20])
    with pytest.raises(UserError, match="last line is incomplete"):
        main(["verify", *options(base, tmp_path), "--checkpoint", checkpoint, "--unfinished"])


def test_the_closing_line_tells_other_arithmetic(base, tmp_path, monkeypatch):
    train(base, tmp_path, "ft")
    original = ParameterSpace.apply
    monkeypatch.setattr(
        ParameterSpace, "apply", lambda self, record: (original(self, record), original(self, record))
    )
    with pytest.raises(UserError, match="gives other parameters than the run"):
        main(["replay", *options(base, tmp_path), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_wrong_use_is_one_line(base, tmp_path):
    train(base, tmp_path, "lora")
    used = options(base, tmp_path)
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "model.safetensors").write_bytes(b"no weights")
    cases = [
        ([], "replay.verify"),
        (["rebuild"], "replay.verify"),
        (["replay", *used], "--out must name"),
        (["replay", *used, "--out", str(tmp_path)], "--out must name"),
        (["replay", *used, "--out", str(tmp_path / "out"), "--steps", "7"], "has 6 steps, not 7"),
        (["replay", "--model", base, "--out", "out"], "--transcript"),
        (["verify", *used, "--checkpoint", str(tmp_path / "nowhere")], "holds none of"),
        (["verify", *used, "--checkpoint", str(tmp_path / "torn")], "cannot read"),
        (["verify", *used, "--checkpoint", base], "is not what"),
        (["replay", "--model", base, "--transcript", str(tmp_path / "none"), "--out", "out"], "cannot read"),
    ]
    for words, message in cases:
        with pytest.raises(UserError, match=message):
            main(words)
    other = save_model(tmp_path / "other", "llama")
    with pytest.raises(UserError, match="started from another model"):
        main(["replay", *options(other, tmp_path), "--out", str(tmp_path / "out")])


def test_a_run_that_drifts_is_not_replayed(base, tmp_path):
    model, tokenizer = load_model(base)
    objective = CandidateScoring(model, tokenizer, PROMPTS, [["terrible", "great"]] * 4, [1, 0, 0, 1])
    args = ZOArguments(
        str(tmp_path), max_steps=1, zo_inplace=True, save_strategy="no", report_to="none", use_cpu=True
    )
    ZOTrainer(model, args, objective).train()
    with pytest.raises(UserError, match="zo_inplace"):
        main(["replay", *options(base, tmp_path), "--out", str(tmp_path / "out")])
    assert json.loads((tmp_path / "transcript.jsonl").read_text().splitlines()[0])["inplace"] is True
