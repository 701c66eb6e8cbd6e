"""Each inner loss against numbers worked out by hand on a two-token answer, and the sign of its gradient.

The vocabulary has two tokens. The model gives the answer's tokens probabilities 0.8 and 0.6, so their NLLs are
-ln 0.8 and -ln 0.6; the reference gives 0.5 and 0.5.
"""

from __future__ import annotations

import math

import pytest
import torch
from builders import make_model

from pum.unlearn.arguments import UnlearnArguments
from pum.unlearn.base import IGNORED, kl_to_reference, masked_mean, token_nll
from pum.unlearn.ceu import ceu_loss
from pum.unlearn.dpo import dpo_loss
from pum.unlearn.grad_ascent import grad_ascent_loss
from pum.unlearn.npo import npo_loss
from pum.unlearn.pdu import margin_loss, next_multiplier
from pum.unlearn.rmu import RMU, default_layer, random_direction, rmu_loss
from pum.unlearn.satimp import satimp_loss
from pum.unlearn.simnpo import simnpo_loss
from pum.unlearn.undial import undial_loss
from pum.unlearn.wga import wga_loss

P = (0.8, 0.6)
NLL = (-math.log(0.8), -math.log(0.6))
LABELS = torch.tensor([[IGNORED, 0, 0]])
MASK = torch.tensor([[True, True]])


def logits(first=0.8, second=0.6):
    """(1, 3, 2): log-odds that give token 0 these probabilities; the last position predicts nothing."""
    odds = [math.log(p / (1 - p)) for p in (first, second)]
    return torch.tensor([[[odds[0], 0.0], [odds[1], 0.0], [9.0, -9.0]]], requires_grad=True)


def nll_of(scores):
    return token_nll(scores, LABELS)


def gradient(loss, scores):
    """d loss / d logit of the right token at both answer positions."""
    (grad,) = torch.autograd.grad(loss, scores)
    assert torch.equal(grad[0, 2], torch.zeros(2))
    return grad[0, :2, 0]


def close(value, expected):
    assert float(value) == pytest.approx(expected, rel=1e-5)


def test_token_nll_leaves_prompt_and_padding_out():
    nll, mask = token_nll(logits(), torch.tensor([[0, IGNORED, 0]]))
    assert mask.tolist() == [[False, True]]
    assert nll[0].tolist() == pytest.approx([0.0, NLL[1]])
    assert float(masked_mean(nll.detach(), torch.zeros_like(mask))) == 0


def test_token_nll_of_a_large_vocabulary_is_exact_to_float32():
    generator = torch.Generator().manual_seed(0)
    scores = 3 * torch.randn(2, 9, 49152, generator=generator) + 5
    labels = torch.randint(0, 49152, (2, 9), generator=generator)
    nll, _ = token_nll(scores, labels)
    exact = scores.double().logsumexp(-1)[:, :-1] - scores.double()[:, :-1].gather(-1, labels[:, 1:, None])[..., 0]
    assert nll.double().numpy() == pytest.approx(exact.numpy(), rel=1e-6)


def test_grad_ascent():
    scores = logits()
    loss = grad_ascent_loss(*nll_of(scores))
    close(loss, -(NLL[0] + NLL[1]) / 2)
    # d(-NLL/2)/dz = (1 - p)/2: a descent step lowers the answer's logits.
    assert gradient(loss, scores).tolist() == pytest.approx([0.1, 0.2], rel=1e-5)


def test_npo():
    scores = logits()
    nll, _ = nll_of(scores)
    ratio = 2 * math.log(2) - nll.sum(dim=1)  # r = log p - log p_ref
    loss = npo_loss(ratio, 0.1)
    r = math.log(0.8 * 0.6 / 0.25)
    close(loss, -20 * math.log(1 / (1 + math.exp(0.1 * r))))
    # dL/dr = 2 sigmoid(beta r); dr/dz = 1 - p.
    weight = 2 / (1 + math.exp(-0.1 * r))
    assert gradient(loss, scores).tolist() == pytest.approx([weight * 0.2, weight * 0.4], rel=1e-5)


def test_npo_is_gradient_ascent_at_the_start():
    ratio = torch.zeros(1, requires_grad=True)
    (slope,) = torch.autograd.grad(npo_loss(ratio, 0.1), ratio)
    assert float(slope) == pytest.approx(1.0)


def test_dpo():
    scores = logits()
    nll, _ = nll_of(scores)
    ratio = 2 * math.log(2) - nll.sum(dim=1)
    refusal = torch.tensor([0.5], requires_grad=True)
    loss = dpo_loss(refusal, ratio, 0.1)
    margin = 0.5 - math.log(0.8 * 0.6 / 0.25)
    close(loss, 20 * math.log(1 + math.exp(-0.1 * margin)))
    to_refusal, to_logits = torch.autograd.grad(loss, (refusal, scores))
    assert to_refusal < 0
    assert (to_logits[0, :2, 0] > 0).all()


def test_simnpo():
    scores = logits()
    loss = simnpo_loss(*nll_of(scores), beta=4.5, delta=0.1)
    reward = 4.5 * ((NLL[0] + NLL[1]) / 2 - 0.1)
    close(loss, 2 / 4.5 * math.log(1 + math.exp(-reward)))
    assert (gradient(loss, scores) > 0).all()


def test_simnpo_does_not_depend_on_length():
    nll, mask = nll_of(logits(0.7, 0.7))
    close(simnpo_loss(nll, mask, 4.5, 0.0), float(simnpo_loss(nll[:, :1], mask[:, :1], 4.5, 0.0)))


