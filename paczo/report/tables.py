"""The tables of the report: which run is which cell, means over seeds, and the paper's figures where known."""

from __future__ import annotations

import html
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paczo.bounds import epsilon_for_success, posterior_success, success_for_epsilon
from paczo.cells import DP_METHODS, Cell
from paczo.report.matching import is_cell

Matched = dict[str, "Result"]
# Percent, from arXiv 2605.06505: (task, model, track, method, nats) -> mean, standard deviation.
PAPER: dict[tuple[str, str, str, str, str], tuple[float, float | None]] = {
    ("SST2", "facebook/opt-1.3b", "ft", "pac-zpl", ""): (88.99, 0.91),
    ("SST2", "facebook/opt-1.3b", "ft", "pac-mi", "0.33"): (89.51, 1.12),
}
TABLE_1_NOTE = (
    "Test accuracy (SST-2) or F1 (SQuAD) in percent, mean and standard deviation over the seeds that ran."
    " Non-private MeZO, the paper's figure for SST-2 with OPT-1.3B and full fine-tuning: 91.1."
)
PLATEAU_NOTE = "The bound on a membership attack's success belongs to the budget, not to the run."
TABLE_3_NOTE = (
    "A budget in nats and an epsilon stand in one row where they allow a balanced membership attack the same"
    " success, to a hundredth; SST-2, OPT-1.3B, full fine-tuning."
)


@dataclass(frozen=True)
class Result:
    """A finished run: the name of its folder and its `metrics.json`."""

    name: str
    metrics: dict[str, Any]
    folder: Path


@dataclass(frozen=True)
class Table:
    head: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def markdown(self) -> str:
        lines = [self.head, tuple("---" for _ in self.head), *self.rows]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)

    def html(self) -> str:
        def row(values: Iterable[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(value)}</{tag}>" for value in values) + "</tr>"

        return f"<table>{row(self.head, 'th')}{''.join(row(values, 'td') for values in self.rows)}</table>"


def score(result: Result) -> float:
    """Test accuracy or F1 in percent."""
    test = result.metrics["after"]["test"]
    return 100 * float(test["f1"] if "f1" in test else test["accuracy"])


def match(rows: list[Cell], results: list[Result]) -> Matched:
    """The run of each cell by run id: the folder's name and every setting must be the row's."""
    by_name = {result.name: result for result in results}
    return {
        cell["run_id"]: by_name[cell["run_id"]]
        for cell in rows
        if cell["run_id"] in by_name and is_cell(cell, by_name[cell["run_id"]].metrics["configuration"])
    }


def summary(members: list[Cell], matched: Matched) -> tuple[str, str]:
    """ "mean +- std" of the runs there are, and how many of how many."""
    found = [matched[cell["run_id"]] for cell in members if cell["run_id"] in matched]
    values = [score(result) for result in found]
    count = f"{len(values)} of {len(members)}"
    if not values:
        return "missing", count
    if any("reproducible" in result.metrics["privacy"]["secrets"] for result in found):
        count += ", reproducible secrets"
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}", count


def _paper(cell: Cell) -> str:
    known = PAPER.get((cell["task"], cell["model"], cell["track"], cell["method"], cell["mi"]))
    if known is None:
        return "not known"
    return f"{known[0]:.2f}" + (f" ± {known[1]:.2f}" if known[1] is not None else "")


def _model(cell: Cell) -> str:
    return f"{cell['task']} {cell['model'].rpartition('/')[2]} {cell['track']}"


def _method(cell: Cell) -> str:
    return f"pac-mi {cell['mi']}" if cell["method"] == "pac-mi" else cell["method"]


def _grouped(rows: Iterable[Cell], key: Callable[[Cell], Any]) -> dict[Any, list[Cell]]:
    groups: dict[Any, list[Cell]] = {}
    for cell in rows:
        groups.setdefault(key(cell), []).append(cell)
    return groups


def headline(rows: list[Cell], matched: Matched) -> Table:
    chosen = [cell for cell in rows if cell["folder"] == "headline"]
    lines = [
        (*key, *summary(members, matched), _paper(members[0]))
        for key, members in _grouped(chosen, lambda cell: (_model(cell), _method(cell))).items()
    ]
    return Table(("task and model", "method", "score", "n", "paper"), lines)


def _by_prefix(prefix: str, title: str, label: Callable[[Cell], str]) -> Callable[[list[Cell], Matched], Table]:
    """A table of the cells whose run id starts so, one line for each model and label."""

    def make(rows: list[Cell], matched: Matched) -> Table:
        chosen = [cell for cell in rows if cell["run_id"].startswith(prefix)]
        groups = _grouped(chosen, lambda cell: (_model(cell), label(cell)))
        return Table(
            ("task and model", title, "score", "n"),
            [(*key, *summary(members, matched)) for key, members in groups.items()],
        )

    return make


ladder = _by_prefix("zplladder_", "steps", lambda cell: cell["steps"])
directions = _by_prefix("kabl_", "K", lambda cell: cell["K"])
rank = _by_prefix("rankabl_", "rank", lambda cell: cell["lora_r"])
clip = _by_prefix("clipabl_", "clip and nats", lambda cell: f"{cell['clip']}, {cell['mi']}")
learning_rate = _by_prefix("zpl_lrsweep_", "clip and rate", lambda cell: f"{cell['clip']}, {cell['lr']}")
mechanism = _by_prefix("mech_", "release, steps", lambda cell: f"{cell['ablation']}, {cell['steps']}")
nonprivate_squad = _by_prefix(
    "nonpriv_squad_", "rate, clip, steps", lambda c: f"{c['lr']}, {c['clip']}, {c['steps']}"
)


