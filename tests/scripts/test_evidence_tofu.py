"""The plans of unlearning: their order, rates and commands, the subset, and the tables of what they publish."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure

from pum.arguments import PUMArguments
from pum.run_unlearn import LoraArguments
from pum.unlearn import METHODS
from pum.unlearn.arguments import UnlearnArguments
from pum.unlearn.finetune import FinetuneArguments
from pum.unlearn.running import RunArguments
from scripts import evidence_kappa, evidence_tofu, tofu_drawing
from scripts.evidence import MOST_FAILURES, Row, Run
from scripts.evidence_tofu import ATTACKS, PLAIN, PUM, TofuEvidence
from scripts.tofu_drawing import tofu_svg
from scripts.tofu_tables import ATTACKED, FULL, RETAIN, degradation, shown, tofu_evidence, tofu_runs
from src.pages import svg
from src.tofu.attacks import AttackArguments
from src.utils import Parser, UserError, write_json

MACHINE = {"device": "a CPU", "threads": 1, "date": "2026-11-26", "versions": {"torch": "2", "transformers": "5"}}
GOAL = {"forget_Q_A_Prob": 0.1, "forget_Q_A_ROUGE": 0.3, "model_utility": 0.5}
ROWS = [
    Row(RETAIN, (), 1, 1.0, (1e-4,), module="retain-log", seeds=(0,)),
    Row("NPO, plain", (), 1, 1.0, (2e-5, 1e-5, 3e-5), module=PLAIN, seeds=(0,)),
    Row("NPO, kappa 0.1", (), 1, 1.0, (), "NPO, plain", PUM, (0,)),
    Row("NPO, plain" + ATTACKED, (), 1, 1.0, (), "NPO, plain", ATTACKS, (0,)),
]


class Recorded(TofuEvidence):
    """Notes the runs; the plain one ends the closer to the retain model the higher its rate."""

    def __init__(self, folder: Path, rows: list[Row], dies_at: int = -1, fails: str = "") -> None:
        super().__init__(rows, folder / "runs.json", folder / "work", ())
        self.made: list[tuple[str, float]] = []
        self.dies_at, self.fails = dies_at, fails

    def _train(self, run: Run) -> dict[str, Any]:
        if len(self.made) == self.dies_at:
            raise KeyboardInterrupt
        if run.row.name == self.fails:
            raise UserError("no memory")
        self.made.append((run.row.name, run.rate))
        if run.row.name == RETAIN:
            self._model(RETAIN).mkdir(parents=True)
            (self._model(RETAIN) / "model.safetensors").touch()
        scores = dict(GOAL) if run.row.name == RETAIN else {**GOAL, "forget_Q_A_Prob": 1e-5 / run.rate}
        return {"scores": scores, "seconds": 1.0, "passes": run.row.passes}


class Failing(TofuEvidence):
    """The runs end together, four at a time, and all fail."""

    begun = 0
    together = threading.Barrier(4)

    def _train(self, run: Run) -> dict[str, Any]:
        self.begun += 1
        self.together.wait(timeout=5)
        raise UserError("no memory")


def test_the_sweep_comes_first_and_its_winner_is_the_rate_of_the_other_rows(tmp_path):
    plan = Recorded(tmp_path, ROWS)
    plan.go_on(hours=1, workers=1)
    sweep = [("NPO, plain", rate) for rate in (2e-5, 1e-5, 3e-5)]
    assert plan.made == [(RETAIN, 1e-4), *sweep, *((row.name, 3e-5) for row in ROWS[2:])]


def test_with_several_workers_nothing_begins_before_what_it_needs(tmp_path):
    """Also where a run fails: what needs it is not begun, the others are."""
    plan = Recorded(tmp_path, ROWS)
    plan.go_on(hours=1, workers=4)
    published = [(run["row"], run["rate"]) for run in plan.runs]
    assert published[0] == (RETAIN, 1e-4)
    assert published.index((ROWS[3].name, 3e-5)) > published.index((ROWS[1].name, 3e-5))
    broken = Recorded(tmp_path / "broken", ROWS, fails=ROWS[0].name)
    with pytest.raises(UserError, match="1 failed: no memory"):
        broken.go_on(hours=1, workers=4)
    assert broken.made == []
    broken = Recorded(tmp_path / "late", ROWS, fails=ROWS[2].name)
    with pytest.raises(UserError, match="1 failed: no memory"):
        broken.go_on(hours=1, workers=4)
    assert (ROWS[3].name, 3e-5) in broken.made
    assert len(broken.runs) == 5


@pytest.mark.parametrize("dies_at", range(6))
def test_a_stopped_plan_goes_on_and_runs_nothing_twice(tmp_path, dies_at):
    whole = Recorded(tmp_path / "whole", ROWS)
    whole.go_on(hours=1, workers=1)
    stopped = Recorded(tmp_path / "stopped", ROWS, dies_at)
    with pytest.raises(KeyboardInterrupt):
        stopped.go_on(hours=1, workers=1)
    again = Recorded(tmp_path / "stopped", ROWS)
    again.go_on(hours=1, workers=1)
    assert stopped.made + again.made == whole.made


def test_a_plan_whose_runs_all_fail_soon_ends(tmp_path):
    """Also where several fail at once, so that the number of failures jumps past the last that is let pass."""
    rows = [Row(f"{n}, plain", (), 1, 1.0, (1e-5,), module=PLAIN, seeds=(0,)) for n in range(4 * MOST_FAILURES)]
    failing = Failing(rows, tmp_path / "runs.json", tmp_path / "work", ())
    with pytest.raises(UserError, match="failed: no memory"):
        failing.go_on(hours=1, workers=4)
    assert failing.begun < MOST_FAILURES + 4


def test_all_methods_are_planned_with_both_noises_and_attacks():
    rows = evidence_tofu.rows()
    names = [row.name for row in rows]
    assert len(set(names)) == len(names) == 2 * (2 + 3 * len(METHODS))
    assert set(evidence_tofu.RATES) == set(METHODS)
    assert names[:2] == [RETAIN, FULL]
    assert all(name.endswith(ATTACKED) for name in names[len(names) // 2 :])
    assert all(row.rates or row.like in names for row in rows)


def test_the_rates_of_an_earlier_plan_are_taken_without_a_sweep(tmp_path):
    goal = {"forget_Q_A_Prob": 0.1, "forget_Q_A_ROUGE": 0.3, "model_utility": 0.5, "retain_Q_A_Prob": 0.9}
    runs = [{"row": RETAIN, "scores": goal, "rate": 1e-4}]
    for number, method in enumerate(METHODS, start=1):
        for rate, forget in ((1e-5 * number, 0.2), (2e-5 * number, 0.4)):
            runs.append({"row": f"{method}, plain", "rate": rate, "scores": {**goal, "forget_Q_A_Prob": forget}})
    write_json(tmp_path / "runs.json", {"runs": runs})
    rates = evidence_tofu.rates_of(tmp_path / "runs.json")
    assert rates == {method: (1e-5 * number,) for number, method in enumerate(METHODS, start=1)}
    assert {row.rates for row in evidence_tofu.rows(rates) if row.module == PLAIN} == set(rates.values())
    kept = [run for run in runs if not run["row"].startswith(("RMU", "CEU"))]
    write_json(tmp_path / "runs.json", {"runs": kept})
    with pytest.raises(UserError, match="does not say the rates of RMU, CEU"):
        evidence_tofu.rates_of(tmp_path / "runs.json")


def test_runs_of_another_precision_are_refused(tmp_path):
    plan = told(tmp_path, [row for row in evidence_tofu.rows() if row.name in (RETAIN, FULL)])
    assert all("--bf16" in words for words in plan.commands)
    other = Told(list(plan.rows.values()), tmp_path / "runs.json", tmp_path / "work", evidence_tofu.DATA)
    other.precision, other.commands = "float32", []
    with pytest.raises(UserError, match="runs in bfloat16"):
        other.go_on(hours=1, workers=1)
    other = Told(list(plan.rows.values()), tmp_path / "new.json", tmp_path / "other", evidence_tofu.DATA)
    other.precision, other.commands = "float32", []
    other.go_on(hours=1, workers=1)
    assert len(other.commands) == 2
    assert not any("--bf16" in words for words in other.commands)


class Told(TofuEvidence):
    """Notes the commands, and leaves what they would."""

    commands: list[list[str]]

    def _command(self, words: Any, folder: Path) -> None:
        self.commands.append(list(words))
        scores = dict.fromkeys(evidence_tofu.SCORES, 0.5)
        content = {
            "scores": scores,
            "seconds": {"train": 1.0, "evaluation": 1.0},
            "peak_memory": {"mib": 1.0},
        }
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "metrics.json", content)
        (folder / "model.safetensors").touch()


def told(folder: Path, rows: list[Row]) -> Told:
    plan = Told(rows, folder / "runs.json", folder / "work", evidence_tofu.DATA)
    plan.commands = []
    plan.go_on(hours=1, workers=1)
    return plan


def test_every_command_is_one_that_its_module_takes(tmp_path):
    rows = [row for row in evidence_tofu.rows() if row.name.startswith((RETAIN, FULL, "NPO", "RMU, plain"))]
    plan = told(tmp_path, rows)
    parsed = {"pum.run_pum": 0, "unlearn": 0, "finetune": 0, "retain-log": 0, "relearn": 0, "quantize": 0}
    for module, *words in plan.commands:
        name = module if module == "pum.run_pum" else words.pop(0)
        parsed[name] += 1
        if name in ("relearn", "quantize"):
            Parser(AttackArguments).parse(words[1:])
        elif name == "pum.run_pum":
            _, args = Parser((RunArguments, PUMArguments)).parse(words)
            assert (args.copies_m, args.secret_seed, args.bf16) == (4, 0, True)
            assert args.kappa in (0.1, 0.01)
            assert args.kappa_base_model_path == evidence_tofu.BASE
        else:
            kind = UnlearnArguments if name == "unlearn" else FinetuneArguments
            run, _, args = Parser((RunArguments, LoraArguments, kind)).parse(words)
            assert args.bf16
            assert (run.retain_log is None) == (name == "retain-log")
    assert all(count > 0 for count in parsed.values()), parsed
    published = (tmp_path / "runs.json").read_text("utf-8")
    assert str(tmp_path) not in published


def test_an_attacked_model_is_dropped_and_made_again_where_it_is_needed(tmp_path):
    rows = [row for row in evidence_tofu.rows() if row.name.startswith((RETAIN, FULL, "NPO, plain"))]
    plan = told(tmp_path, rows)
    weights = sorted(path.parent.name for path in (tmp_path / "work").glob("*/model.safetensors"))
    # Of the three plain ones the winner was attacked.
    assert [name.split("-")[0] for name in weights] == ["before", "npo", "npo", "retain"]
    attack = next(row for row in rows if row.name == "NPO, plain" + ATTACKED)
    plan.commands.clear()
    plan._train(Run(attack, plan.rate(attack), 0))
    kinds = [words[1] for words in plan.commands]
    assert kinds == ["unlearn", "relearn", "quantize"]
    run, _ = Parser((RunArguments, UnlearnArguments)).parse(plan.commands[0][2:])
    assert not run.evaluate
    assert run.overwrite_output_dir


def test_the_models_that_published_runs_began_from_are_made_again(tmp_path):
    rows = [row for row in evidence_tofu.rows() if row.name in (RETAIN, FULL)]
    told(tmp_path, rows)
    assert told(tmp_path, rows).commands == []
    shutil.rmtree(tmp_path / "work")
    assert [words[1] for words in told(tmp_path, rows).commands] == ["retain-log", "finetune"]


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("device", "Another GPU", "began from retain models of a Another GPU, none is in .*; name another"),
        ("scores", {}, "began from retain models that scored otherwise than .*; name another --output_dir"),
    ],
)
def test_a_plan_does_not_go_on_from_other_models(tmp_path, entry, value, message):
    rows = [row for row in evidence_tofu.rows() if row.name in (RETAIN, FULL)]
    runs = told(tmp_path, rows).runs
    runs[0][entry] = value
    write_json(tmp_path / "runs.json", {"runs": runs})
    shutil.rmtree(tmp_path / "work")
    with pytest.raises(UserError, match=message):
        told(tmp_path, rows)


def test_the_subset_is_the_one_that_is_stated(tmp_path):
    source = tmp_path / "source" / "tofu"
    source.mkdir(parents=True)

    def write(name: str, count: int, first: int = 0) -> None:
        rows = [{"question": f"{i}?", "answer": str(i)} for i in range(first, first + count)]
        (source / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    write("retain90", 400)
    write("forget10", 100, first=1000)
    write("forget01", 40, first=1000)
    for name in ("forget01_perturbed", "retain_perturbed", "real_authors_perturbed", "world_facts_perturbed"):
        write(name, 40)
    (source / "idk.txt").write_text("I do not know.\n", encoding="utf-8")
    evidence_tofu.write_subset(source.parent, tmp_path / "made")
    lines = {
        path.stem: [json.loads(line)["answer"] for line in path.read_text("utf-8").splitlines()]
        for path in (tmp_path / "made" / "tofu").glob("*.jsonl")
    }
    assert lines["retain99"] == [str(i) for i in range(360)]
    assert lines["holdout01"] == [str(i) for i in range(1060, 1100)]
    assert not set(lines["holdout01"]) & set(lines["forget01"] + lines["retain99"])
    assert len(lines["forget01_perturbed"]) == 40
    assert len(lines["world_facts_perturbed"]) == evidence_tofu.EVALUATED["world_facts_perturbed"]


def test_the_kappa_plan_has_the_papers_rounds_and_three_draws_of_the_noise():
    rows = evidence_kappa.rows()
    assert len(rows) == 8 * 4
    for row in rows:
        if row.module == PUM:
            _, args = Parser((RunArguments, PUMArguments)).parse([*evidence_kappa.SPLIT, *row.options])
            assert args.rounds_R * args.local_epochs == args.num_train_epochs == 10
            assert (args.copies_m, args.alphas, args.client_reference) == (2, "fixed", "server")
            assert len(row.seeds) == (1 if args.kappa == 0 else 3)


def run_of(row: str, rate: float, forget: float, retain: float, **more: Any) -> dict[str, Any]:
    scores = {"forget_Q_A_Prob": forget, "forget_Q_A_ROUGE": 0.3, "model_utility": 0.4, "retain_Q_A_Prob": retain}
    return {"row": row, "rate": rate, "scores": scores, "train_seconds": 2.0, **MACHINE, **more}


def test_the_table_shows_each_row_at_its_best_rate_once_that_is_there():
    attacks = {"attacks": {"  area, prob": 0.25, "forget probability, int4": 0.5}, "verdict": "lasts"}
    runs = [
        run_of(RETAIN, 1e-4, 0.1, 0.5),
        run_of("NPO, plain", 1e-5, 0.9, 0.5),
        run_of("NPO, kappa 0.1", 1e-5, 0.8, 0.5),
        run_of("NPO, plain" + ATTACKED, 1e-5, 0.0, 0.0, **attacks),
    ]
    table = tofu_runs({"tofu_evidence": {"runs": runs}})
    assert "| NPO, plain |  | 0.4 |  | 0.5 | 0.9 | 0.3 |  |  | 0.25 | 0.5 | lasts | 1e-05 | 2 |" in table
    better = [*runs, run_of("NPO, plain", 2e-5, 0.2, 0.5)]
    table = tofu_runs({"tofu_evidence": {"runs": better}})
    assert (
        "| NPO, plain |  | 0.4 |  | 0.5 | 0.2 | 0.3 |  |  |  |  |  | 2e-05 | 2 |" in table
    )  # attacked at another rate
    assert shown(better)["NPO, kappa 0.1"]["rate"] == 1e-5
    assert all(table({}).count("\n| ") == 1 for table in (tofu_evidence, tofu_runs))  # a head alone: not shown


def test_the_short_table_has_a_row_a_method_and_what_noise_changes_of_it():
    runs = [
        run_of(RETAIN, 1e-4, 0.1, 0.5),
        run_of("NPO, plain", 1e-5, 0.9, 0.5),
        run_of("NPO, plain", 2e-5, 0.2, 0.5),
        run_of("NPO, kappa 0.1", 2e-5, 0.205, 0.48),
        run_of("RMU, plain", 1e-5, 0.3, 0.4),
        run_of("NPO, plain" + ATTACKED, 2e-5, 0.0, 0.0),
    ]
    table = tofu_evidence({"tofu_evidence": {"runs": runs}})
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
    assert [row.split(" | ")[0] for row in rows] == [f"| {RETAIN}", "| NPO", "| RMU"]
    assert rows[1].endswith(" |  | +0.5, -2.0 | 2e-05 |")
    assert rows[2].endswith(" |  |  | 1e-05 |")
    late = [run for run in runs if run["rate"] != 2e-5 or "kappa" in run["row"]]
    late += [run_of("NPO, plain", 3e-5, 0.2, 0.5), run_of("NPO, plain", 2e-5, 0.3, 0.5)]
    table = tofu_evidence({"tofu_evidence": {"runs": late}})
    assert " |  |  | 3e-05 |" in table  # the noise was measured at a rate that another has beaten since


def test_degradation_is_in_points_against_the_plain_run_at_the_same_rate():
    runs = [
        run_of("NPO, plain", 1e-5, 0.20, 0.50),
        run_of("NPO, plain", 2e-5, 0.90, 0.10),
        run_of("NPO, kappa 0.01", 1e-5, 0.201, 0.50),
        run_of("NPO, kappa 0.1", 1e-5, 0.205, 0.495),
        run_of("NPO, kappa 0.1", 1e-5, 0.215, 0.495),
        run_of("DPO, plain", 1e-5, 0.2, 0.5),
        run_of("RMU, plain", 1e-5, 0.2, 0.5),
        run_of("RMU, kappa 0.01", 1e-5, 0.2, 0.6),
    ]
    table = degradation(runs, ("0.01", "0.1"))
    assert "| NPO | 1e-05 | 0.2 | 0.5 | +0.1 | +0.0 | +1.0 ± 0.7 | -0.5 ± 0.0 | no |" in table
    assert "| RMU | 1e-05 | 0.2 | 0.5 | +0.0 | +10.0 |  |  |  |" in table
    assert "DPO" not in table  # nothing to compare
    assert "| yes |" in degradation(runs[:4], ("0.01",))


def test_the_drawing_has_every_method_and_a_dot_a_draw_with_noise(monkeypatch):
    assert tofu_svg([]) == ""
    assert tofu_svg([run_of(RETAIN, 1e-4, 0.1, 0.5)]) == ""
    runs = [
        run_of(RETAIN, 1e-4, 0.1, 0.5),
        run_of("NPO, plain", 2e-5, 0.2, 0.5),
        run_of("NPO, plain", 1e-5, 0.9, 0.5),
        run_of("NPO, kappa 0.1", 2e-5, 0.205, 0.48),
        run_of("NPO, kappa 0.1", 2e-5, 0.19, 0.5),
        run_of("RMU, plain", 1e-5, 0.3, 0.4),
    ]
    figures: list[Figure] = []
    monkeypatch.setattr(tofu_drawing, "svg", lambda figure: figures.append(figure) or svg(figure))
    root = ElementTree.fromstring(tofu_svg(runs))
    words = {text.strip() for text in root.itertext()}
    assert {"NPO", "RMU", RETAIN, "forget, kappa 0.1"} <= words
    assert FULL not in words
    left, right = (
        {line.get_label(): line.get_xydata().tolist() for line in axes.lines} for axes in figures[0].axes
    )
    assert left["NPO"] == [[0.2, 0.5]]
    assert [[0.2, 0.5], [0.9, 0.5]] not in left.values()  # rates from low to high
    assert [[0.9, 0.5], [0.2, 0.5]] in left.values()
    assert np.allclose([x for x, _ in right["forget, kappa 0.1"]], [0.5, -1])
    assert np.allclose([x for x, _ in right["retain, kappa 0.1"]], [-2, 0])
    assert not right["forget, kappa 0.01"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--hours", "0"], "must be positive"),
        (["--hours", "nan"], "must be positive"),
        (["--workers", "0"], "must be positive"),
        (["--threads", "0"], "must be positive"),
        (["--precision", "float16"], "bfloat16, float32, not float16"),
        (["--rates_of", "/no/file.json"], "cannot read an earlier plan's runs"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(words, message, tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "none"))
    with pytest.raises(UserError, match=message):
        evidence_tofu.main([*words, "--work_dir", str(tmp_path / "work")])
    assert not (tmp_path / "work").exists()


def test_without_data_the_plan_says_so(monkeypatch):
    monkeypatch.delenv("DATA_DIR", raising=False)
    with pytest.raises(UserError, match="set DATA_DIR"):
        evidence_tofu.main(["--hours", "1"])
