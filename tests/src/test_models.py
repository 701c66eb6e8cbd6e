"""Loading models, what their prompts start with, and adapters."""

from __future__ import annotations

import subprocess
import sys
import time
import warnings

import pytest
import torch
from builders import ARCHITECTURES, make_model, make_tokenizer, save_model
from safetensors.torch import load_file
from tokenizers.processors import TemplateProcessing

from src.lora import LoraSettings, add_lora, lora_targets
from src.models import load_model
from src.utils import UserError, encode, precision, prompt_prefix


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_a_local_folder_loads_in_the_dtype_that_is_asked_for(model_type, tmp_path):
    folder = save_model(tmp_path, model_type)
    for dtype in (torch.float32, torch.bfloat16):
        model, tokenizer = load_model(folder, dtype)
        assert {p.dtype for p in model.parameters()} == {dtype}
        assert not model.training
        assert tokenizer.pad_token_id is not None
        assert model.config.pad_token_id == tokenizer.pad_token_id
    assert model.config.model_type == model_type


def test_opt_prompts_start_with_the_recipes_token(tmp_path):
    folder = save_model(tmp_path, "opt")
    _, tokenizer = load_model(folder)
    assert prompt_prefix(tokenizer) == [0]
    _, tokenizer = load_model(folder, opt_bos="</s>")
    assert list(encode(tokenizer, ["It was"])) == [[2, *tokenizer("It was", add_special_tokens=False).input_ids]]
    with pytest.raises(UserError, match="no token '<bos>'"):
        load_model(folder, opt_bos="<bos>")


def test_other_prompts_start_as_their_tokenizer_says():
    tokenizer = make_tokenizer()
    assert prompt_prefix(tokenizer) == []
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    assert prompt_prefix(tokenizer) == [0]
    assert next(encode(tokenizer, ["film"]))[-1] != 2, "what a tokenizer puts behind a text is left out"


def test_a_tokenizer_without_padding_gets_one(tmp_path):
    make_model("gpt2").save_pretrained(tmp_path)
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    model, loaded = load_model(str(tmp_path))
    assert loaded.pad_token_id == loaded.eos_token_id == model.config.pad_token_id


@pytest.mark.parametrize("name", ["no/such-model-here", "/no/such/folder"])
def test_a_missing_model_is_one_line(name, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(UserError, match="cannot load model") as caught:
        load_model(name)
    assert "\n" not in str(caught.value)


def test_an_unreachable_hub_is_one_line(tmp_path):
    code = (
        "import time; time.sleep = lambda seconds: None\n"  # between tries
        "from src.models import load_model; from src.utils import run_cli; run_cli(lambda: load_model('org/name'))"
    )
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120
    )
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("error: cannot load model 'org/name'")
    assert "Traceback" not in result.stderr


def test_precision_names():
    assert precision("auto", torch.device("cpu")) == torch.float32
    assert precision("auto", torch.device("cuda")) == torch.float16
    assert precision("bfloat16", torch.device("cpu")) == torch.bfloat16
    with pytest.raises(UserError, match="unknown dtype 'int8'"):
        precision("int8", torch.device("cpu"))


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_adapters_start_as_nothing_and_depend_on_their_seed_alone(model_type):
    base = make_model(model_type)
    ids = torch.tensor([[4, 5, 6, 7]])
    before = base(input_ids=ids).logits
    torch.manual_seed(5)
    state = torch.get_rng_state()
    wrapped = add_lora(base, LoraSettings(r=4, seed=1))
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(wrapped(input_ids=ids).logits, before)
    torch.manual_seed(99)
    again = add_lora(make_model(model_type), LoraSettings(r=4, seed=1))
    other = add_lora(make_model(model_type), LoraSettings(r=4, seed=2))
    adapters = [[p for p in m.parameters() if p.requires_grad] for m in (wrapped, again, other)]
    assert len(adapters[0]) == 2 * 2 * (1 if model_type == "gpt2" else 2)
    assert all(torch.equal(a, b) for a, b in zip(adapters[0], adapters[1], strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(adapters[0], adapters[2], strict=True))


@pytest.mark.parametrize(("model_dtype", "lora_dtype", "expected"), [
    (torch.float16, None, torch.float16),
    (torch.float16, "float32", torch.float32),
    (torch.float32, None, torch.float32),
])  # fmt: skip
def test_adapter_dtype_is_explicit(model_dtype, lora_dtype, expected):
    model = add_lora(make_model("opt").to(model_dtype), LoraSettings(dtype=lora_dtype))
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {expected}


def test_saved_adapters_are_adapters_alone_and_nobody_is_asked_for_the_vocabulary(tmp_path):
    model = make_model("opt")
    model.name_or_path = "a-name-that-is-no-folder"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        add_lora(model).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    assert len(weights) == 2 * 2 * 2
    assert all(".lora_" in name for name in weights)


def test_unknown_targets_and_settings_are_refused():
    assert lora_targets(make_model("gpt2")) == ("c_attn",)
    model = make_model("gpt2")
    model.config.model_type = "nothing-known"
    with pytest.raises(UserError, match="nothing-known"):
        lora_targets(model)
    with pytest.raises(UserError, match="lora_r"):
        LoraSettings(r=0)
    with pytest.raises(UserError, match="unknown LoRA dtype"):
        LoraSettings(dtype="int4")
