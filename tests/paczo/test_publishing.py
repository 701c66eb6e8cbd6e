"""What leaves a run: nothing of the secret index, the card's words, the upload's folder, the kind of secrets."""

from __future__ import annotations

import json
import re
from concurrent.futures import Future
from pathlib import Path

import pytest
from lives import live, make_dp_trainer, make_trainer

from paczo import bounds
from paczo.mechanisms import PacMI, PacZPL
from paczo.publishing import model_card
from paczo.randomness import SecretRandom
from src import transcript

ROOT = Path(__file__).resolve().parents[2]
SHORT = {"max_steps": 12, "save_steps": 6, "eval_steps": 6, "logging_steps": 6}


def public_files(folder):
    """All files but the private ones; clocks and the path of the folder left out, and the spent nats.

    Those are a function of the noisy signs, for which the budget accounts.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "private" not in path.relative_to(folder).parts:
            content = path.read_bytes().replace(str(folder).encode(), b"RUN")
            if path.suffix == ".json":
                content = re.sub(rb'"([a-z_]*(runtime|per_second)|spent_nats)": [-+.e\d]+', b"", content)
            if path.name == "README.md":
                content = re.sub(rb"Spent: [-+.e\d]+ nats", b"", content)
            if path.name != "training_args.bin":  # holds the folder's name, and no more than the settings
                found[str(path.relative_to(folder))] = content
    return found


@pytest.mark.parametrize(
    "mechanism",
    [
        {},
        {"pac_charge": "bit"},
        {"pac_mi": None, "pac_zpl": True},
        {"pac_mi": None, "pac_zpl": True, "pac_zpl_abstain": True},
    ],
    ids=["real", "bit", "coin", "abstain"],
)
def test_runs_that_differ_in_the_secret_index_only_publish_the_same(mechanism, tmp_path, monkeypatch):
    """The bits are forced, so whatever else differed in a public file would be a trace of S*."""
    released = (PacMI.release, PacZPL.release)

    def forced(original):
        def release(self, signs):
            result = original(self, signs)
            object.__setattr__(result, "bit", 1.0 if self.releases % 3 else -1.0)
            return result

        return release

    monkeypatch.setattr(PacMI, "release", forced(released[0]))
    monkeypatch.setattr(PacZPL, "release", forced(released[1]))
    original = SecretRandom.uniform_index
    changes = {**SHORT, **mechanism}
    runs, ledgers = [], []
    for secret in (1, 6):
        monkeypatch.setattr(
            SecretRandom,
            "uniform_index",
            lambda self, purpose, index, n, s=secret: (
                s if purpose == "secret" else original(self, purpose, index, n)
            ),
        )
        folder = tmp_path / str(secret)
        live(folder, **changes)
        runs.append(public_files(folder))
        ledgers.append((folder / "private" / "ledger.jsonl").read_bytes())
    assert runs[0].keys() == runs[1].keys()
    assert {"transcript.jsonl", "checkpoints/checkpoint-12/model.safetensors"} <= runs[0].keys()
    for name, content in runs[0].items():
        assert content == runs[1][name], name
    assert ledgers[0] != ledgers[1]


@pytest.mark.parametrize("mechanism", [{"pac_mi": None, "pac_zpl": True}, {"pac_mi": 0.05}])
def test_one_public_seed_without_a_secret_seed_gives_other_coins_and_noise(mechanism, tmp_path):
    changes = {**SHORT, **mechanism, "count": 6, "max_steps": 60}
    transcripts, ids, noise = set(), set(), set()
    for run in range(3):
        folder = tmp_path / str(run)
        live(folder, **changes, pac_secret_seed=None)
        head, steps = transcript.read(folder / "transcript.jsonl")
        assert head["public"]["secrets"] == "operating-system entropy"
        ids.add(head["public"]["run_id"])
        transcripts.add(str([step.coefficients for step in steps]))
        lines = [json.loads(line) for line in (folder / "private" / "ledger.jsonl").read_text().splitlines()]
        noise.add(str([r["noisy_sign"] for line in lines[1:-1] for r in line["releases"]]))
    assert len(ids) == len(transcripts) == 3
    assert len(noise) == (3 if mechanism["pac_mi"] else 1)
    live(tmp_path / "seeded", **changes, pac_secret_seed=4)
    head, _ = transcript.read(tmp_path / "seeded" / "transcript.jsonl")
    assert head["public"]["secrets"] == "reproducible secrets, not private"


def test_the_card_says_what_holds(tmp_path):
    trainer = make_trainer(tmp_path, pac_mi=0.33, pac_secret_seed=None, **SHORT)
    trainer.train()
    card = (tmp_path / "checkpoints" / "checkpoint-12" / "README.md").read_text()
    for words in (
        "at most 0.8819",
        "without the model it is 0.5000",
        "epsilon 2.01",
        "Budget: 0.33 nats",
        "dev set",
    ):
        assert words in card
    assert f"Spent: {trainer.privacy()['spent_nats']:.6g} nats" in card
    assert "true positive rate of at most, at a false positive rate: 0.6834 at 0; 0.6885 at 0.001" in card
    assert "The noise is drawn in floating point" in card
    assert "operating-system entropy" in card
    assert "Not private" not in card
    trainer.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "README.md").read_text() == card
    assert not (tmp_path / "saved" / "private").exists()


def test_the_card_does_not_praise_what_is_not_private(tmp_path):
    seeded = make_trainer(tmp_path / "a", **SHORT)
    assert "**Not private:** the secrets of this run are reproducible" in card_of(seeded)
    plain = make_trainer(tmp_path / "b", **{**SHORT, "pac_mi": None, "no_privacy": True, "pac_secret_seed": None})
    assert "**Not private.**" in card_of(plain)
    assert "what it tells of its training data is not accounted" in card_of(plain)
    assert "nats" not in card_of(plain)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pac_charge": "bit"}, "drawn exactly from 53 random bits"),
        ({"pac_mi": None, "pac_zpl": True}, "a coin that depends on no data"),
        (
            {"pac_mi": None, "pac_zpl": True, "pac_zpl_abstain": True},
            "nothing is released, which the adversary could",
        ),
    ],
)
def test_the_card_says_how_releases_come_about(changes, words, tmp_path):
    card = card_of(make_trainer(tmp_path, **{**SHORT, **changes}))
    assert words in card
    assert "floating point" not in card


def card_of(trainer):
    return model_card(trainer.privacy(), trainer.public_header(), library="transformers")


@pytest.mark.parametrize("make", [make_trainer, make_dp_trainer])
def test_an_upload_holds_nothing_private(make, tmp_path, monkeypatch):
    """The library's upload is replaced; what it would have sent is looked at, on the way and at the end."""
    from transformers import trainer as library

    sent = []

    class Hub:
        def upload_folder(self, *, folder_path, **kwargs):
            sent.append({str(p.relative_to(folder_path)): p for p in Path(folder_path).rglob("*")})
            assert not any(b"hf_TOKEN" in path.read_bytes() for path in sent[-1].values() if path.is_file())
            job = Future()
            job.set_result(None)
            return job

        def create_repo(self, name, **kwargs):
            return type("Url", (), {"repo_id": f"me/{name}"})()

    monkeypatch.setattr(library, "hf_api", Hub, raising=False)
    trainer = make(tmp_path / "run", **SHORT, push_to_hub=True, hub_model_id="me/run", hub_token="hf_TOKEN")
    trainer.train()
    of_checkpoints = len(sent)
    trainer.push_to_hub()
    assert 0 < of_checkpoints < len(sent)
    assert {"model.safetensors", "README.md", "transcript.jsonl"} <= sent[-1].keys()
    assert "not private" in sent[-1]["README.md"].read_text().lower()
    assert not any(word in name for names in sent for name in names for word in ("private", "ledger", "head"))
    assert trainer.run_dir == tmp_path / "run"
    assert trainer.args.hub_token == "hf_TOKEN"


