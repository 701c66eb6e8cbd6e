"""Tables of unlearning on TOFU, from the runs that `scripts.evidence_tofu` and `evidence_kappa` publish."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from scripts.tables import Figures, markdown, measured_on

FULL, RETAIN, ATTACKED = "before unlearning", "retain model", ", attacked"
JUDGED = ("forget_Q_A_Prob", "forget_Q_A_ROUGE", "model_utility")
PROBABILITIES = ("forget_Q_A_Prob", "retain_Q_A_Prob")  # what tells something of a small model too
SCORES = (
    ("forget quality", "forget_quality"),
    ("utility", "model_utility"),
    ("truth ratio", "forget_truth_ratio"),
    ("retain prob.", "retain_Q_A_Prob"),
    ("forget prob.", "forget_Q_A_Prob"),
    ("ROUGE-L", "forget_Q_A_ROUGE"),
    ("extraction", "extraction_strength"),
    ("privleak", "privleak"),
)
POINT = 0.01  # "below 1 %" of arXiv 2602.23798


def distance(scores: Figures, goal: Figures, judged: Sequence[str] = JUDGED) -> float:
    """How far a run is from the retain model, summed over what it is judged by."""
    return float(sum(abs(scores[name] - goal[name]) for name in judged))


def best_rates(runs: Sequence[Figures], goal: Figures) -> dict[str, float]:
    """Of each method, the rate of the plain run that is closest to the retain model."""
    found: dict[str, tuple[float, float]] = {}
    for run in runs:
        method, _, kind = run["row"].partition(", ")
        if kind == "plain":
            candidate = (distance(run["scores"], goal), run["rate"])
            found[method] = min(found.get(method, candidate), candidate)
    return {method: rate for method, (_, rate) in found.items()}


def shown(runs: Sequence[Figures]) -> dict[str, Figures]:
    """The run of each row that a table shows: at its method's best rate, or at the first where that is missing."""
    goal = next((run["scores"] for run in runs if run["row"] == RETAIN), None)
    rates = best_rates(runs, goal) if goal else {}
    found: dict[str, Figures] = {}
    for run in runs:
        if run["row"] not in found or run["rate"] == rates.get(run["row"].partition(", ")[0]):
            found[run["row"]] = run
    return found


def tofu_evidence(content: dict[str, Figures]) -> str:
    """A row a model: the retain model, that before unlearning, and each method plain; then what noise changes."""
    runs = content.get("tofu_evidence", {}).get("runs", [])
    found, noises = shown(runs), ("0.01", "0.1")
    moved, at = changes(runs, noises), _as_with_noise(runs)
    rows = []
    for name, run in found.items():
        method, _, kind = name.partition(", ")
        if kind not in ("", "plain"):
            continue
        same = at.get(method) is run  # otherwise the runs with noise are still to come
        cells = [[_points(moved[method][noise, key]) for key in PROBABILITIES] if same else () for noise in noises]
        scores = [_number(run["scores"].get(key)) for _, key in SCORES]
        rows.append((method, *scores, *(", ".join(filter(None, cell)) for cell in cells), f"{run['rate']:g}"))
    head = ("method", *(title for title, _ in SCORES), *(f"forget, retain at {noise}" for noise in noises), "rate")
    what = "Forget against retain probability by method and rate, and what PUM's noise changes of both"
    drawing = f"\n![{what}](result/published/tofu_evidence.svg)\n" if rows else ""
    return markdown(head, rows) + measured_on([*found.values()]) + drawing


def tofu_runs(content: dict[str, Figures]) -> str:
    """A row a model: each method plain and with either noise, and what the attacks bring back."""
    found = shown(content.get("tofu_evidence", {}).get("runs", []))
    methods = [name.partition(", ")[0] for name in found]
    rows = []
    for name, run in sorted(found.items(), key=lambda item: methods.index(item[0].partition(", ")[0])):
        if not name.endswith(ATTACKED):
            attacked = found.get(name + ATTACKED)
            if attacked is not None and attacked["rate"] != run["rate"]:
                attacked = None
            scores = [_number(run["scores"].get(key)) for _, key in SCORES]
            rows.append((name, *scores, *_attacks(attacked), f"{run['rate']:g}", f"{run['train_seconds']:.0f}"))
    head = ("model", *(title for title, _ in SCORES), "relearned", "int4", "verdict", "rate", "seconds")
    return markdown(head, rows) + measured_on([*found.values()])


def _attacks(run: Figures | None) -> tuple[str, str, str]:
    """Area above the retain model's curve in relearning forget rows; forget probability when rounded to int4."""
    if run is None:
        return "", "", ""
    attacks = run["attacks"]
    area, rounded = attacks.get("  area, prob"), attacks.get("forget probability, int4")
    return _number(area), _number(rounded), run["verdict"] or ""


def kappa_evidence(content: dict[str, Figures]) -> str:
    """A row a method on tiny models, with the settings of the paper's code: what noise changes, or none at all."""
    runs = content.get("kappa_evidence", {}).get("runs", [])
    return degradation(runs, ("0", "0.01", "0.1"))


def degradation(runs: Sequence[Figures], kappas: Sequence[str]) -> str:
    """Forget and retain probability of the plain run, and how they change with each noise, in points.

    The last column says whether both stay within a point at the most noise, in every draw.
    """
    plain = _as_with_noise(runs)
    rows = []
    for method, found in changes(runs, kappas).items():
        most = [abs(one) for key in PROBABILITIES for one in found[kappas[-1], key]]
        holds = "" if not most else "yes" if max(most) < POINT else "no"
        start = [_number(plain[method]["scores"][key]) for key in PROBABILITIES]
        rows.append((method, f"{plain[method]['rate']:g}", *start, *map(_points, found.values()), holds))
    names = ("forget", "retain")
    noises = [f"{name}, kappa {kappa}" for kappa in kappas for name in names]
    head = ("method", "rate", *(f"{name}, plain" for name in names), *noises, f"within 1 point at {kappas[-1]}")
    return markdown(head, rows) + measured_on(runs)


def changes(runs: Sequence[Figures], kappas: Sequence[str]) -> dict[str, dict[tuple[str, str], list[float]]]:
    """Of each method with runs on perturbed copies: noise, score -> by how much each draw differs from the plain
    run at the same rate, in the order of `kappas` and `PROBABILITIES`."""
    found = {}
    for method, base in _as_with_noise(runs).items():
        found[method] = {
            (kappa, key): [
                run["scores"][key] - base["scores"][key]
                for run in runs
                if run["row"] == f"{method}, kappa {kappa}" and run["rate"] == base["rate"]
            ]
            for kappa in kappas
            for key in PROBABILITIES
        }
    return found


def _as_with_noise(runs: Sequence[Figures]) -> dict[str, Figures]:
    """Of each method that has runs with noise, the plain run at their rate."""
    rates = {run["row"].partition(", ")[0]: run["rate"] for run in runs if ", kappa " in run["row"]}
    found: dict[str, Figures] = {}
    for run in runs:
        method, _, kind = run["row"].partition(", ")
        if kind == "plain" and run["rate"] == rates.get(method):
            found[method] = run
    return found


def _points(differences: Iterable[float]) -> str:
    """Mean and, of several draws, standard deviation of changes, in points."""
    values = [100 * one for one in differences]
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):+.1f}{spread}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
