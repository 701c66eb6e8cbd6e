"""The tables of the report: which run is which cell, means over seeds, and the paper's figures where known."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from paczo.bounds import epsilon_for_success, posterior_success, success_for_epsilon
from paczo.cells import DP_METHODS, Cell, cells
from paczo.report.matching import is_cell
from paczo.report.page import Table
from paczo.report.runs import Run, natural

Matched = dict[str, Run]
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
class Cells:
    """A table of cells: the lines of which something ran, and those of which something is missing."""

    ran: Table
    missing: Table


def score(metrics: Mapping[str, Any]) -> float:
    """Test accuracy or F1 in percent."""
    test = metrics["after"]["test"]
    return 100 * float(test["f1"] if "f1" in test else test["accuracy"])


def match(rows: list[Cell], runs: Iterable[Run]) -> Matched:
    """The run of each cell by run id: the folder's name and every setting must be the row's."""
    by_name = {run.name: run for run in runs}
    return {
        cell["run_id"]: by_name[cell["run_id"]]
        for cell in rows
        if cell["run_id"] in by_name and is_cell(cell, by_name[cell["run_id"]].figures["configuration"])
    }


def summary(members: list[Cell], matched: Matched) -> tuple[str, str]:
    """ "mean +- std" of the runs there are, and how many of how many; ("", "0 of n") where none ran."""
    found = [matched[cell["run_id"]].figures for cell in members if cell["run_id"] in matched]
    count = f"{len(found)} of {len(members)}"
    if any("reproducible" in metrics["privacy"]["secrets"] for metrics in found):
        count += ", reproducible secrets"
    return mean_and_spread([score(metrics) for metrics in found]), count


def mean_and_spread(values: Sequence[float]) -> str:
    """Mean and standard deviation; "" of nothing."""
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


def commands(members: Iterable[Cell]) -> str:
    """What to type to run these cells: one script, or all that a pattern matches where it matches no other."""
    paths = {cell["run_id"]: f"scripts/{cell['folder']}/{cell['run_id']}.sh" for cell in members}
    first, last = min(paths), max(paths)
    same = next((at for at, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    pattern = f"{first[:same]}*"
    if len(paths) > 1 and paths.keys() == {c["run_id"] for c in cells() if fnmatch(c["run_id"], pattern)}:
        return f"bash scripts/run_cells.sh '{pattern}'"
    return " && ".join(f"bash {path}" for path in paths.values())


def _split(
    head: tuple[str, ...], groups: dict[tuple[str, ...], list[Cell]], matched: Matched, *, paper: bool = False
) -> Cells:
    """A line a group, by the numbers in their names; of one that ran in part, the rest is missing."""
    ran, missing = [], []
    for key, members in sorted(groups.items(), key=lambda item: [natural(text) for text in item[0]]):
        left = [cell for cell in members if cell["run_id"] not in matched]
        if len(left) < len(members):
            ran.append((*key, *summary(members, matched), *((_paper(members[0]),) if paper else ())))
        if left:
            # Cells that are finished are skipped, so the pattern may be of all.
            missing.append((*key, f"{len(left)} of {len(members)}", commands(members if len(left) > 1 else left)))
    return Cells(
        Table((*head, "score", "n", *(("paper",) if paper else ())), ran),
        Table((*head, "missing", "command"), missing, commands=True),
    )


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


def headline(rows: list[Cell], matched: Matched) -> Cells:
    chosen = [cell for cell in rows if cell["folder"] == "headline"]
    groups = _grouped(chosen, lambda cell: (_model(cell), _method(cell)))
    return _split(("task and model", "method"), groups, matched, paper=True)


def _by_prefix(prefix: str, title: str, label: Callable[[Cell], str]) -> Callable[[list[Cell], Matched], Cells]:
    """A table of the cells whose run id starts so, one line for each model and label."""

    def make(rows: list[Cell], matched: Matched) -> Cells:
        chosen = [cell for cell in rows if cell["run_id"].startswith(prefix)]
        groups = _grouped(chosen, lambda cell: (_model(cell), label(cell)))
        return _split(("task and model", title), groups, matched)

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


def plateau(rows: list[Cell], matched: Matched) -> Cells:
    def key(cell: Cell) -> tuple[str, ...]:
        success = posterior_success(float(cell["mi"]))
        return _model(cell), cell["mi"], f"{success:.4f}", f"{epsilon_for_success(success):.3f}"

    chosen = [cell for cell in rows if cell["run_id"].startswith("plateau_")]
    head = ("task and model", "nats", "attack success at most", "as epsilon")
    return _split(head, _grouped(chosen, key), matched)


def equal_success(rows: list[Cell], matched: Matched) -> Cells:
    """PAC cells and DP cells by the attack success they allow."""
    chosen = [
        cell
        for cell in rows
        if (cell["task"], cell["model"], cell["track"]) == ("SST2", "facebook/opt-1.3b", "ft")
        and (cell["method"] in DP_METHODS or cell["folder"] == "headline" or cell["run_id"].startswith("plateau_"))
    ]
    columns = ("PACZero", "dpzero", "dp-aggzo")
    ran, missing = [], []
    for _, members in sorted(_grouped(chosen, lambda cell: round(attack_success(cell), 2)).items()):
        success = max(attack_success(cell) for cell in members)
        start = (f"{success:.4f}", f"{epsilon_for_success(success):.2f}")
        texts = []
        for column in columns:
            mine = [cell for cell in members if family(cell) == column]
            texts.append("; ".join(_labelled(mine, matched)) or ("not run" if mine else "no such cell"))
        if any(cell["run_id"] in matched for cell in members):
            ran.append((*start, *texts))
        left = [cell for cell in members if cell["run_id"] not in matched]
        missing += [
            (*start, f"{family(left[0])}, {name}", commands(left)) for name, left in _by_label(left).items()
        ]
    head = ("attack success at most", "as epsilon")
    return Cells(Table((*head, *columns), ran), Table((*head, "missing", "command"), missing, commands=True))


def family(cell: Cell) -> str:
    """The method's name in comparisons with DP."""
    return cell["method"] if cell["method"] in DP_METHODS else "PACZero"


