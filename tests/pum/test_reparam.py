"""Disguises: the function stays, the inverse is exact, gradient steps commute, and known mistakes are caught."""

from __future__ import annotations

import copy
from typing import Any

import pum_models as m
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from pum import reparam
from pum.reparam import FAMILIES, Disguise, check_model, orthogonal, plane_rotations
from src.lora import add_lora
from src.utils import UserError

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "opt": ("opt", {}),
    "opt without bias, projected embeddings": ("opt", {"enable_bias": False, "word_embed_proj_dim": 16}),
    "llama, all biases": ("llama", {"num_key_value_heads": 4}),
    "llama, GQA, tied": ("llama", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "llama, scaled rotary": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}, "num_key_value_heads": 1},
    ),
    "mistral, GQA, wide heads": ("mistral", {"num_key_value_heads": 2}),
    "mistral": ("mistral", {"num_key_value_heads": 4}),
    "qwen2, GQA, qkv biases": ("qwen2", {"num_key_value_heads": 2}),
    "qwen2": ("qwen2", {"num_key_value_heads": 4, "tie_word_embeddings": True}),
    "qwen3, q and k norms": ("qwen3", {"num_key_value_heads": 2}),
    "qwen3, attention bias": ("qwen3", {"num_key_value_heads": 4, "attention_bias": True}),
    "gemma, one KV head, tied": ("gemma", {"num_key_value_heads": 1}),
    "gemma": ("gemma", {"num_key_value_heads": 4}),
    "stablelm, partial rotary, GQA": ("stablelm", {"num_key_value_heads": 2}),
}


def make(case: str) -> PreTrainedModel:
    model_type, overrides = CASES[case]
    return m.tiny(model_type, **overrides)


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(m.tokens()).logits


def difference(left: PreTrainedModel, right: PreTrainedModel) -> float:
    """Largest difference of the logits relative to their spread."""
    a, b = logits(left), logits(right)
    return float((a - b).abs().max() / a.std())


