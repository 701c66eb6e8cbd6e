"""The slow way: the step and the generation that `scripts/bench.sh` compares with."""

from __future__ import annotations

import gc
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

CANDIDATES = (4, 5)
EPS, LEARNING_RATE = 1e-3, 1e-4
MICRO_BATCH = 16


def reference_step(model: nn.Module, prompts: Sequence[Sequence[int]], labels: Sequence[int], seed: int) -> None:
    """One step on one-token candidates: two perturbed passes, a third for a log line, one update."""
    _perturb(model, seed, EPS)
    plus = _losses(model, prompts, labels)
    _perturb(model, seed, -2 * EPS)
    minus = _losses(model, prompts, labels)
    _perturb(model, seed, EPS)
    _losses(model, prompts, labels)
    sign = 1.0 if (plus - minus).mean() >= 0 else -1.0
    _perturb(model, seed, -LEARNING_RATE * sign)


@torch.no_grad()
def _perturb(model: nn.Module, seed: int, scale: float) -> None:
    """theta <- theta + scale z, one random draw and one addition a parameter."""
    generators: dict[torch.device, torch.Generator] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            device = parameter.device
            generator = generators.setdefault(device, torch.Generator(device).manual_seed(seed))
            z = torch.randn(parameter.shape, generator=generator, device=device, dtype=parameter.dtype)
            parameter.add_(z, alpha=scale)


@torch.no_grad()
def _losses(model: nn.Module, prompts: Sequence[Sequence[int]], labels: Sequence[int]) -> Tensor:
    """float32 (N,): every candidate its own sequence, all as long as the longest, the head at every position."""
    device = next(model.parameters()).device
    width = max(len(prompt) for prompt in prompts) + 1
    ids = torch.zeros(len(prompts) * len(CANDIDATES), width, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        for column, candidate in enumerate(CANDIDATES):
            index = row * len(CANDIDATES) + column
            ids[index, : len(prompt) + 1] = torch.tensor([*prompt, candidate])
            mask[index, : len(prompt) + 1] = 1
    scores = []
    for begin in range(0, len(ids), MICRO_BATCH):
        part = ids[begin : begin + MICRO_BATCH].to(device)
        part_mask = mask[begin : begin + MICRO_BATCH].to(device)
        logits = model(input_ids=part, attention_mask=part_mask).logits
        log_probs = logits[:, :-1].float().log_softmax(-1).gather(2, part[:, 1:, None])[..., 0]
        last = part_mask.sum(1) - 2
        scores.append(log_probs[torch.arange(len(part), device=device), last].cpu())
        del logits, log_probs
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    table = torch.cat(scores).view(len(prompts), len(CANDIDATES))
    return torch.nn.functional.cross_entropy(table, torch.tensor(labels), reduction="none")


@torch.no_grad()
def reference_generation(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stops: Sequence[int],
) -> list[str]:
    """The library's `generate` on micro-batches of 16, each padded to the longest prompt of all."""
    device = next(model.parameters()).device
    width = max(len(prompt) for prompt in prompts)
    texts: list[str] = []
    for begin in range(0, len(prompts), MICRO_BATCH):
        part = prompts[begin : begin + MICRO_BATCH]
        ids = torch.zeros(len(part), width, dtype=torch.int64, device=device)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(part):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        output = model.generate(  # type: ignore[operator]
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=list(stops),
            pad_token_id=tokenizer.pad_token_id,
        )
        decoded = tokenizer.batch_decode(output[:, width:], skip_special_tokens=True)
        texts += [text.split("\n")[0].strip() for text in decoded]
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return texts