def attack_success(cell: Cell) -> float:
    """The bound on a balanced membership attack that the cell's budget gives."""
    if cell["method"] in DP_METHODS:
        return success_for_epsilon(float(cell["epsilon"]), 1e-5)
    return posterior_success(float(cell["mi"])) if cell["mi"] else 0.5


def _by_label(members: list[Cell]) -> dict[str, list[Cell]]:
    def label(cell: Cell) -> str:
        if cell["method"] in DP_METHODS:
            return f"{cell['method']} epsilon {cell['epsilon']}, T={cell['steps']}"
        return f"{cell['mi']} nats" if cell["mi"] else "0 nats"

    return _grouped(members, label)


def _labelled(members: list[Cell], matched: Matched) -> list[str]:
    texts = [(name, summary(mine, matched)) for name, mine in _by_label(members).items()]
    return [f"{name}: {text} ({count})" for name, (text, count) in texts if text]


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


def setting(metrics: Mapping[str, Any]) -> str:
    """Task, model and track of a run."""
    found = metrics["configuration"]
    tracks = ("lora", "prefix_tuning", "head_tuning")
    track = next((name.removesuffix("_tuning") for name in tracks if found.get(name)), "ft")
    return f"{found['task_name']} {found['model_name'].rpartition('/')[2]} {track}"


def method(metrics: Mapping[str, Any]) -> str:
    """What a run did, and what has to be said with it."""
    privacy = metrics["privacy"]
    label = f", {metrics['label']}" if "label" in metrics else ""
    return privacy["mechanism"] + ("" if privacy["private"] else " (not private)") + label


def other_run(run: Run) -> tuple[str, ...]:
    """A line on a run by itself; KeyError, TypeError or ValueError where its metrics are not a run's."""
    metrics = run.figures
    bound, share = metrics["privacy"].get("posterior_success_bound"), unanimity(metrics)
    return (
        run.name + (" (smoke)" if metrics["configuration"].get("smoke") else ""),
        setting(metrics),
        method(metrics),
        f"{metrics['configuration']['learning_rate']:g}",
        str(metrics["steps"]),
        f"{score(metrics):.2f}",
        "none" if bound is None else f"{bound:.4f}",
        "" if share is None else f"{share:.2f}",
    )


def other_runs(runs: Iterable[Run]) -> Table:
    """Runs that are no cell of the paper, each with what it was."""
    head = ("run", "task and model", "method", "rate", "steps", "score", "attack success at most", "unanimous")
    return Table(head, [other_run(run) for run in runs])


def unanimity(metrics: Mapping[str, Any]) -> float | None:
    """Share of the releases that were free because all subsets agreed; None for other mechanisms."""
    releases = metrics["privacy"]["releases"]
    total = sum(releases.values())
    kinds = {"unanimous", "noisy", "coin"}
    if not total or not kinds.issuperset(releases):
        return None
    return releases.get("unanimous", 0) / total