def parameters(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("case", CASES)
def test_the_function_stays_and_the_weights_do_not(case: str) -> None:
    plain = make(case)
    disguised = copy.deepcopy(plain)
    disguise = Disguise.sample(plain, m.generator())
    disguise.apply_(disguised)
    assert difference(plain, disguised) < 1e-4
    before = parameters(plain)
    for name, parameter in disguised.named_parameters():
        assert torch.equal(parameter, before[name]) != disguise.moves(name), name
    moved = [name for name in before if disguise.moves(name)]
    leaves = {name.split(".")[-2] for name in moved}
    expected = {
        "q_proj",
        "k_proj",
        "v_proj",
        "fc1",
        "fc2",
        "gate_proj",
        "up_proj",
        "down_proj",
        "o_proj",
        "out_proj",
    }
    present = {name.split(".")[-2] for name in before} & expected
    assert leaves == (present - {"q_proj", "k_proj"} if "norms" in case or "qwen3" in case else present)


@pytest.mark.parametrize("case", CASES)
def test_the_inverse_takes_back_parameters_and_differences(case: str) -> None:
    plain = make(case)
    disguise = Disguise.sample(plain, m.generator(1))
    before = parameters(plain)
    moved = {name: disguise.move(name, tensor) for name, tensor in before.items()}
    back = disguise.invert(moved)
    for name, tensor in before.items():
        torch.testing.assert_close(back[name], tensor, rtol=0, atol=2e-6)
        if name.split(".")[-2] in ("fc1", "fc2", "gate_proj", "up_proj", "down_proj"):
            assert torch.equal(back[name], tensor)
    # Linear: T(x + d) - T(x) goes back to d.
    change = {name: torch.randn(tensor.shape, generator=m.generator(2)) for name, tensor in before.items()}
    shifted = {name: disguise.move(name, before[name] + change[name]) - moved[name] for name in before}
    for name, tensor in disguise.invert(shifted).items():
        torch.testing.assert_close(tensor, change[name], rtol=0, atol=2e-5)


@pytest.mark.parametrize("case", CASES)
def test_a_gradient_step_on_the_disguise_is_the_plain_one(case: str) -> None:
    plain = make(case)
    disguised = copy.deepcopy(plain)
    disguise = Disguise.sample(plain, m.generator(3))
    disguise.apply_(disguised)
    published = parameters(disguised)
    steps = []
    for model in (plain, disguised):
        start = parameters(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(m.tokens(), labels=m.tokens()).loss.backward()
        optimizer.step()
        steps.append({name: tensor - start[name] for name, tensor in parameters(model).items()})
    assert published.keys() == steps[1].keys()
    for name, tensor in disguise.invert(steps[1]).items():
        torch.testing.assert_close(tensor, steps[0][name], rtol=0, atol=1e-5)
    assert max(float(step.abs().max()) for step in steps[0].values()) > 1e-3


def test_mutant_down_columns_by_the_inverse_permutation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first historic mistake: rows of gate/up by P, columns of down by its inverse."""
    right = Disguise.move

    def wrong(self: Disguise, name: str, tensor: Tensor, *, inverse: bool = False) -> Tensor:
        return right(self, name, tensor, inverse=inverse != ("down_proj" in name or "fc2" in name))

    for case in ("llama, GQA, tied", "opt"):
        plain, disguised, control = make(case), make(case), make(case)
        Disguise.sample(plain, m.generator()).apply_(control)
        assert difference(plain, control) < 1e-4
        with monkeypatch.context() as patch:
            patch.setattr(Disguise, "move", wrong)
            Disguise.sample(plain, m.generator()).apply_(disguised)
        assert difference(plain, disguised) > 1e-2


def _interleaved_rotations(count: int, size: int, gen: torch.Generator) -> Tensor:
    order = torch.arange(size).view(-1, 2).T.reshape(-1).argsort()
    return plane_rotations(count, size, gen)[:, order][:, :, order]


@pytest.mark.parametrize("blocks", [orthogonal, _interleaved_rotations])
def test_mutant_free_or_interleaved_blocks_on_rotary_heads(monkeypatch: pytest.MonkeyPatch, blocks: Any) -> None:
    """The second historic mistake, a free orthogonal matrix; and planes (2i, 2i+1), the wrong layout."""
    for case in ("llama, GQA, tied", "stablelm, partial rotary, GQA"):
        plain, disguised = make(case), make(case)
        with monkeypatch.context() as patch:
            patch.setattr(reparam, "plane_rotations", blocks)
            Disguise.sample(plain, m.generator()).apply_(disguised)
        assert difference(plain, disguised) > 1e-2


def test_mutant_other_blocks_for_the_query_heads_of_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """Query heads must use the block of their own KV head, in repeat_kv's order."""
    plain, disguised = make("mistral, GQA, wide heads"), make("mistral, GQA, wide heads")
    right = reparam._rows

    def wrong(blocks: Tensor, tensor: Tensor) -> Tensor:
        return right(blocks.flip(0) if tensor.shape[0] == 64 else blocks, tensor)

    monkeypatch.setattr(reparam, "_rows", wrong)
    Disguise.sample(plain, m.generator()).apply_(disguised)
    assert difference(plain, disguised) > 1e-2


def test_blocks_have_their_laws() -> None:
    free = orthogonal(4000, 3, m.generator())
    torch.testing.assert_close(free @ free.transpose(1, 2), torch.eye(3).double().expand(4000, 3, 3))
    # Haar: mean 0, E[entry^2] = 1/3, both determinants.
    assert float(free.mean(0).abs().max()) < 0.05
    assert float((free.square().mean(0) - 1 / 3).abs().max()) < 0.03
    assert 0.45 < float((torch.linalg.det(free) > 0).double().mean()) < 0.55
    turned = plane_rotations(500, 4, m.generator())
    torch.testing.assert_close(turned @ turned.transpose(1, 2), torch.eye(4).double().expand(500, 4, 4))
    assert not turned[:, 0, [1, 3]].any()
    assert float(turned[:, 0, 0].abs().min()) < 0.1


def test_two_copies_differ_and_a_seed_repeats() -> None:
    model = make("llama, GQA, tied")
    gen = m.generator()
    name = "model.layers.0.self_attn.v_proj.weight"
    weight = dict(model.named_parameters())[name]
    first, second, again = (Disguise.sample(model, g).move(name, weight) for g in (gen, gen, m.generator()))
    assert not torch.allclose(first, second)
    assert torch.equal(first, again)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_are_rounded_once(dtype: torch.dtype) -> None:
    model = make("llama, GQA, tied").to(dtype)
    disguise = Disguise.sample(model, m.generator())
    for name, parameter in model.named_parameters():
        moved = disguise.move(name, parameter.detach())
        assert moved.dtype == dtype
        exact = disguise.move(name, parameter.detach().double())
        tolerance = {torch.bfloat16: 2**-8, torch.float64: 1e-12}[dtype]
        assert float((moved.double() - exact).abs().max()) <= tolerance * float(exact.abs().max())


def test_what_is_not_known_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="gpt2"):
        Disguise.sample(m.tiny("gpt2"), m.generator())
    with pytest.raises(UserError, match="adapters"):
        Disguise.sample(add_lora(make("opt")), m.generator())
    model = make("llama, GQA, tied")
    model.model.layers[1].mlp.extra = torch.nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.extra"):
        check_model(model)
    model = make("llama, GQA, tied")
    del model.model.layers[0].mlp.up_proj
    with pytest.raises(UserError, match=r"layers\.0\.mlp\.up_proj\.weight is missing"):
        check_model(model)
    model = make("llama, GQA, tied")
    model.config.num_key_value_heads = 4
    with pytest.raises(UserError, match="configuration"):
        check_model(model)
    model = make("llama, GQA, tied")
    del model.model.rotary_emb
    with pytest.raises(UserError, match="rotary"):
        check_model(model)
    with pytest.raises(UserError, match=r"transformers"):
        check_model(torch.nn.Linear(2, 2))
    disguise = Disguise.sample(make("opt"), m.generator())
    with pytest.raises(UserError, match="does not fit"):
        disguise.invert({"model.decoder.layers.0.fc1.weight": torch.zeros(3, 3)})


def test_all_six_architectures_are_known() -> None:
    assert {"opt", "llama", "mistral", "qwen2", "qwen3", "gemma"} <= set(FAMILIES)
    assert set(FAMILIES) == {model_type for model_type, _ in CASES.values()}
