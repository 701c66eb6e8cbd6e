"""What attacks left beside a model's evaluation, as lines of a table and in words. Plain Python, quick to load."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

RELEARN, QUANTIZE = "RELEARN.json", "QUANTIZE.json"
METRICS = ("prob", "rouge")  # of each row that is not taught, on the way
BITS = {"int8": 8, "int4": 4}
FORMAT = 2  # of both files; raise it when the attacks change
POINT = 0.01  # of probability; less is called nothing, however sure it is


def read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    return value if isinstance(value, dict) else None


def read_attack(evals: Path, name: str) -> dict[str, Any] | None:
    """What an attack left, RELEARN or QUANTIZE; None where it was not run, or by another version."""
    found = read_json(evals / name)
    return found if found is not None and found.get("format") == FORMAT else None


def attack_rows(evals: Path) -> dict[str, float | None]:
    """Title and value of each line that a table of results can show of the attacks on one model.

    Empty where none was run; the area is None for a model that was not compared with a retain model.
    """
    rows: dict[str, float | None] = {}
    relearned, quantized = read_attack(evals, RELEARN), read_attack(evals, QUANTIZE)
    for taught, curve in (relearned or {}).get("curves", {}).items():
        rows["others before relearning"] = statistics.fmean(curve["prob"][0])
        rows[f"after {taught} rows"] = statistics.fmean(curve["prob"][-1])
        for metric in METRICS:
            against = (relearned or {}).get("against", {}).get(taught, {}).get(metric, {})
            rows[f"  area, {metric}" + ("" if taught == "forget" else f", {taught}")] = against.get("area")
    if quantized is not None:
        for kind in ("none", *BITS):
            rows[f"forget probability, {kind}"] = quantized[kind]["forget_Q_A_Prob"]
            rows[f"model utility, {kind}"] = quantized[kind]["model_utility"]
            if "undone_share" in quantized[kind]:
                rows[f"  update undone, {kind}"] = quantized[kind]["undone_share"]
    return rows


def relearning_curve(evals: Path) -> dict[str, list[float]] | None:
    """Steps on forget rows, and of each metric the mean over the other rows; None where that was not run."""
    curve = ((read_attack(evals, RELEARN) or {}).get("curves") or {}).get("forget")
    if curve is None:
        return None
    return {
        "steps": curve["steps"],
        **{name: [statistics.fmean(rows) for rows in curve[name]] for name in METRICS},
    }


def verdict(evals: Path) -> str | None:
    """What the attacks say of a model's forgetting, in words; None where it was not compared with a retain model.

    "shows": before any attack the rows were likelier than for the retain model. "suppressed": they come back more
    than they come to the retain model that is given the same, rows or rounding. "lasts": neither was seen. Seen is
    what is at least `POINT` of probability and, with 95 % confidence over rows, above 0. ROUGE does not count: a
    small retain model may answer nothing, and any text is above that.
    """
    relearned, quantized = read_attack(evals, RELEARN), read_attack(evals, QUANTIZE)
    against = (relearned or {}).get("against")
    if against is None:
        return None
    found = {taught: metrics["prob"] for taught, metrics in against.items()}
    ways = [f"relearning on {taught} rows" for taught, f in found.items() if _seen(f["gain"], f["gain_low"])]
    ways += [kind for kind in BITS if quantized and _seen(quantized[kind]["back"], quantized[kind]["back_low"])]
    back = f"comes back by {', '.join(ways)}"
    if any(_seen(f["start"] - f["retain_start"], f["start_low"]) for f in found.values()):
        return f"shows, and {back}" if ways else "shows"
    return f"suppressed: {back}" if ways else "lasts"


def _seen(mean: float, low: float) -> bool:
    return mean >= POINT and low > 0
