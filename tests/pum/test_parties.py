"""Two parties over folders: their result is that of one process, and what each folder holds and does not hold."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
from pathlib import Path

import parties as p
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from pum.check import main as check
from pum.noise import SecretSource, draw_alphas
from pum.publish import main as publish
from pum.server import Server
from src.models import load_model
from src.utils import UserError

ROOT = Path(__file__).resolve().parents[2]
CLIPPED = (
    "--jitter_tau 0.001 --center_clip_C_per_layer [1.0,1.2] --center_clip_C_global 2.0 --theta_ref_beta 0.25"
    " --clip_update_norm 0.3 --copies_m 3"
)


@pytest.mark.parametrize(
    ("model_type", "more", "rounds"), [("llama", "", 1), ("opt", CLIPPED, 2)], ids=["one round", "all settings"]
)
def test_two_parties_give_what_one_process_gives(model_type: str, more: str, rounds: int, tmp_path: Path) -> None:
    two = p.parties(tmp_path, servers=f"{p.SERVERS} {more}", rounds=rounds, model_type=model_type)
    merged = two.run()
    assert p.same(merged, two.one_process(tmp_path / "one"))
    before = load_file(tmp_path / "model" / "model.safetensors")
    assert max(float((merged[name] - before[name]).abs().max()) for name in merged) > 1e-3
    report = json.loads((two.output / "privacy.json").read_text())
    assert report == json.loads((tmp_path / "one" / "privacy.json").read_text())
    assert not (tmp_path / "one" / "private").exists()
    assert sorted(path.name for path in two.private.iterdir()) == [
        "chain.jsonl",
        "model",
        f"theta{rounds}.safetensors",
    ]


def test_every_copy_is_an_ordinary_model(tmp_path: Path) -> None:
    """For each architecture the library loads a copy without a word, and the copy is what its file says."""
    for model_type in ("llama", "opt", "qwen2", "gemma", "gpt2"):
        root = tmp_path / model_type
        root.mkdir()
        plain = " --use_orthogonal_reparam False" if model_type == "gpt2" else ""
        two = p.parties(root, servers=p.SERVERS + plain, model_type=model_type)
        p.publish(two.first())
        folder = two.offer() / "copy2"
        model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        stored = load_file(folder / "model.safetensors")
        parameters = dict(model.named_parameters())
        assert p.same(stored, {name: parameters[name].data for name in stored})
        assert set(stored) == set(parameters)
        assert len(AutoTokenizer.from_pretrained(folder)) == len(load_model(two.model)[1])


def test_the_key_is_the_operating_systems_and_copies_are_functions_of_it(tmp_path: Path) -> None:
    two = p.parties(tmp_path, servers="--copies_m 2 --sigma 0.01")
    p.publish(two.first())
    key = (two.private / "key").read_bytes()
    assert len(key) == 32
    assert two.private.stat().st_mode & 0o777 == 0o700
    assert (two.private / "key").stat().st_mode & 0o777 == 0o600
    server = Server.open(two.private)
    again = dict(server.publication().copy(0))
    server.folder.close()
    assert p.same(load_file(two.offer() / "copy1" / "model.safetensors"), again)
    report = json.loads((two.private / "chain.jsonl").read_text().splitlines()[0])
    assert report["secret_seed"] is None
    (two.private).chmod(0o755)
    with pytest.raises(UserError, match="can be read by others"):
        p.publish(["--private", str(two.private)])


# --- a client that is not ours

FOREIGN = """
import hashlib, json, sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

offer, reply = map(Path, sys.argv[1:])
said = json.loads((offer / "manifest.json").read_text())
reply.mkdir(parents=True)
entries = []
for k in range(1, len(said["copies"]) + 1):
    folder = offer / f"copy{k}"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    batch = tokenizer("the plot was slow and cold", return_tensors="pt")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (-model(**batch, labels=batch["input_ids"]).loss).backward()
        optimizer.step()
    before, after = load_file(folder / "model.safetensors"), dict(model.named_parameters())
    save_file({name: (after[name].detach() - before[name]) for name in before}, reply / f"copy{k}.safetensors")
    digest = hashlib.sha256((reply / f"copy{k}.safetensors").read_bytes()).hexdigest()
    entries.append({"copy": k, "method": "ascent", "steps": 3, "kind": "difference", "sha256": digest})
