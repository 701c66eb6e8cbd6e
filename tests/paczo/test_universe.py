"""The audit of who was among the N: its statistics beside brute force, and that it sees what a run gives away."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from scipy import stats

from paczo import universe
from paczo.audit import main
from src.utils import UserError


def random_run(rng, count=60, shift=0.0):
    inside = rng.integers(0, 2, count).astype(bool)
    return {"inside": inside, "scores": rng.normal(size=count) + shift * inside, "accuracy": 0.5}


def test_auc_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    run = random_run(rng, shift=0.5)
    scores = np.round(run["scores"], 1)  # some are equal
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[run["inside"]] for b in scores[~run["inside"]]]
    assert universe.auc(run["inside"], scores) == pytest.approx(np.mean(pairs), abs=1e-12)


def test_the_interval_of_a_mean_is_students():
    values = [0.5, 0.52, 0.47, 0.55]
    wanted = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert universe.mean_interval(values) == pytest.approx((np.mean(values), wanted.low, wanted.high))


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.1, 0.5])
def test_true_positives_keep_to_the_false_positive_rate(rate):
    run = random_run(np.random.default_rng(1), 400, shift=1.0)
    share, low, high = universe.true_positives(run["inside"], run["scores"], rate)
    others, members = run["scores"][~run["inside"]], run["scores"][run["inside"]]
    best = max(
        (members > t).mean() for t in run["scores"] if (others > t).mean() <= rate
    )  # every threshold that keeps to the rate
    assert share == pytest.approx(best)
    assert low < share < high


def test_the_bound_on_epsilon_is_where_so_many_right_guesses_are_still_possible():
    played = [random_run(np.random.default_rng(seed), 200, shift=1.5) for seed in range(3)]
    found = universe.epsilon_bound(played)
    reached = []
    for share in universe.GUESSED:
        right = total = 0
        for run in played:
            order = np.argsort(run["scores"])
            half = round(share * 100)
            right += run["inside"][order[-half:]].sum() + (~run["inside"][order[:half]]).sum()
            total += 2 * half
        grid = np.linspace(0, 5, 5001)
        possible = stats.binom.sf(right - 1, total, 1 / (1 + np.exp(-grid))) > 0.05 / 3
        reached.append(grid[possible].min())
    assert found == pytest.approx(max(reached), abs=2e-3)
    assert found > 0.5


def test_scores_that_know_nothing_are_worth_no_epsilon_and_those_that_know_all_many():
    blind = [random_run(np.random.default_rng(seed), 200) for seed in range(10, 14)]
    assert universe.epsilon_bound(blind) < 0.3
    knowing = [{**run, "scores": run["inside"].astype(float)} for run in blind]
    assert 3 < universe.epsilon_bound(knowing) < math.inf


def test_the_control_is_caught_and_an_untrained_model_tells_nothing(tmp_path, capsys):
    main(["universe", "--runs", "2", "--workers", "1", "--only", "tr", "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "universe_audit.json").read_text())["universe"]
    assert [row["row"] for row in rows] == ["no training", "control: fine-tuning by gradient"]
    assert rows[0]["auc"][0] == 0.5
    assert rows[0]["epsilon"] == 0
    assert rows[1]["auc"][1] > 0.6
    assert rows[1]["epsilon"] > 0.3
    assert "4 trainings in" in capsys.readouterr().out
    assert (tmp_path / "universe_audit.svg").stat().st_size > 1000


def test_a_private_row_goes_through_its_trainer():
    (row,) = (row for row in universe.paczo_rows() if row.name == "PAC-ZPL abstain, K = 64")
    short = universe.Row(row.name, row.rate, {**row.settings, "max_steps": 2})
    run = universe.play(short, 3)
    assert np.abs(run["scores"]).min() > 0
    assert universe.play(short, 3)["scores"] == pytest.approx(run["scores"], abs=0)


def test_a_control_that_is_not_caught_is_an_error(monkeypatch, tmp_path):
    row = universe.Row("control", 0.0, is_control=True)
    monkeypatch.setattr(universe, "ProcessPoolExecutor", lambda workers, mp_context: ThreadPoolExecutor(workers))
    monkeypatch.setattr(universe, "play", lambda row, seed: random_run(np.random.default_rng(seed), 400))
    with pytest.raises(UserError, match="not caught: control"):
        universe.audit(["--runs", "2", "--workers", "1", "--out", str(tmp_path)], [row])


@pytest.mark.parametrize("words", [["--runs", "1"], ["--workers", "0"], ["--seed", "-1"], ["--only", "absent"]])
def test_bad_arguments(words):
    with pytest.raises(UserError):
        main(["universe", *words])
