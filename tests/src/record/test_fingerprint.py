"""The digest of an objective's data: what changes it and what does not."""

from __future__ import annotations

import pytest
import torch
from builders import make_model

from src.engine.decoding import Decoding
from src.engine.derivatives import exact_derivatives
from src.lora import LoraSettings, add_lora
from src.objectives import AnswerLikelihood, CandidateScoring, GenerationF1
from src.record.fingerprint import data_fingerprint
from src.zo.directions import ParameterSpace

PROMPTS = ["a very good film It was", "dull It was", "cold and slow It was", "warm It was"]
ONE, SEVERAL = [["terrible", "great"]] * 4, [["so bad", "very great film"]] * 4
LABELS = [0, 1, 1, 0]


def model():
    return add_lora(make_model("llama"), LoraSettings(r=2, layers="last:1"))


def objectives(tokenizer, prompts=PROMPTS):
    return [
        CandidateScoring(model(), tokenizer, prompts, ONE, LABELS),
        CandidateScoring(model(), tokenizer, prompts, SEVERAL, LABELS),
        AnswerLikelihood(model(), tokenizer, prompts, ["bad", "good film", "dull", "warm"]),
        GenerationF1(model(), tokenizer, prompts, [["bad"]] * 4, decoding=Decoding(), max_new_tokens=2),
    ]


def test_neither_earlier_passes_nor_budgets_change_it(tokenizer):
    """A run may be resumed by who has evaluated the samples before, or has another amount of free memory."""
    for objective in objectives(tokenizer):
        digest = data_fingerprint(objective)
        objective.losses()
        assert data_fingerprint(objective) == digest, type(objective)
        objective.metrics()
        if not isinstance(objective, GenerationF1):
            exact_derivatives(objective, ParameterSpace(objective.model), (1, 2))
        objective.keep_front()
        objective.token_budget, objective.derivative_budget, objective.recompute = 7, 11, True
        objective.losses()
        assert data_fingerprint(objective) == digest, type(objective)


def test_samples_and_labels_change_it(tokenizer):
    found = [data_fingerprint(objective) for objective in objectives(tokenizer)]
    found += [data_fingerprint(objective) for objective in objectives(tokenizer, [*PROMPTS[:3], "so good It was"])]
    found.append(data_fingerprint(CandidateScoring(model(), tokenizer, PROMPTS, ONE, [0, 1, 1, 1])))
    assert len(set(found)) == 9


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_device_does_not_change_it(tokenizer):
    digests = {
        data_fingerprint(CandidateScoring(model().to(device), tokenizer, PROMPTS, ONE, LABELS))
        for device in ("cpu", "cuda")
    }
    assert len(digests) == 1
