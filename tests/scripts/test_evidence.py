"""Plans of long runs: what comes first, which rate is taken, and that nothing finished is run again."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from paczo.report.evidence import TUNING_SEED, panels
from scripts import evidence_sst2
from scripts.evidence import PACZERO, ROOT, SEEDS, Evidence, Row, Run
from src.utils import UserError

SWEPT = Row("swept", ("--a",), steps=3, passes=2.0, rates=(0.1, 0.2, 0.3))
ALIKE = Row("alike", ("--b",), steps=3, passes=2.0, like="swept", seeds=(0,))
LOSSES = {0.1: 0.6, 0.2: 0.4, 0.3: 0.5}


class Recorded(Evidence):
    """Notes the runs instead of making them; `dies_at` of them."""

    def __init__(self, folder: Path, rows: list[Row], dies_at: int = -1) -> None:
        super().__init__(rows, folder / "runs.json", folder / "work", ())
        self.made: list[Run] = []
        self.dies_at = dies_at
        self.lock = threading.Lock()

    def _train(self, run: Run) -> dict[str, Any]:
        with self.lock:
            if len(self.made) == self.dies_at:
                raise KeyboardInterrupt
            self.made.append(run)
        return {"after": {"dev": {"loss": LOSSES[run.rate]}}, "seconds": 20.0, "passes": run.row.passes}


def test_the_rate_with_the_lowest_dev_loss_of_the_tuning_draw_is_taken(tmp_path):
    plan = Recorded(tmp_path, [SWEPT, ALIKE])
    plan.go_on(hours=1, workers=1)
    made = [(run.row.name, run.rate, run.seed) for run in plan.made]
    tuning = [("swept", rate, TUNING_SEED) for rate in SWEPT.rates]
    assert made == [*tuning, ("swept", 0.2, 0), ("alike", 0.2, 0), ("swept", 0.2, 1), ("swept", 0.2, 2)]
    assert TUNING_SEED not in SEEDS


@pytest.mark.parametrize("dies_at", range(7))
def test_a_stopped_plan_goes_on_and_runs_nothing_twice(tmp_path, dies_at):
    whole = Recorded(tmp_path / "whole", [SWEPT, ALIKE])
    whole.go_on(hours=1, workers=1)
    stopped = Recorded(tmp_path / "stopped", [SWEPT, ALIKE], dies_at)
    with pytest.raises(KeyboardInterrupt):
        stopped.go_on(hours=1, workers=1)
    again = Recorded(tmp_path / "stopped", [SWEPT, ALIKE])
    again.go_on(hours=1, workers=1)
    assert len(stopped.made) == dies_at
    assert stopped.made + again.made == whole.made
    assert [path.name for path in (tmp_path / "stopped").iterdir()] == ["runs.json"]


def test_several_at_a_time_make_the_same_runs(tmp_path):
    one, three = Recorded(tmp_path / "one", [SWEPT, ALIKE]), Recorded(tmp_path / "three", [SWEPT, ALIKE])
    one.go_on(hours=1, workers=1)
    three.go_on(hours=1, workers=3)
    assert set(three.made) == set(one.made)
    assert len(three.made) == len(one.made)


def test_no_run_is_begun_that_would_end_too_late(tmp_path, capsys):
    """A pass took ten seconds, so a run of two takes twenty."""
    plan = Recorded(tmp_path, [SWEPT])
    plan.go_on(hours=19 / 3600, workers=1)
    assert len(plan.made) == 1  # before the first, nothing is known
    assert "out of time before swept-r0.2" in capsys.readouterr().out
    plan.go_on(hours=25 / 3600, workers=1)
    assert len(plan.made) == 6


def test_other_settings_make_it_another_run(tmp_path):
    plan = Recorded(tmp_path, [SWEPT])
    plan.go_on(hours=1, workers=1)
    longer = Row("swept", ("--a",), steps=4, passes=2.0, rates=SWEPT.rates)
    assert next(Recorded(tmp_path, [longer]).missing()) == Run(longer, 0.1, TUNING_SEED)


def test_a_run_of_a_tiny_model_is_published(tmp_path, text_model, monkeypatch):
    monkeypatch.setenv("DATA_DIR", str(ROOT / "src" / "sample_data"))
    size = ("--task_name", "SST2", "--num_train", "8", "--num_dev", "4", "--num_eval", "4", "--report_to", "none")
    model = ("--model_name", text_model, "--train_as_classification", "--lora")
    zero = ("--pac_zpl", "--pac_m", "8", "--pac_k", "2", "--zo_derivative", "exact", "--eval_steps", "1")
    row = Row("a row", (*zero, "--pac_load_best_dev"), steps=2, passes=1.0, rates=(1e-3,), seeds=(0,))
    plan = Evidence([row], tmp_path / "runs.json", tmp_path / "work", (*size, *model))
    plan.go_on(hours=1, workers=1)
    (run,) = json.loads((tmp_path / "runs.json").read_text("utf-8"))["runs"]
    assert (run["row"], run["rate"], run["curve"]) == ("a row", 1e-3, [1, 2])
    assert len(run["agreement"]) == 2
    assert all(0 <= share <= 1 for share in run["agreement"])
    assert set(run["after"]) == {"dev", "test"}
    drawn = panels({"runs": [run]})["Zero nats, and not private"]
    (losses,), (shares,) = drawn["dev loss"][0].runs, drawn["all subsets agree"][0].runs
    assert losses == [(0, run["before"]["dev"]["loss"]), (0.5, run["dev_loss"][0]), (1, run["dev_loss"][1])]
    assert [x for x, _ in shares] == [0.25, 0.75]
    assert str(tmp_path) not in json.dumps(run)


def test_a_failed_run_is_told_by_its_last_line(tmp_path):
    wrong = Row("wrong", ("--nats", "3"), steps=2, passes=1.0, rates=(1e-3,), seeds=(0,), module="paczo.bounds")
    with pytest.raises(UserError, match=r"a run failed: .*--nats 3.*wrong-r0\.001-s0\.log"):
        Evidence([wrong], tmp_path / "none.json", tmp_path / "work", ()).go_on(hours=1, workers=1)
    assert not (tmp_path / "none.json").exists()


def test_an_interrupted_run_is_resumed(tmp_path, monkeypatch):
    words: list[str] = []

    def run(self: Evidence, command: list[str], log: Path) -> None:
        words.extend(command)
        raise UserError("enough")

    monkeypatch.setattr(Evidence, "_run", run)
    plan = Evidence([SWEPT], tmp_path / "runs.json", tmp_path / "work", ())
    folder = tmp_path / "work" / Run(SWEPT, 0.1, TUNING_SEED).folder
    folder.mkdir(parents=True)
    (folder / "transcript.jsonl").touch()
    with pytest.raises(UserError, match="enough"):
        plan._train(Run(SWEPT, 0.1, TUNING_SEED))
    assert words[-2:] == ["--resume_from_checkpoint", "True"]


def test_runs_are_published_in_the_plans_order(tmp_path):
    first, second = replace(SWEPT, name="first"), replace(SWEPT, name="second")
    plan = Evidence([first, second], tmp_path / "runs.json", tmp_path / "work", ())
    for row in (second, first):
        plan._publish(Run(row, 0.1, 0).key)
    published = json.loads((tmp_path / "runs.json").read_text("utf-8"))["runs"]
    assert [run["row"] for run in published] == ["first", "second"]


def test_every_row_of_sst2_costs_what_the_budget_allows_at_a_thousand_sentences():
    rows = evidence_sst2.rows()
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    assert all(row.like in names for row in rows if not row.rates)
    same_size = [row for row in rows if ", N = " not in row.name and "dev set alone" not in row.name]
    assert all(0.93 * evidence_sst2.BUDGET < row.passes <= evidence_sst2.BUDGET for row in same_size)
    assert len(same_size) >= 12
    assert {row.module for row in rows} == {PACZERO, "baselines.run_dp_zo"}
