"""Learning curves: what is read of a run's log, the mean and its band, and names that stay text."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from paczo.report.curves import MOST, Series, band, curves_svg, drawings
from paczo.report.runs import Run, evaluations, find_runs, grouped, natural, read_run
from src.pages import COLOURS, DARK, LIGHT, document, standalone
from src.utils import UserError

LABELS = {"x_label": "step", "y_label": "dev loss", "title": "a title"}


def entry(step, loss, accuracy=0.5):
    return {"step": step, "eval_loss": loss, "eval_accuracy": accuracy, "epoch": step}


def write_checkpoint(folder, step, history):
    path = folder / "checkpoints" / f"checkpoint-{step}" / "trainer_state.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"log_history": history}))
    return path


def test_a_band_is_the_mean_and_the_extremes_as_far_as_all_have_come():
    runs = [[(0, 1.0), (2, 3.0), (4, 5.0), (6, 9.0)], [(0, 3.0), (4, 1.0)]]
    found = band(runs)
    assert found.x.tolist() == [0, 2, 4]
    assert found.mean.tolist() == [2, 2.5, 3]
    assert found.low.tolist() == [1, 2, 1]
    assert found.high.tolist() == [3, 3, 5]
    error = band(runs, "error")
    assert np.allclose(
        error.high - error.mean, [1, 0.5, 2]
    )  # a standard error of two values is half their distance
    assert band([[], []]).x.size == 0
    assert band([[(1, 2.0)]], "error").low.tolist() == [2.0]


def test_where_a_run_is_not_finite_nothing_is_drawn():
    runs = [[(0, 1.0), (1, math.nan), (2, 3.0), (3, 4.0)], [(0, 1.0), (1, 1.0), (2, 1.0), (3, math.inf)]]
    assert np.isnan(band(runs).mean).tolist() == [False, True, False, True]
    drawing = curves_svg([Series("wild", runs)], **LABELS)
    assert "wild (2 runs) (not finite: 2 of 2)" in drawing
    assert "nan" not in drawing.lower().replace("nanmean", "")
    # Beside such a point too, where the line to it would go.
    beside = [[(0, 1.0), (2, math.nan), (4, 1.0)], [(0, 1.0), (1, 1.0), (3, 1.0), (4, 1.0)]]
    assert np.isnan(band(beside).mean).tolist() == [False, True, True, True, False]


def test_a_drawing_has_a_line_a_series_a_band_where_there_are_seeds_and_the_pages_colour():
    series = [Series("one", [[(0, 1.0), (1, 2.0)]]), Series("two", [[(0, 1.0), (1, 2.0)], [(0, 2.0), (1, 3.0)]])]
    drawing = curves_svg([*series, Series("none", [[]])], **LABELS)
    root = ElementTree.fromstring(drawing)
    texts = {"".join(element.itertext()).strip() for element in root.iter() if element.tag.endswith("text")}
    assert {"one", "two (2 runs)", "step", "dev loss", "a title"} <= texts
    assert "none" not in texts
    assert sum(element.get("id", "").startswith("FillBetween") for element in root.iter()) == 1
    assert "#000000" not in drawing
    assert "currentColor" in drawing
    assert drawing == curves_svg([*series, Series("none", [[]])], **LABELS), "equal curves give equal files"
    assert curves_svg([Series("none", [[]])], **LABELS) == ""


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "--><b>", "$x_{y", "_hidden", "a&b'\"", "]]>"])
def test_names_stay_text(name):
    root = ElementTree.fromstring(curves_svg([Series(name, [[(0, 1.0), (1, 2.0)]])], **{**LABELS, "title": name}))
    texts = ["".join(element.itertext()).strip() for element in root.iter() if element.tag.endswith("text")]
    assert len([text for text in texts if text.removeprefix("\N{ZERO WIDTH SPACE}") == name]) == 2
    assert not [element for element in root.iter() if element.tag.rpartition("}")[2] in ("script", "b")]
    assert "<title>&lt;b&gt;</title>" in document("<b>", "")


def test_colours_can_be_told_from_both_backgrounds():
    def luminance(colour):
        parts = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    def contrast(one, other):
        low, high = sorted((luminance(one), luminance(other)))
        return (high + 0.05) / (low + 0.05)

    for theme in (LIGHT, DARK):
        assert contrast(theme["ink"], theme["paper"]) > 7
        assert min(contrast(colour, theme["paper"]) for colour in COLOURS) > 3


def test_a_file_of_its_own_brings_its_background():
    text = standalone(curves_svg([Series("one", [[(0, 1.0), (1, 2.0)]])], **LABELS))
    ElementTree.fromstring(text)
    assert text.count(f"background:{LIGHT['paper']}") == text.count(f"background:{DARK['paper']}") == 1


def test_a_finished_runs_evaluations_are_one_a_step_and_none_of_the_kept_checkpoint():
    last = [entry(2, 0.9), entry(4, 0.8)]
    kept = {"evaluations": [entry(2, 0.5), entry(4, 0.8), entry(4, 0.5)], "best_step": 2}
    assert [one["eval_loss"] for one in evaluations(kept)] == [0.5, 0.8]
    assert evaluations({"evaluations": [*last, entry(4, 0.8)], "best_step": 4}) == last
    assert evaluations({"evaluations": last, "best_step": None}) == last
    assert evaluations({"evaluations": [], "best_step": None}) == []


def test_a_run_that_has_not_ended_is_read_from_its_newest_readable_checkpoint(tmp_path):
    logged = {"step": 5, "loss": 1.0, "unanimous": 0.75}
    write_checkpoint(tmp_path, 9, [entry(5, 2.0)])
    write_checkpoint(tmp_path, 10, [logged, entry(5, 2.0), entry(10, math.nan)])
    write_checkpoint(tmp_path, 100, []).write_text('{"log_history": [{"st')
    write_checkpoint(tmp_path, 101, []).write_text("[]")
    run = read_run(tmp_path)
    assert run.metrics is None
    assert run.points["unanimous"] == [(5, 0.75)]
    assert [step for step, _ in run.points["dev loss"]] == [5, 10]
    assert math.isnan(run.points["dev loss"][1][1])
    assert read_run(tmp_path / "none").points == {}


def test_a_finished_run_starts_before_training_and_counts_its_passes(tmp_path):
    write_checkpoint(tmp_path, 4, [{"step": 4, "loss": 1.0, "unanimous": 0.5}])
    metrics = {
        "before": {"dev": {"loss": 3.0, "f1": 0.1}},
        "evaluations": [{"step": 2, "eval_loss": 2.0, "eval_f1": 0.2}, {"step": 2, "eval_loss": 9.0}],
        "best_step": 2,
        "configuration": {"zo_derivative": "central", "pac_k": 4, "learning_rate": 1.0, "seed": 3},
    }
    run = read_run(tmp_path, metrics)
    assert run.points == {
        "dev loss": [(0, 3.0), (2, 2.0)],
        "dev F1": [(0, 0.1), (2, 0.2)],
        "unanimous": [(4, 0.5)],
    }
    assert run.passes_a_step == 8
    assert "seed" not in run.settings
    exact = {**metrics, "configuration": {"zo_derivative": "exact", "pac_k": 4}}
    assert read_run(tmp_path, exact).passes_a_step is None
    assert "forward passes" in drawings({"a": [run]}, "a", x="passes")[0]
    assert drawings({"a": [read_run(tmp_path, exact)]}, "a", x="passes") == []
    batch = {**metrics, "configuration": {"zo_derivative": "central", "dp_k": 4, "dp_sample_rate": 0.25}}
    assert read_run(tmp_path, batch).passes_a_step == 2


def made(name, points=None, **settings):
    """A run of these settings; one without has not ended."""
    return Run(name, None, {"configuration": settings} if settings else None, points or {})


def test_runs_are_put_together_where_nothing_but_the_seed_differs():
    runs = [
        made(name, rate=1.0, seed=at) for at, name in enumerate(["K16_s0", "K4_s1", "K4_s0", "K4-s7", "K4_s0_x"])
    ]
    runs += [made("K4_s2"), made("K4_s3", rate=2.0), made("K16_s0", rate=3.0)]
    assert {name: [run.name for run in members] for name, members in grouped(runs).items()} == {
        "K4-s7, K4_s0, K4_s1, K4_s2": ["K4-s7", "K4_s0", "K4_s1", "K4_s2"],
        "K4_s3": ["K4_s3"],
        "K4_x": ["K4_s0_x"],
        "K16_s0": ["K16_s0"],
        "K16_s0'": ["K16_s0"],
    }


def test_runs_are_found_by_folder_and_by_pattern(tmp_path):
    for name in ("a/K16_s0", "a/K4_s0", "b[1]/c", "b[1]/d"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "metrics.json").touch()
    (tmp_path / "a/K4_s0/metrics.json").rename(tmp_path / "a/K4_s0/transcript.jsonl")
    (tmp_path / "a/empty").mkdir()
    (tmp_path / "a/file").touch()

    def names(*patterns):
        return [path.name for path in find_runs([str(tmp_path / pattern) for pattern in patterns])]

    assert names("a") == ["K4_s0", "K16_s0"]
    assert names("a/*", "a/K4*", "b[1]") == ["K4_s0", "K16_s0", "c", "d"]
    assert names("*/K4_s0") == names("a/K4_s0") == ["K4_s0"]
    assert names("none") == []
    with pytest.raises(UserError, match=r"no folder matches --runs .*/none\*"):
        names("none*")


@pytest.mark.parametrize(
    "names",
    [
        ["c25_lr5em5", "c25_lr1em4", "c25_lr1em3", "c100_lr1em4"],
        ["K4", "K16", "K64"],
        ["r4", "r8", "r16"],
        ["1e-4", "0.07", "0.5"],
        ["mi1em2", "mi0p07", "mi0p5"],
        ["", "a", "a1b", "a1b2"],
    ],
)
def test_names_are_in_the_order_of_their_numbers(names):
    turned = names[::-1]
    turned.sort(key=natural)
    assert turned == names


def test_many_runs_are_drawn_in_several_drawings():
    points = {"dev loss": [(0, 1.0), (1, 0.5)]}
    runs = [made(f"K{k}_s0", points, k=k) for k in range(2, MOST + 2)]
    found = drawings(grouped([*runs, made("K1_s0", points), made("K0")]), "many")
    assert len(found) == 2
    assert ">K1, 1 not finished</text>" in found[0]
    assert f">K{MOST + 1}</text>" in found[1]
    assert "K0" not in "".join(found)
