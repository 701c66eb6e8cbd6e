"""Does forgetting last? Fine-tune a model on a few rows and see what comes back of the others.

A model that has only suppressed what it knew gets it back from rows that do not contain it, and gets it back
faster than the retain model, which never knew it and is given the same (arXiv 2406.13356).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import nn
from transformers import PreTrainedTokenizerBase

from src.tofu.attacked import METRICS
from src.tofu.metrics import probability, rouge_recalls
from src.tofu.passes import generate, teacher_forced
from src.tofu.prompts import ChatFormat, collate, encode_prompts, encode_rows, row_sequences
from src.tofu.rows import Row

CONFIDENCE = 0.95
Curve = dict[str, list[Any]]  # "steps", and for each metric one list a point of one value a row


@dataclass(frozen=True)
class RelearnSettings:
    """What the attacker does: AdamW without decay or warm-up, in batches of rows in a random order.

    Attributes:
        share: of the forget rows that the attacker has.
        steps, every: optimizer steps, and steps between two points of the curve.
        seed: of the rows' choice and order, which are the same for every model.
    """

    share: float = 0.1
    steps: int = 40
    every: int = 10
    learning_rate: float = 1e-5
    batch: int = 4
    seed: int = 0
    max_new_tokens: int = 200


def known_and_others(rows: Sequence[Row], share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """The rows that the attacker has, at least one, and the others, at least one, in the order of `rows`."""
    order = np.random.default_rng(seed).permutation(len(rows))
    count = min(max(1, math.ceil(share * len(rows))), len(rows) - 1)
    known = set(order[:count].tolist())
    return [row for i, row in enumerate(rows) if i in known], [row for i, row in enumerate(rows) if i not in known]


def relearn(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    taught: Sequence[Row],
    asked: Sequence[Row],
    settings: RelearnSettings,
    chat: ChatFormat,
) -> Curve:
    """Fine-tune `model`, in place, on `taught`; probability and ROUGE-L recall of each of `asked` on the way."""
    limit = getattr(model.config, "max_position_embeddings", None)
    sequences = row_sequences(tokenizer, asked, chat, max_length=limit)
    prompts = encode_prompts(tokenizer, [row["question"] for row in asked], chat, joins=True)
    curve: Curve = {"steps": [], **{name: [] for name in METRICS}}

    def look(step: int) -> None:
        texts = generate(model, tokenizer, prompts, max_new_tokens=settings.max_new_tokens)
        recalls = rouge_recalls([row["answer"] for row in asked], texts)
        curve["steps"].append(step)
        curve["prob"].append([probability(scored.loss) for scored in teacher_forced(model, sequences)])
        curve["rouge"].append([recall["rougeL_recall"] for recall in recalls])

    look(0)
    items = encode_rows(tokenizer, taught, chat, max_length=limit)
    device = next(model.parameters()).device
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)  # of dropout, where a model has any
        optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=0.0)
        for step, rows in zip(range(1, settings.steps + 1), _batches(items, settings), strict=False):
            model.train()
            model(**{name: tensor.to(device) for name, tensor in collate(rows).items()}).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if step % settings.every == 0 or step == settings.steps:
                look(step)
    return curve


def _batches(items: Sequence[Any], settings: RelearnSettings) -> Iterator[list[Any]]:
    """Batches without end; a new order for every pass over the rows."""
    rng = np.random.default_rng(settings.seed)
    while True:
        order = rng.permutation(len(items))
        for start in range(0, len(items), settings.batch):
            yield [items[i] for i in order[start : start + settings.batch]]


def area_between(curve: Curve, retain: Curve, name: str) -> dict[str, float]:
    """Area between two models' curves of one metric over the steps, a mean over rows, with its lower bound.

    Returns:
        area: in units of the metric, the mean distance between the curves, by trapezoids over the steps.
        low: its lower bound over the rows (`lower_bound`).
        gain, gain_low: likewise with both curves counted from where they start, what came back.
        start, end, retain_start, retain_end: means over the rows before and after, of both models.
        start_low: lower bound of the difference before.
    """
    steps = np.asarray(curve["steps"], dtype=np.float64)
    values, others = (np.asarray(each[name], dtype=np.float64) for each in (curve, retain))
    rows: NDArray[np.float64] = np.trapezoid(values - others, steps, axis=0) / max(steps[-1] - steps[0], 1.0)
    gains = rows - (values[0] - others[0])
    return {
        "area": float(rows.mean()),
        "low": lower_bound(rows),
        "gain": float(gains.mean()),
        "gain_low": lower_bound(gains),
        "start": float(values[0].mean()),
        "end": float(values[-1].mean()),
        "retain_start": float(others[0].mean()),
        "retain_end": float(others[-1].mean()),
        "start_low": lower_bound(values[0] - others[0]),
    }


def lower_bound(values: Sequence[float] | NDArray[np.float64]) -> float:
    """One-sided lower bound of the mean at `CONFIDENCE`; the mean itself where there are fewer than two values."""
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2:
        return float(array.mean())
    spread = array.std(ddof=1) / math.sqrt(len(array))
    return float(array.mean() - stats.t.ppf(CONFIDENCE, len(array) - 1) * spread)