content = {"format": "pum-reply/1", "offer": said["offer"], "round": said["round"], "copies": entries}
text = json.dumps(content, sort_keys=True, separators=(",", ":"))
content["sha256"] = hashlib.sha256(text.encode()).hexdigest()
(reply / "manifest.json").write_text(json.dumps(content))
"""


def test_a_client_that_is_not_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of this project it has the offer alone; its update on the first copy is undisguised and merged."""
    two = p.parties(tmp_path, servers="--copies_m 2 --sigma 0.0 --alpha_max 1.0")
    p.publish(two.first())
    (tmp_path / "foreign.py").write_text(FOREIGN)
    words = [sys.executable, "-I", str(tmp_path / "foreign.py"), str(two.offer()), str(two.reply())]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    check([str(two.offer()), str(two.reply()), "--offer", str(two.offer())])
    assert "3 steps of ascent" in capsys.readouterr().out
    p.merge(two.merging())
    merged, before = (
        load_file(two.output / "model.safetensors"),
        load_file(tmp_path / "model" / "model.safetensors"),
    )
    # SGD commutes with the disguise and there is no noise: the merged update is that of the model itself.
    model, tokenizer = load_model(two.model)
    batch = tokenizer("the plot was slow and cold", return_tensors="pt")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (-model(**batch, labels=batch["input_ids"]).loss).backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(merged[name], parameter.data, rtol=0, atol=2e-5)
    assert max(float((merged[name] - before[name]).abs().max()) for name in merged) > 1e-2


def test_adapters_and_half_precision_come_back_too(tmp_path: Path) -> None:
    lora = f"{p.CLIENTS} --lora True --lora_r 3 --learning_rate 0.1"
    results = []
    for name, more in (("difference", ""), ("adapters", " --send_adapters True")):
        (tmp_path / name).mkdir()
        two = p.parties(tmp_path / name, clients=lora + more)
        results.append(two.run())
        sizes = {path.name: path.stat().st_size for path in two.reply().glob("*.safetensors")}
        assert (sizes["copy1.safetensors"] < 30_000) == (name == "adapters")
    before = load_file(tmp_path / "adapters" / "model" / "model.safetensors")
    for name, tensor in results[0].items():
        torch.testing.assert_close(results[1][name], tensor, rtol=0, atol=1e-6)
    changed = {name for name, tensor in results[1].items() if float((tensor - before[name]).abs().max()) > 1e-4}
    assert {name.split(".")[-2] for name in changed} == {"q_proj", "v_proj"}
    (tmp_path / "half").mkdir()
    two = p.parties(tmp_path / "half")
    p.publish([*two.first(), "--dtype", "bfloat16"])
    p.client(two.work())
    path = two.reply() / "copy1.safetensors"
    update = load_file(path)
    assert {tensor.dtype for tensor in update.values()} == {torch.float32}
    save_file({name: tensor.bfloat16() for name, tensor in update.items()}, path)
    p.sign(two.reply())
    p.merge(two.merging())
    assert {tensor.dtype for tensor in load_file(two.output / "model.safetensors").values()} == {torch.bfloat16}


# --- what is in no folder


def forms(number: float) -> list[bytes]:
    """A number as it could be written: both float formats in both byte orders, and text."""
    words = [struct.pack(code, number) for code in ("<f", ">f", "<d", ">d")]
    texts = (repr(number), f"{number:g}", f"{number:.6f}", f"{number:.6e}")
    return [*words, *(text.encode() for text in texts)]