def plateau(rows: list[Cell], matched: Matched) -> Table:
    chosen = [cell for cell in rows if cell["run_id"].startswith("plateau_")]
    lines = []
    for cell in sorted(chosen, key=lambda cell: (cell["track"], float(cell["mi"]))):
        success = posterior_success(float(cell["mi"]))
        epsilon = epsilon_for_success(success)
        lines.append((_model(cell), cell["mi"], f"{success:.4f}", f"{epsilon:.3f}", *summary([cell], matched)))
    return Table(("task and model", "nats", "attack success at most", "as epsilon", "score", "n"), lines)


def equal_success(rows: list[Cell], matched: Matched) -> Table:
    """PAC cells and DP cells by the attack success they allow."""
    chosen = [
        cell
        for cell in rows
        if (cell["task"], cell["model"], cell["track"]) == ("SST2", "facebook/opt-1.3b", "ft")
        and (cell["method"] in DP_METHODS or cell["folder"] == "headline" or cell["run_id"].startswith("plateau_"))
    ]
    groups = _grouped(chosen, lambda cell: round(attack_success(cell), 2))
    columns = ("PACZero", "dpzero", "dp-aggzo")
    lines = []
    for _, members in sorted(groups.items()):
        texts = []
        for column in columns:
            mine = [cell for cell in members if family(cell) == column]
            texts.append("; ".join(_labelled(mine, matched)) or "no such cell")
        success = max(attack_success(cell) for cell in members)
        lines.append((f"{success:.4f}", f"{epsilon_for_success(success):.2f}", *texts))
    return Table(("attack success at most", "as epsilon", *columns), lines)


def family(cell: Cell) -> str:
    """The method's name in comparisons with DP."""
    return cell["method"] if cell["method"] in DP_METHODS else "PACZero"


def attack_success(cell: Cell) -> float:
    """The bound on a balanced membership attack that the cell's budget gives."""
    if cell["method"] in DP_METHODS:
        return success_for_epsilon(float(cell["epsilon"]), 1e-5)
    return posterior_success(float(cell["mi"])) if cell["mi"] else 0.5


def _labelled(members: list[Cell], matched: Matched) -> list[str]:
    def label(cell: Cell) -> str:
        if cell["method"] in DP_METHODS:
            return f"epsilon {cell['epsilon']}, T={cell['steps']}"
        return f"{cell['mi']} nats" if cell["mi"] else "0 nats"

    groups = _grouped(members, label)
    return [f"{name}: {' ('.join(summary(mine, matched))})" for name, mine in groups.items()]


def learning_note(measured: dict[str, Any]) -> str:
    before = statistics.mean(measured["before"])
    return (
        f"A tiny pretrained model on a made-up language, N={measured['num_train']}; accuracy before the training"
        f" {100 * before:.1f}. Every run evaluates about the same number of samples, and"
        " the rate is the best of the tuned ones."
    )


def learning(measured: dict[str, Any]) -> Table:
    lines = []
    for row in measured["rows"]:
        values = [100 * value for value in row["accuracy"]]
        tuned = ", ".join(f"{rate}: {100 * value:.1f}" for rate, value in row["tuning"].items())
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        text, count = f"{statistics.mean(values):.1f}{spread}", f"{row['evaluations']:,}"
        lines.append((row["method"], text, str(len(values)), count, f"{row['learning_rate']:g}", tuned))
    return Table(("method", "accuracy", "n", "samples evaluated", "rate", "tuning: rate and accuracy"), lines)


def other_runs(results: list[Result]) -> Table:
    """Runs that are no cell of the paper, each with what it was."""
    lines = []
    for result in results:
        found, privacy = result.metrics["configuration"], result.metrics["privacy"]
        bound = privacy.get("posterior_success_bound")
        share = unanimity(result.metrics)
        tracks = ("lora", "prefix_tuning", "head_tuning")
        track = next((name.removesuffix("_tuning") for name in tracks if found.get(name)), "ft")
        lines.append(
            (
                result.name + (" (smoke)" if found.get("smoke") else ""),
                f"{found['task_name']} {found['model_name'].rpartition('/')[2]} {track}",
                privacy["mechanism"]
                + ("" if privacy["private"] else " (not private)")
                + (f", {result.metrics['label']}" if "label" in result.metrics else ""),
                f"{found['learning_rate']:g}",
                str(result.metrics["steps"]),
                f"{score(result):.2f}",
                "none" if bound is None else f"{bound:.4f}",
                "" if share is None else f"{share:.2f}",
            )
        )
    head = ("run", "task and model", "method", "rate", "steps", "score", "attack success at most", "unanimous")
    return Table(head, lines)


def unanimity(metrics: dict[str, Any]) -> float | None:
    """Share of the releases that were free because all subsets agreed; None for other mechanisms."""
    releases = metrics["privacy"]["releases"]
    total = sum(releases.values())
    kinds = {"unanimous", "noisy", "coin"}
    if not total or not kinds.issuperset(releases):
        return None
    return releases.get("unanimous", 0) / total
