"""Prefix tuning against attention by hand, the library's own cache, and passes of one sequence at a time."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from builders import ARCHITECTURES, make_model, save_model
from torch import nn
from transformers import BloomConfig, BloomForCausalLM, DynamicCache

from src.engine.attention import Prefix, attention
from src.engine.batching import ScoredSequence, TokenTable
from src.engine.packing import can_pack
from src.engine.scoring import scored_logits
from src.lora import add_lora
from src.models import load_model
from src.objectives import CandidateScoring, GenerationF1
from src.prefix import PrefixSettings, add_prefix
from src.utils import UserError, encode
from src.zo.directions import ParameterSpace

PROMPTS = [
    "a very good film It was",
    "dull",
    "the plot of a film so slow and so cold It was",
    "warm It was",
    "an actor of the plot",
]
CANDIDATES = [
    ["terrible", "very great", "so so good"],
    ["great", "bad and dull"],
    ["bad"],
    ["a film"],
    ["so good"],
]


def prefixes(model):
    """The layers' prefixes, in the layers' order."""
    return [module for module in model.modules() if isinstance(module, Prefix)]


def with_prefix(model_type, dtype=torch.float32, **settings):
    """A model with a prefix that no tokens have."""
    model = add_prefix(make_model(model_type, dtype=dtype), PrefixSettings(**{"num_prefix": 3, **settings}))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for module in prefixes(model):
            for parameter in module.parameters():
                parameter.add_(0.7 * torch.randn(parameter.shape, generator=generator))
    return model


def library_logits(model, base, ids):
    """The base model's logits over `ids`, the prefix given as its cache and the positions as without one."""
    cache = DynamicCache()
    for layer, prefix in enumerate(prefixes(model)):
        cache.update(prefix.keys[None].detach(), prefix.values[None].detach(), layer)
    ids = torch.tensor([ids])
    with torch.no_grad():
        return base(input_ids=ids, past_key_values=cache, position_ids=torch.arange(ids.shape[1])[None]).logits[0]


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_a_prefix_starts_as_the_cache_of_the_drawn_tokens(model_type):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    model = add_prefix(make_model(model_type), PrefixSettings(num_prefix=4, seed=3))
    assert torch.equal(torch.get_rng_state(), state), "the draw has a generator of its own"
    tokens = model.track.tokens
    assert list(tokens) == np.random.default_rng(3).integers(model.config.vocab_size, size=4).tolist()
    with torch.no_grad():
        cache = make_model(model_type)(torch.tensor([tokens]), use_cache=True).past_key_values
    assert len(prefixes(model)) == model.config.num_hidden_layers == len(cache.layers)
    for prefix, layer in zip(prefixes(model), cache.layers, strict=True):
        assert torch.equal(prefix.keys, layer.keys[0])
        assert torch.equal(prefix.values, layer.values[0])
    heads = getattr(model.config, "num_key_value_heads", model.config.num_attention_heads)
    assert prefix.keys.shape == (heads, 4, 8)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert trained == [name for name, _ in model.named_parameters() if ".prefix." in name]
    assert ParameterSpace(model).num_elements == 2 * model.config.num_hidden_layers * heads * 4 * 8
    other = add_prefix(make_model(model_type), PrefixSettings(num_prefix=4, seed=4))
    assert other.track.tokens != tokens


def test_a_random_prefix_is_standard_normal_and_its_seeds_own():
    def values(seed):
        model = add_prefix(make_model("llama"), PrefixSettings(200, init_by_real_act=False, seed=seed))
        assert model.track.tokens is None
        return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])

    assert torch.equal(values(1), values(1))
    sample = torch.cat([values(1), values(2)])
    assert abs(sample.mean().item()) < 6 / math.sqrt(len(sample))
    assert abs(sample.var().item() - 1) < 6 * math.sqrt(2 / len(sample))
    assert abs(torch.corrcoef(sample.view(2, -1))[0, 1].item()) < 6 * math.sqrt(2 / len(sample))


