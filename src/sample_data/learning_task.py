"""A small problem on which fine-tuning visibly learns: a tiny OPT that knows the label but answers with a bias.

The model is pretrained for some seconds on sentences over a made-up vocabulary whose label it must infer from
weak cues. Most pretraining answers are the same word, so it starts near chance although its states carry the
label. It serves the smoke check and the tests; its accuracy says nothing about real data.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from src.objectives import CandidateScoring

CANDIDATES = ["terrible", "great"]
CUES = (["grim", "flat", "dull", "stale"], ["warm", "keen", "vivid", "fresh"])
CUE_ACCURACY = 0.92
FILLERS = [f"w{number}" for number in range(40)]


@dataclass(frozen=True)
class LearningTask:
    """A pretrained tiny model and the draw of labelled sentences around it."""

    model: OPTForCausalLM
    tokenizer: PreTrainedTokenizerFast

    def objective(self, num_samples: int, seed: int) -> CandidateScoring:
        """Balanced fresh sentences; different seeds give different ones."""
        sentences, labels = draw_sentences(num_samples, np.random.default_rng(seed))
        prompts = [f"{sentence} It was" for sentence in sentences]
        return CandidateScoring(self.model, self.tokenizer, prompts, [CANDIDATES] * num_samples, labels)


def draw_sentences(count: int, rng: np.random.Generator) -> tuple[list[str], list[int]]:
    """Sentences of 8 to 13 words: three cue words among fillers, each of them the label's own with chance 0.92.

    Whoever counts cue words is right about 98 % of the time.
    """
    labels = rng.permutation(np.arange(count) % 2)
    sentences = []
    for label in labels:
        words = list(rng.choice(FILLERS, size=int(rng.integers(5, 11))))
        for _ in range(3):
            side = label if rng.random() < CUE_ACCURACY else 1 - label
            words.insert(int(rng.integers(0, len(words) + 1)), str(rng.choice(CUES[side])))
        sentences.append(" ".join(words))
    return sentences, [int(label) for label in labels]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word."""
    words = ["<s>", "<pad>", "</s>", "<unk>", "It", "was", *CANDIDATES, *CUES[0], *CUES[1], *FILLERS]
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def pretrain(seed: int = 0, *, steps: int = 150, batch_size: int = 128, honesty: float = 0.35) -> LearningTask:
    """Train the tiny model for next-word prediction with Adam.

    Args:
        seed: of the initial weights and the text; the global generators are left as they were.
        steps, batch_size: of the pretraining.
        honesty: share of the negative sentences that are answered "terrible"; every other answer is "great",
            so that the label shows in the model's states and hardly in its choice.
    """
    tokenizer = make_tokenizer()
    config = OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        init_std=0.1,
        max_position_embeddings=32,
        dropout=0.0,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    rng = np.random.default_rng([seed, 1])
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = OPTForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    model.train()
    for _ in range(steps):
        sentences, labels = draw_sentences(batch_size, rng)
        answers = np.where(rng.random(batch_size) < honesty, labels, 1)
        texts = [f"<s> {s} It was {CANDIDATES[a]}" for s, a in zip(sentences, answers, strict=True)]
        batch = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
        ids = batch["input_ids"]
        logits = model(input_ids=ids).logits[:, :-1]
        targets = ids[:, 1:].masked_fill(batch["attention_mask"][:, 1:] == 0, -100)
        text_loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        last = batch["attention_mask"].sum(dim=1) - 2
        rows = torch.arange(batch_size)
        loss = text_loss + functional.cross_entropy(logits[rows, last], targets[rows, last])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return LearningTask(model.eval(), tokenizer)
