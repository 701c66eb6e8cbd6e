"""Tiny random models of several architectures and a word tokenizer."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

WORDS = [
    "It",
    "was",
    "terrible",
    "great",
    "so",
    "very",
    "good",
    "bad",
    "a",
    "film",
    "plot",
    "actor",
    "the",
    "and",
    "of",
    "dull",
    "bright",
    "warm",
    "cold",
    "slow",
]
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32, "dropout": 0.1},
    "llama": {"intermediate_size": 64, "num_key_value_heads": 2},
    "mistral": {"intermediate_size": 64, "num_key_value_heads": 2},
    "qwen2": {"intermediate_size": 64, "num_key_value_heads": 2},
    "gemma": {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; an unknown word is split into characters where there are tokens for them."""
    tokens = SPECIAL + WORDS + [chr(c) for c in range(ord("a"), ord("z") + 1)]
    core = Tokenizer(
        models.WordPiece(
            {t: i for i, t in enumerate(dict.fromkeys(tokens))}, unk_token="<unk>", continuing_subword_prefix=""
        )
    )
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


# Repeated so often that most of these become one token behind a space or a line break; the rest stays in pieces.
COMMON_TEXT = (
    "It was great terrible good bad okay\nYes\nNo\nMaybe The answer is Yes No Maybe the of and in to a " * 40
)
TEXT_VOCABULARY = 400


@functools.cache
def _text_core() -> str:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        [COMMON_TEXT],
        trainers.BpeTrainer(
            vocab_size=TEXT_VOCABULARY, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
        ),
    )
    return core.to_str()


def make_text_tokenizer(*, bos: bool = True) -> PreTrainedTokenizerFast:
    """Any text as bytes and a few longer pieces, as GPT-2's; `bos` puts <s> in front of a text."""
    core = Tokenizer.from_str(_text_core())
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def make_model(
    model_type: str,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    vocab_size: int | None = None,
    positions: int = 256,
) -> PreTrainedModel:
    """A random two-layer model of the given architecture, hidden size 32; `make_tokenizer`'s words by default."""
    common = {
        "vocab_size": len(make_tokenizer()) if vocab_size is None else vocab_size,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": positions,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "initializer_range": 0.1,
        "init_std": 0.1,
    }
    settings = {**common, **ARCHITECTURES[model_type]}
    if "n_positions" in settings:
        settings["n_positions"] = positions
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings), dtype=dtype)
        # Biases and layer norms start as constants; make them tell when they are left out.
        for parameter in model.parameters():
            parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def save_model(folder: Path, model_type: str = "opt") -> str:
    """A tiny model and its tokenizer as a local folder."""
    make_model(model_type).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


def save_text_model(folder: Path, model_type: str = "opt", *, positions: int = 1024) -> str:
    """A tiny model that reads any text, and its tokenizer, as a local folder."""
    tokenizer = make_text_tokenizer(bos=model_type in ("opt", "llama"))
    make_model(model_type, vocab_size=len(tokenizer), positions=positions).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
