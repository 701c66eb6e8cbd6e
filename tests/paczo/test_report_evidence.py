"""The published course of the SST-2 runs: what is drawn of them, in which group, and what is left out."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree

import pytest

from paczo.report.evidence import TUNING_SEED, evidence_drawings, evidence_svg, panels, reported
from src.pages import standalone


def run(row, seed=0, **changes):
    """Four steps that cost two passes, evaluated at steps 2 and 4."""
    figures = {
        "row": row,
        "rate": 0.1,
        "seed": seed,
        "steps": 4,
        "passes": 2.0,
        "before": {"dev": {"loss": 1.0, "accuracy": 0.5}},
        "after": {"dev": {"loss": 0.6, "accuracy": 0.7}},
        "curve": [2, 4],
        "dev_loss": [0.8, 0.6],
        "dev_accuracy": [0.6, 0.7],
        "best_step": 4,
        "agreement": [1.0, 0.5, 0.25, 0.25],
    }
    return {**figures, **changes}


def test_a_row_is_a_series_of_its_seeds_against_passes():
    runs = [run("a", 0), run("a", 1), run("a", TUNING_SEED), run("b", 0, dev_loss=[0.8, 0.7])]
    drawn = panels({"runs": runs})["Zero nats, and not private"]
    assert [(one.label, len(one.runs)) for one in drawn["dev loss"]] == [("a", 2), ("b", 1)]
    assert drawn["dev loss"][1].runs == [[(0, 1.0), (1, 0.8), (2, 0.7)]]
    assert drawn["dev accuracy"][0].runs[1] == [(0, 0.5), (1, 0.6), (2, 0.7)]
    assert drawn["all subsets agree"][0].runs[0] == [(0.25, 1.0), (0.75, 0.5), (1.25, 0.25), (1.75, 0.25)]


def test_only_draws_at_the_rate_that_the_tuning_draw_chose_are_reported():
    tuned = [
        run("a", TUNING_SEED, rate=rate, after={"dev": {"loss": loss}}) for rate, loss in ((0.1, 0.6), (0.2, 0.5))
    ]
    runs = [*tuned, run("a", 0, rate=0.1), run("a", 0, rate=0.2), run("as a", 0, rate=0.3)]
    assert [(one["row"], one["rate"]) for one in reported(runs)] == [("a", 0.2), ("as a", 0.3)]


def test_the_end_of_a_run_is_not_what_an_earlier_checkpoint_scored():
    kept = run("a", best_step=2, after={"dev": {"loss": 0.8}}, dev_loss=[0.8, 0.8])
    assert panels({"runs": [kept]})["Zero nats, and not private"]["dev loss"][0].runs == [[(0, 1.0), (1, 0.8)]]
    ended = run("a", best_step=2, after={"dev": {"loss": 0.8}}, dev_loss=[0.8, 0.9])
    assert panels({"runs": [ended]})["Zero nats, and not private"]["dev loss"][0].runs[0][-1] == (2, 0.9)


def test_rows_are_put_into_three_groups_and_empty_ones_are_left_out():
    empty = {"curve": [], "dev_loss": [], "dev_accuracy": [], "agreement": []}
    names = ["PAC-ZPL", "DPZero, epsilon 2", "PAC-MI 0.11", "PAC-ZPL, N = 4000", "dev set alone, 32 rows"]
    runs = [run(name, **(empty if "rows" in name else {})) for name in names]
    found = {title: [one.label for one in drawn["dev loss"]] for title, drawn in panels({"runs": runs}).items()}
    assert [*found.values()] == [names[:1], names[1:3], names[3:]]
    assert panels({"runs": [run("a", **empty)]}) == {}
    assert evidence_svg({"runs": []}) == ""
    assert evidence_drawings({"runs": [run("a", TUNING_SEED)]}) == []


def test_numbers_of_directions_are_a_group_in_numeric_order_once_there_are_two():
    names = ["PAC-ZPL abstain, K = 256", "quant_full, K = 256"]
    found = panels({"runs": [run(name) for name in names]})
    assert [*found] == ["Zero nats, and not private"]
    names += [f"PAC-ZPL abstain, K = {k}" for k in (1024, 16)] + ["PAC-ZPL abstain, K = 256, N = 4000"]
    drawn = [
        [one.label for one in group["dev loss"]]
        for group in panels({"runs": [run(name) for name in names]}).values()
    ]
    assert drawn == [names[:2], [names[3], names[0], names[2]], names[4:]]


@pytest.mark.parametrize("losses", [[0.8, math.nan], [math.inf, 0.6]])
def test_the_drawing_says_what_is_not_finite_and_keeps_names_as_text(losses):
    runs = [
        run("<b>&", 0),
        run("<b>&", 1, dev_loss=losses),
        run("no dev set", curve=[], dev_loss=[], dev_accuracy=[]),
    ]
    root = ElementTree.fromstring(standalone(evidence_svg({"runs": runs})))
    texts = ["".join(element.itertext()).strip() for element in root.iter() if element.tag.endswith("text")]
    assert texts.count("<b>& (2 runs)") + texts.count("<b>& (2 runs) (not finite: 1 of 2)") == 2
    assert "no dev set" in texts, "the legend is of all quantities"
    assert len(evidence_drawings({"runs": runs})) == 4