def test_undial():
    scores, reference = logits(), logits(0.5, 0.5).detach()
    loss = undial_loss(scores, reference, LABELS, beta=1.0)
    q = 1 / (1 + math.e)  # softmax((-1, 0)) of the label
    expected = [q * -math.log(p) + (1 - q) * -math.log(1 - p) for p in P]
    close(loss, sum(expected) / 2)
    # (p - q)/2 is positive where the label is likelier than the teacher wants.
    assert gradient(loss, scores).tolist() == pytest.approx([(p - q) / 2 for p in P], rel=1e-5)


def test_ceu_skips_the_first_answer_token():
    scores = logits()
    loss = ceu_loss(scores, LABELS)
    close(loss, -math.log(0.4))  # the only other token is the target
    assert gradient(loss, scores).tolist() == pytest.approx([0.0, 0.6], rel=1e-5)


def test_ceu_of_a_one_token_answer_is_zero():
    assert float(ceu_loss(logits(), torch.tensor([[IGNORED, IGNORED, 0]]))) == 0


def test_wga():
    scores = logits()
    loss = wga_loss(*nll_of(scores), beta=2.0)
    close(loss, -(0.64 * NLL[0] + 0.36 * NLL[1]) / 2)
    # Detached weights: only NLL has a gradient.
    assert gradient(loss, scores).tolist() == pytest.approx([0.64 * 0.1, 0.36 * 0.2], rel=1e-5)


def test_satimp():
    scores = logits()
    loss = satimp_loss(*nll_of(scores), beta1=5.0, beta2=1.0)
    weights = [p**5 * (1 - p) for p in P]
    close(loss, -(weights[0] * NLL[0] + weights[1] * NLL[1]) / 2)
    expected = [w * (1 - p) / 2 for w, p in zip(weights, P, strict=True)]
    assert gradient(loss, scores).tolist() == pytest.approx(expected, rel=1e-4)


def test_rmu():
    hidden = torch.tensor([[[1.0, 3.0], [2.0, 2.0], [5.0, 5.0]]], requires_grad=True)
    mask = torch.tensor([[True, True, False]])
    loss = rmu_loss(hidden, torch.tensor([1.0, 1.0]), mask)
    close(loss, ((0 + 4) / 2 + (1 + 1) / 2) / 2)
    (grad,) = torch.autograd.grad(loss, hidden)
    assert grad[0].tolist() == [[0.0, 1.0], [0.5, 0.5], [0.0, 0.0]]


def test_rmu_counts_rows_alike_whatever_their_length():
    hidden = torch.tensor([[[1.0], [1.0]], [[3.0], [0.0]]])
    mask = torch.tensor([[True, True], [True, False]])
    close(rmu_loss(hidden, torch.zeros(1), mask), (1 + 9) / 2)


@pytest.mark.parametrize("kind", ["llama", "opt"])
def test_rmu_steers_what_the_layer_gives_at_the_last_one_too(kind, tmp_path):
    """The library's own last entry of `hidden_states` lies behind the final norm."""
    model = make_model(kind).eval()
    decoder = model.model.decoder if kind == "opt" else model.model
    norm = decoder.final_layer_norm if kind == "opt" else decoder.norm
    rows = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    hidden = model(**rows, output_hidden_states=True).hidden_states
    for layer in range(2):
        method = RMU(UnlearnArguments(str(tmp_path), method="RMU", rmu_layer=layer, use_cpu=True), model)
        for source in (model, method.frozen):
            states = method._states(source, rows)
            assert torch.equal(norm(states) if layer == 1 else states, hidden[layer + 1])
    assert not torch.equal(states, hidden[-1])


def test_rmu_direction_and_layer():
    direction = random_direction(64, seed=3)
    close(direction.norm(), 1.0)
    assert torch.equal(direction, random_direction(64, seed=3))
    assert not torch.equal(direction, random_direction(64, seed=4))
    assert [default_layer(n) for n in (1, 2, 8, 9, 16, 32)] == [0, 0, 3, 7, 7, 7]


def test_pdu_margin_and_multiplier():
    scores = logits()
    loss = margin_loss(scores, LABELS)
    # max - mean of (z, 0) is z/2, for log-odds z of ln 4 and ln 1.5; squared: z^2/4, whose slope is z/2.
    close(loss, (math.log(4) ** 2 + math.log(1.5) ** 2) / 4 / 2)
    slopes = [math.log(4) / 4, math.log(1.5) / 4]
    assert gradient(loss, scores).tolist() == pytest.approx(slopes, rel=1e-5)
    assert next_multiplier(1.0, 0.5, 0.3, 1.0) == pytest.approx(1.2)
    assert next_multiplier(0.1, 0.0, 0.3, 1.0) == 0.0


def test_kl_to_reference():
    scores, reference = logits(), logits(0.5, 0.5).detach()
    expected = [0.5 * math.log(0.5 / p) + 0.5 * math.log(0.5 / (1 - p)) for p in P]
    loss = kl_to_reference(scores, reference, LABELS)
    close(loss, sum(expected) / 2)
    # Descent pulls the model back towards the reference.
    assert gradient(loss, scores).tolist() == pytest.approx([0.15, 0.05], rel=1e-5)
    assert float(kl_to_reference(reference, reference, LABELS)) == pytest.approx(0, abs=1e-7)
