"""The comparison on the learning task: its rows cost the same, and its runs are those that they are named for."""

from __future__ import annotations

import pytest
import torch

from scripts import learning_table
from scripts.learning_table import SEEDS, TUNING_SEED, accuracy, methods, tracked, tracks, trained_elements
from src.sample_data.learning_task import pretrain


def test_every_row_evaluates_as_many_samples():
    counts = [method.evaluations for method in methods()]
    assert max(counts) <= 1.02 * min(counts)
    assert methods()[0].evaluations == 2 * 1000 * 100
    assert TUNING_SEED not in SEEDS
    names = [method.name for method in methods()]
    assert len(set(names)) == len(names) == 14
    assert all(len(set(method.rates)) == len(method.rates) >= 3 for method in methods())


def test_a_row_of_the_tracks_trains_its_part_of_a_copy():
    assert [method.track for method in tracks()] == ["full", "lora", "prefix", "head"]
    assert {method.evaluations for method in tracks()} == {methods()[0].evaluations}
    layers, width = 2, 32
    wanted = {"lora": layers * 2 * 8 * 2 * width, "prefix": layers * 2 * 5 * width, "head": 2 * width}
    assert {track: trained_elements(track) for track in wanted} == wanted
    task = pretrain(steps=0)
    before = task.objective(20, seed=1).losses()
    for track in wanted:
        other = tracked(task, track)
        changed = not torch.equal(other.objective(20, seed=1).losses(), before)
        assert changed == (track == "prefix"), "adapters and heads start as nothing"
    assert all(parameter.requires_grad for parameter in task.model.parameters())
    assert torch.equal(task.objective(20, seed=1).losses(), before)


@pytest.mark.parametrize("name", ["PAC-MI 0.33", "DP-AggZO eps 2"])
def test_a_run_is_repeated_exactly(name, monkeypatch):
    """Also its secrets come from the seed; another method's run lies between the two."""
    for constant, value in (("NUM_TRAIN", 40), ("NUM_TEST", 60)):
        monkeypatch.setattr(learning_table, constant, value)
    monkeypatch.setattr(learning_table, "pretrain", lambda seed: pretrain(seed, steps=20))
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    learning_table._start.cache_clear()
    chosen = {method.name: method for method in methods()}
    for method in chosen.values():
        method.settings["max_steps"] = 5
    weights = []
    for run in (name, "non-private", name):
        accuracy(chosen[run], 0.03, 0)
        weights.append([p.detach().clone() for p in learning_table._start(0)[0].model.parameters()])
    first, other, again = weights
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, other))
    learning_table._start.cache_clear()
