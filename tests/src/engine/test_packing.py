"""Packed sequences: the same logits as alone, and no packing where a model would see it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from builders import ARCHITECTURES, make_model
from transformers import BloomConfig, BloomForCausalLM

from src.engine.batching import ScoredSequence, TokenTable, even_cuts
from src.engine.head import scored_logits
from src.engine.packing import NAME, Layout, PackingUnsupported, can_pack, packed
from src.lora import add_lora
from src.prefix import add_prefix

CPU = torch.device("cpu")


def sequences(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [ScoredSequence(rng.integers(4, 24, size=n).tolist(), int(rng.integers(1, n))) for n in lengths]


def logits_by_sequence(model, batches):
    found = {}
    for batch in batches:
        logits = scored_logits(model, batch)
        for row in batch.rows.tolist():
            found[row] = (logits[batch.owners == row], batch.targets[batch.owners == row])
    return found


@pytest.mark.parametrize("model_type", ARCHITECTURES)
@pytest.mark.parametrize("track", ["ft", "lora", "prefix"])
def test_a_packed_or_padded_sequence_has_the_logits_it_has_alone(model_type, track):
    model = make_model(model_type)
    if track == "prefix":
        model = add_prefix(model)
    if track == "lora":
        model = add_lora(model)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(generator=torch.Generator().manual_seed(1))
    assert can_pack(model, 20)
    table = TokenTable(sequences([2, 9, 5, 9, 20, 5, 3, 9]), CPU)
    with torch.no_grad():
        together = logits_by_sequence(model, table.micro_batches(1000, packed=True))
        split = logits_by_sequence(model, table.micro_batches(25, packed=True))
        padded = logits_by_sequence(model, table.micro_batches(1000))
        alone = logits_by_sequence(model, table.micro_batches(1))
    for row, (expected, targets) in alone.items():
        assert targets.tolist() == table.ids[row, table.starts[row] : table.ends[row]].tolist()
        for logits, same_targets in (together[row], split[row], padded[row]):
            assert torch.equal(same_targets, targets)
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_that_comparison_sees_wrong_positions_and_sequences_that_see_each_other(model_type):
    model = make_model(model_type)
    (batch,) = TokenTable(sequences([7, 7, 4]), CPU).micro_batches(1000, packed=True)
    layout = batch.layout
    total = layout.position_ids.shape[1]
    shifted = Layout(layout.spans, layout.position_ids.flip(1))
    mixed = Layout([(0, 1, total)], layout.position_ids)
    with torch.no_grad():
        right = scored_logits(model, batch)
        for wrong in (shifted, mixed):
            with packed(model, wrong):
                inputs = {"input_ids": batch.input_ids, "position_ids": wrong.position_ids}
                logits = model(**inputs, use_cache=False).logits[batch.positions[0], batch.positions[1]]
            assert (logits - right).abs().max() > 1e-2


def test_no_packing_where_the_model_would_see_it():
    assert can_pack(make_model("mistral"), 10)
    windowed = make_model("mistral")
    windowed.config.sliding_window = 9
    assert can_pack(windowed, 9)
    assert not can_pack(windowed, 10)
    eager = make_model("llama")
    eager.set_attn_implementation("eager")
    assert not can_pack(eager, 10)
    bloom = BloomForCausalLM(BloomConfig(vocab_size=32, hidden_size=16, n_layer=1, n_head=2))
    assert not can_pack(bloom, 10), "ALiBi takes no positions"
    shallow = make_model("llama")
    shallow.model.layers[1].self_attn.forward = lambda hidden_states, **_: (hidden_states, None)
    assert not can_pack(shallow, 10), "a layer does not come by the attention interface"


def test_the_model_is_as_before_even_after_an_error():
    model = make_model("llama")
    with pytest.raises(IndexError), packed(model, Layout.of(np.array([2, 3]), CPU)):
        model(input_ids=torch.full((1, 5), 10**6))
    assert model.config._attn_implementation == "sdpa"
    model.config._attn_implementation = NAME
    with pytest.raises(PackingUnsupported, match="no layout"):
        model(input_ids=torch.zeros(1, 5, dtype=torch.int64))


def test_a_layout_groups_equal_neighbours_and_restarts_positions():
    layout = Layout.of(np.array([1, 2, 2, 3]), CPU)
    assert layout.spans == [(0, 1, 1), (1, 2, 2), (5, 1, 3)]
    assert layout.position_ids.tolist() == [[0, 0, 1, 0, 1, 0, 1, 2]]


@pytest.mark.parametrize("seed", range(20))
def test_cuts_are_few_within_budget_and_whole(seed):
    rng = np.random.default_rng(seed)
    lengths = np.sort(rng.integers(1, 60, size=50))
    budget = int(rng.integers(20, 400))
    cuts = even_cuts(lengths, budget)
    assert cuts[0] == 0
    assert cuts[-1] == len(lengths)
    runs = [lengths[a:b] for a, b in itertools.pairwise(cuts)]
    assert all(len(run) and (run.sum() <= budget or len(run) == 1) for run in runs)
    fewest, filled = 1, 0
    for length in lengths:  # first fit in order needs the fewest runs
        fewest, filled = (fewest + 1, length) if filled and filled + length > budget else (fewest, filled + length)
    assert len(runs) == fewest
    assert max(run.sum() for run in runs) - lengths.max() <= lengths.sum() / fewest, "evenly filled"


def test_cuts_of_nothing_and_of_no_budget():
    assert even_cuts(np.array([], dtype=np.int64), 10) == [0]
    with pytest.raises(ValueError, match="at least 1"):
        even_cuts(np.array([1]), 0)