def by_hand(query, key, value, prefix, seen):
    """(B, L, H, d) by loops; `seen(b, i, j)` says whether query i of sequence b sees key j of its own sequence."""
    batch, heads, length, size = query.shape
    group = heads // key.shape[1]
    result = torch.zeros(batch, length, heads, size, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            for i in range(length):
                keys = [*prefix.keys[h // group]]
                values = [*prefix.values[h // group]]
                own = [j for j in range(key.shape[2]) if seen(b, i, j)]
                keys += [key[b, h // group, j] for j in own]
                values += [value[b, h // group, j] for j in own]
                scores = torch.stack([query[b, h, i] @ k for k in keys]) / math.sqrt(size)
                result[b, i, h] = scores.softmax(0) @ torch.stack(values)
    return result


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attention_is_that_over_concatenated_keys_by_hand(kv_heads):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    layer = nn.Module()
    layer.num_key_value_groups, layer.is_causal = 4 // kv_heads, True
    layer.prefix = Prefix(draw(kv_heads, 3, 8), draw(kv_heads, 3, 8))
    query, key, value = draw(2, 4, 5, 8), draw(2, kv_heads, 5, 8), draw(2, kv_heads, 5, 8)
    with torch.no_grad():
        causal, weights = attention(layer, query, key, value, None)
        assert weights is None
        expected = by_hand(query, key, value, layer.prefix, lambda _, i, j: j <= i)
        torch.testing.assert_close(causal, expected, rtol=1e-12, atol=1e-12)
        last, _ = attention(layer, query[:, :, :1], key, value, None)
        expected = by_hand(query[:, :, :1], key, value, layer.prefix, lambda *_: True)
        torch.testing.assert_close(last, expected, rtol=1e-12, atol=1e-12)
        mask = torch.rand(2, 1, 5, 5, generator=generator) < 0.5
        mask[0, 0, 2] = False  # a place of padding sees the prefix alone
        expected = by_hand(query, key, value, layer.prefix, lambda b, i, j: bool(mask[b, 0, i, j]))
        added = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, -torch.inf)
        for given in (mask, added):
            found, _ = attention(layer, query, key, value, given)
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_pass_is_the_librarys_with_the_prefix_in_its_cache(model_type, dtype):
    model = with_prefix(model_type, dtype)
    ids = [5, 9, 4, 20, 11, 7]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0]
        base = make_model(model_type, dtype=dtype)
        bare = base(input_ids=torch.tensor([ids])).logits[0]
    tolerance = 1e-5 if dtype == torch.float32 else 1e-11
    torch.testing.assert_close(logits, library_logits(model, base, ids), rtol=tolerance, atol=tolerance)
    assert (logits - bare).abs().max() > 1e-2, "the prefix is seen"


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_candidates_that_branch_score_as_one_sequence_at_a_time(model_type, tokenizer):
    model, base = with_prefix(model_type), make_model(model_type)
    labels = [0] * len(PROMPTS)
    expected = np.full((len(PROMPTS), 3), -np.inf)
    for row, (prompt, options) in enumerate(zip(PROMPTS, CANDIDATES, strict=True)):
        (start,) = encode(tokenizer, [prompt])
        for column, ids in enumerate(encode(tokenizer, [f"{prompt} {option}" for option in options])):
            log_probs = library_logits(model, base, ids).double().log_softmax(-1)
            picked = [log_probs[t - 1, ids[t]].item() for t in range(len(start), len(ids))]
            expected[row, column] = np.mean(picked)
    for budget in (None, 1, 40):
        objective = CandidateScoring(model, tokenizer, PROMPTS, CANDIDATES, labels, token_budget=budget)
        np.testing.assert_allclose(objective._scores().numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_cached_generation_is_greedy_decoding_by_whole_passes(model_type, tokenizer):
    model = with_prefix(model_type)
    with torch.no_grad():  # a random model repeats itself; let the end-of-text token win now and then
        head = model.get_output_embeddings()
        head.weight[2] = 1.05 * head.weight[4:].abs().mean(0) * torch.sign(head.weight[9])
    shared = " ".join(["the actor and the plot of a dull film was cold"] * 2)
    prompts = [*PROMPTS[:3], f"{shared} so very", f"{shared} slow"]
    expected = []
    for prompt in prompts:
        ids = next(encode(tokenizer, [prompt]))
        start = len(ids)
        while len(ids) < start + 6:
            with torch.no_grad():
                token = int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
            if token == tokenizer.eos_token_id:
                break
            ids.append(token)
        expected.append(tokenizer.decode(ids[start:], skip_special_tokens=True))
    assert len(set(expected)) > 2
    for budget in (12, 4096):
        objective = GenerationF1(model, tokenizer, prompts, [["good"]] * len(prompts), 6, token_budget=budget)
        assert objective.texts() == expected


@pytest.mark.parametrize("model_type", ["opt", "llama"])
@pytest.mark.parametrize("packed", [True, False])
def test_each_sequences_own_use_of_the_prefix_has_its_gradient(model_type, packed):
    """The uses come in the order of the micro-batch's rows, whether it is packed or padded."""
    model = with_prefix(model_type, torch.float64)
    rng = np.random.default_rng(0)
    sequences = [rng.integers(4, 24, size=length).tolist() for length in (6, 2, 9, 6, 4)]
    table = TokenTable([ScoredSequence(ids, 1) for ids in sequences], torch.device("cpu"))
    assert can_pack(model, 9)
    (batch,) = table.micro_batches(10**6, packed=packed)
    uses = {}
    for module in prefixes(model):
        module.register_forward_hook(lambda module, _, output: uses.setdefault(module, []).append(output))
    per_token = -torch.log_softmax(scored_logits(model, batch), -1)
    chosen = per_token.gather(1, batch.targets[:, None])[:, 0]
    flat = [tensor for module in prefixes(model) for use in uses[module] for tensor in use]
    gradients = iter(torch.autograd.grad(chosen.sum(), flat))
    own = {}
    for module in prefixes(model):
        pairs = [(next(gradients), next(gradients)) for _ in uses[module]]
        own[module] = [torch.cat(side) for side in zip(*pairs, strict=True)]
    uses.clear()
    for place, row in enumerate(batch.rows.tolist()):
        sequence = torch.tensor([sequences[row]])
        log_probs = model(input_ids=sequence).logits[0, :-1].log_softmax(-1)
        loss = -log_probs.gather(1, sequence[0, 1:, None]).sum()
        for module in prefixes(model):
            expected = torch.autograd.grad(loss, [module.keys, module.values], retain_graph=True)
            for side in (0, 1):
                torch.testing.assert_close(own[module][side][place], expected[side], rtol=1e-10, atol=1e-12)


def test_a_saved_prefix_is_small_and_loads_again(tmp_path):
    base = save_model(tmp_path / "base", "llama")
    model, tokenizer = load_model(base)
    model = add_prefix(model, PrefixSettings(num_prefix=2, seed=1))
    with torch.no_grad():
        for parameter in prefixes(model)[1].parameters():
            parameter.mul_(1.5)
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "track.json").read_text()) == {
        "base_model": base,
        "track": {**PrefixSettings(2, seed=1).to_dict(), "tokens": list(model.track.tokens)},
    }
    assert (tmp_path / "saved" / "track.safetensors").stat().st_size < 2000
    assert not list((tmp_path / "saved").glob("model*"))
    again, _ = load_model(str(tmp_path / "saved"))
    assert again.track == model.track
    for (name, left), (_, right) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(left, right), name
    (tmp_path / "saved" / "track.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="cannot read"):
        load_model(str(tmp_path / "saved"))
    (tmp_path / "saved" / "track.json").write_text('{"base_model": "x"}')
    with pytest.raises(UserError, match=r"cannot read .*track\.json"):
        load_model(str(tmp_path / "saved"))


def test_what_cannot_have_a_prefix_is_refused_in_a_line():
    for settings, message in [
        ({"num_prefix": 0}, "num_prefix must be at least 1"),
        ({"no_reparam": False}, "reparameterisation"),
        ({"num_prefix": 2, "tokens": (1,)}, "starts from as many tokens"),
    ]:
        with pytest.raises(UserError, match=message):
            PrefixSettings(**settings)
    with pytest.raises(UserError, match="takes 256 tokens, fewer than num_prefix 257"):
        add_prefix(make_model("llama"), PrefixSettings(num_prefix=257))
    eager = make_model("llama")
    eager.set_attn_implementation("eager")
    with pytest.raises(UserError, match="needs the sdpa attention, the model has eager"):
        add_prefix(eager)
    bloom = BloomForCausalLM(BloomConfig(vocab_size=32, hidden_size=16, n_layer=1, n_head=2))
    bloom.config._attn_implementation = "sdpa"
    with pytest.raises(UserError, match="does not reach every layer"):
        add_prefix(bloom)
    assert all(p.requires_grad for p in bloom.parameters()), "a model that is refused stays as it was"
    for first in (add_prefix, add_lora):
        for second in (add_prefix, add_lora):
            with pytest.raises(UserError, match="choose one of lora, prefix and head"):
                second(first(make_model("llama")))