def test_nothing_of_the_rows_is_in_a_reply(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    two = p.parties(tmp_path)
    canary, number = "zqxjkvbp wolfram", 8675309.125
    p.write_rows(tmp_path / "forget.jsonl", [(canary, f"so bad {number}"), ("the plot", "cold")])
    p.write_rows(tmp_path / "retain.jsonl", [("the film", f"good {canary} {number}")])
    p.publish(two.first())
    p.client([*two.work(), "--logging_steps", "1"])
    _, tokenizer = load_model(two.model)
    ids = tokenizer(f"{canary} {number}", add_special_tokens=False)["input_ids"]
    assert len(ids) > 10
    tokens = [b"".join(struct.pack(code, i) for i in ids) for code in ("<i", "<q", "<f")]
    needles = [canary.encode(), b"zqxjkvbp", *forms(number), *tokens, json.dumps(ids).encode()]
    files = [path for path in two.reply().rglob("*") if path.is_file()]
    assert sorted(path.name for path in files) == ["copy1.safetensors", "copy2.safetensors", "manifest.json"]
    for path in files:
        content = path.read_bytes()
        assert not [needle for needle in needles if needle in content], path
    keys = {key for entry in json.loads((two.reply() / "manifest.json").read_text())["copies"] for key in entry}
    assert keys == {"copy", "method", "steps", "kind", "sha256"}
    assert canary not in "".join(capfd.readouterr())


def test_nothing_secret_is_in_an_offer(tmp_path: Path) -> None:
    sigma, jitter = 0.0123456789, 0.00098765432
    names = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        secret = f"--copies_m 3 --sigma {sigma} --jitter_tau {jitter} --alpha_max 1.4567891"
        two = p.parties(tmp_path / name, servers=secret)
        p.publish(two.first())
        key = (two.private / "key").read_bytes()
        source = SecretSource(key)
        alphas = draw_alphas(3, 1.0, 1.4567891, source.generator("alpha", 0))
        theta = load_file(tmp_path / name / "model" / "model.safetensors")
        pieces = [
            tensor.numpy().tobytes()[start : start + 16] for tensor in theta.values() for start in (0, 32, 64)
        ]
        needles = [key, key.hex().encode(), *pieces, two.model.encode(), b"secret", b"sigma", b"alpha_", b"noise"]
        for number in (
            sigma,
            jitter,
            1.4567891,
            *alphas,
            *(1 / alpha for alpha in alphas),
            *(sigma * a for a in alphas),
        ):
            needles += forms(number)
        for path in (path for path in two.offer().rglob("*") if path.is_file()):
            content = path.read_bytes()
            assert not [needle for needle in needles if len(needle) > 3 and needle in content], path
        names.append(two.offer())
    # Of two offers of one model, all that has no key is equal, and no two copies share a number.
    one, other = (p.digests(folder) for folder in names)
    assert one.keys() == other.keys()
    different = {path.rpartition("/")[2] for path in one if one[path] != other[path]}
    assert different == {"manifest.json", "model.safetensors"}
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in names]
    assert {key for key in manifests[0] if manifests[0][key] != manifests[1][key]} == {"offer", "copies", "sha256"}
    assert "2025" not in json.dumps({**manifests[0], "copies": [], "offer": "", "sha256": ""})  # no date
    left, right = (load_file(folder / "copy1" / "model.safetensors") for folder in names)
    theta = load_file(tmp_path / "one" / "model" / "model.safetensors")
    for name, tensor in left.items():
        assert float((tensor == right[name]).float().mean()) < 0.01
        noises = [(copy[name] - theta[name]).flatten() for copy in (left, right)]
        if name.endswith("norm.weight") or "embed" in name:  # what no disguise moves
            correlation = float(torch.nn.functional.cosine_similarity(*noises, dim=0))
            assert abs(correlation) < 6 / math.sqrt(len(noises[0]))


def test_an_offer_does_not_say_where_the_model_came_from(tmp_path: Path) -> None:
    two = p.parties(tmp_path)
    for name in ("config.json", "tokenizer_config.json"):
        path = Path(two.model) / name
        planted = {"finetuned_from": "org/CANARY", "text": {"_name_or_path": "CANARY"}}
        if name != "config.json":
            del planted["finetuned_from"]
        path.write_text(json.dumps({**json.loads(path.read_text()), **planted}))
    p.publish(two.first())
    files = [path for path in two.offer().rglob("*") if path.is_file()]
    assert not [path for path in files if b"CANARY" in path.read_bytes()]
    load_model(str(two.offer() / "copy1"))


def test_the_servers_folder_lies_apart_from_all_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two = p.parties(tmp_path)
    monkeypatch.chdir(tmp_path)
    offer = tmp_path / "offer"
    for private in (offer, offer / "server", tmp_path):
        with pytest.raises(UserError, match="must lie apart"):
            publish([*two.first(), "--private", str(private)])
    assert not offer.exists()
    p.publish(two.first())
    p.client(two.work())
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"model", "offer", "server", "reply"}
    kept = p.digests(tmp_path)
    for output in (tmp_path, two.private / "model", offer, two.reply()):
        with pytest.raises(UserError, match="must lie apart"):
            p.merge([*two.merging(), "--output_dir", str(output), "--overwrite_output_dir"])
    assert p.digests(tmp_path) == kept


def test_so_they_do_with_noise_that_follows_theta_and_known_alphas(tmp_path: Path) -> None:
    servers = (
        "--copies_m 3 --secret_seed 1 --kappa 0.5 --alphas fixed --local_epochs 1 --clip_update_norm_per_layer"
    )
    two = p.parties(tmp_path, servers=f"{servers} [0.01,-1] --use_orthogonal_reparam True", rounds=2)
    merged = two.run()
    assert p.same(merged, two.one_process(tmp_path / "one"))


def test_an_offer_does_not_hold_the_servers_model(tmp_path: Path) -> None:
    two = p.parties(tmp_path, servers=f"{p.SERVERS} --client_reference server")
    with pytest.raises(UserError, match="an offer holds copies alone"):
        publish(two.first())
    assert not two.private.exists()
