"""Tiny random models of every architecture that has a disguise, and short PUM runs on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from pum.arguments import PUMArguments
from pum.pum_trainer import Inner, PUMTrainer

SETTINGS: dict[str, dict[str, Any]] = {
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0},
    "llama": {"intermediate_size": 48, "attention_bias": True, "mlp_bias": True},
    "mistral": {"intermediate_size": 48, "head_dim": 16},
    "qwen2": {"intermediate_size": 48},
    "qwen3": {"intermediate_size": 48, "head_dim": 16},
    "gemma": {"intermediate_size": 48, "head_dim": 16},
    "stablelm": {"intermediate_size": 48, "partial_rotary_factor": 0.5, "use_qkv_bias": True},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
}


def tiny(model_type: str, *, seed: int = 0, layers: int = 2, **overrides: Any) -> PreTrainedModel:
    """A random float32 model with hidden size 32 and four heads; no bias or norm is left at its constant."""
    common = {
        "vocab_size": 50,
        "hidden_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "attn_implementation": "eager",
    }
    settings = {**common, **SETTINGS[model_type], **overrides}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = AutoConfig.for_model(model_type, **settings)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def tokens(batch: int = 3, length: int = 12) -> torch.Tensor:
    return torch.randint(3, 50, (batch, length), generator=torch.Generator().manual_seed(5))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


State = dict[str, Tensor]


def state(model: nn.Module) -> State:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def run(model: nn.Module, folder: Path, inner: Inner | None, **settings: Any) -> PUMTrainer:
    """A PUM run of `inner`; `model` is changed in place."""
    base = {"use_cpu": True, "local_max_steps": 3, "secret_seed": 1, "disable_tqdm": True, "fingerprint": False}
    base |= {"alpha_max": 1.5, "use_orthogonal_reparam": True}
    args = PUMArguments(**{"output_dir": str(folder), **base, **settings})
    trainer = PUMTrainer(model, args, inner=inner)
    trainer.train()
    return trainer


def lm_steps(steps: int, lr: float) -> Inner:
    """Plain SGD on a language-model loss."""

    def inner(model: nn.Module, run_dir: Path, max_steps: int) -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        for _ in range(steps):
            optimizer.zero_grad()
            model(input_ids=tokens(), labels=tokens()).loss.backward()
            optimizer.step()

    return inner


def recorder(copies: list[State], then: Inner | None = None) -> Inner:
    def inner(model: nn.Module, run_dir: Path, max_steps: int) -> None:
        copies.append(state(model))
        if then is not None:
            then(model, run_dir, max_steps)

    return inner


def peak_bytes(function: Callable[[], object]) -> int:
    """Most bytes that tensors held at once during `function`, from every allocation and release on the CPU."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    held = peak = 0
    events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