def test_parameters_are_written_in_one_place_only():
    """Apart from noise, reading weights, the dtype of new adapters, and what trains or rounds other models.

    That is the small problem's pretraining, the control of the audit of canaries, the attacks on an unlearned
    model, and the mean of gradients that processes of an unlearning run share.
    """
    operation = r"\.(add|mul|sub|div|copy|fill|zero|lerp|addcmul|addcdiv|neg|normal|uniform)_\("
    writes = re.compile(rf"{operation}|(?<!self)\.data = |load_state_dict\(|optimizer\.step\(")
    files = [path for folder in ("src", "paczo", "baselines") for path in (ROOT / folder).rglob("*.py")]
    found = {path.name for path in files if writes.search(path.read_text(encoding="utf-8"))}
    weights = {"directions.py", "noise.py", "models.py", "lora.py", "checkpoints.py"}
    assert found == {*weights, "learning_task.py", "universe.py", "relearn.py", "quantize.py", "processes.py"}


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (["--mi", "0.33"], ["0.881888", "2.0104", "0.6834", "0.1558", "nothing else", "below 0.007467"]),
        (["--mi", "0.33", "--num_subsets", "2"], ["naming S* among M = 2 ", "0.8819"]),
        (["--mi", "0.33", "--prior", "0.75"], ["1.000000", "0.250000"]),
        (["--eps", "2", "--delta", "1e-5"], ["0.880798", "0.380798"]),
        ([], ["0.507071", "0.998204"]),
    ],
)
def test_the_bounds_are_printed(words, lines, capsys):
    bounds.main(words)
    shown = capsys.readouterr().out
    for line in lines:
        assert line in shown


@pytest.mark.parametrize(
    "words",
    [
        ["--mi", "-1"],
        ["--mi", "nan"],
        ["--mi", "x"],
        ["--prior", "1"],
        ["--eps", "-1"],
        ["--delta", "0.1"],
        ["--m", "1"],
        ["--eps", "1", "--mi", "1"],
        ["--mi", "0.1", "--num_subsets", "1"],
    ],
)
def test_wrong_numbers_are_one_line(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        bounds.main(words)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
