"""The tables of finished unlearning runs, and their page."""

from __future__ import annotations

import json

from src.tofu.page import plot, points, prefix
from src.tofu.runs import columns_of
from src.tofu.table import main as print_table


def write_run(folder, **scores):
    folder.mkdir(parents=True)
    run = {"scores": scores, "seconds": {"train": 3.0}, "peak_memory": {"mib": 512.0}}
    (folder / "metrics.json").write_text(json.dumps(run))


def test_the_table_shows_both_runs_side_by_side(tmp_path, capsys):
    for name, probability in (("task", 0.25), ("task_PUM", 0.2625)):
        write_run(tmp_path / name, forget_Q_A_Prob=probability, forget_quality=None)
    (tmp_path / "TOFU_SUMMARY.json").write_text('{"forget_Q_A_Prob": 0.9}')
    print_table([str(tmp_path), "--before", str(tmp_path), "--json", str(tmp_path / "table.json")])
    shown = capsys.readouterr().out
    lines = {line[:20].strip(): line.split()[2:] for line in shown.splitlines()}
    assert lines["forget probability"] == ["0.9", "0.25", "0.2625"]
    assert lines["forget quality"] == ["-", "open", "open"]
    assert "not run" not in shown
    assert "privleak" not in shown  # no run has it
    assert json.loads((tmp_path / "table.json").read_text())["tasks"]["task"]["PUM"]["seconds"] == 3.0


def test_the_table_has_no_column_for_what_was_not_run(tmp_path, capsys):
    write_run(tmp_path / "task", forget_Q_A_Prob=0.25)
    print_table([str(tmp_path)])
    shown = capsys.readouterr().out
    assert shown.splitlines()[1:3] == ["task", f"{'':<22}{'plain':>12}"]
    assert " -" not in shown
    assert "not run: PUM (tofu_pum.sh)" in shown
    print_table([str(tmp_path), "--tasks", "other"])
    assert capsys.readouterr().out.endswith("not run: plain (tofu_unlearn.sh), PUM (tofu_pum.sh)\n")


def test_the_page_plots_forget_quality_against_utility(tmp_path, capsys):
    before = {"forget_quality": 1e-40, "model_utility": 0.6}
    (tmp_path / "TOFU_SUMMARY.json").write_text(json.dumps(before))
    write_run(tmp_path / "a_NPO", forget_quality=0.3, model_utility=0.5)
    write_run(tmp_path / "a_NPO_PUM", forget_quality=0.2, model_utility=0.55)
    write_run(tmp_path / "b_<RMU>", forget_quality=None, model_utility=0.4)
    page = tmp_path / "sub/table.html"
    print_table([str(tmp_path), "--before", str(tmp_path), "--tasks", "a_NPO", "--page", str(page)])
    assert f"plot of forget quality against utility: {page}" in capsys.readouterr().out
    text = page.read_text()
    assert text.count("<svg") == 1
    assert "b_&lt;RMU&gt;" in text  # every task of the folder has its table
    tasks = {"a_NPO": columns_of(tmp_path, "a_NPO", before), "b_<RMU>": columns_of(tmp_path, "b_<RMU>", None)}
    assert sorted(points(tasks)) == [
        ("", "before", 0.6, 1e-40),
        ("a_NPO", "PUM", 0.55, 0.2),
        ("a_NPO", "plain", 0.5, 0.3),
    ]
    drawn = plot(tasks)
    assert [f">{label}</text>" in drawn for label in ("a_NPO", "before", "plain", "PUM")] == [True] * 4
    assert "RMU" not in drawn
    assert "give a retain log" in plot({})


def test_the_legend_has_one_line_for_each_task_and_each_kind(tmp_path):
    """What all tasks begin with stands above the plot."""
    names = [f"tofu_tiny_forget10_{method}" for method in ("NPO", "NPO2", "GradDiff")]
    run = {"forget_quality": 0.3, "model_utility": 0.5}
    drawn = plot({name: {"plain": run, "PUM": run} for name in names})
    assert prefix(names) == "tofu_tiny_forget10_"
    for label in ("tofu_tiny_forget10", "NPO", "NPO2", "GradDiff", "plain", "PUM"):
        assert drawn.count(f">{label}</text>") == 1
    assert prefix(names[:1]) == prefix(["a_NPO", "b_NPO"]) == ""
