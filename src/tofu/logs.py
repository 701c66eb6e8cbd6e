"""Evaluation logs in open-unlearning's layout, and the key that tells whether a log is still true.

`TOFU_EVAL.json` is {metric: {"agg_value": x, "value_by_index": {...}}} and `TOFU_SUMMARY.json` {metric: x}, which
leaves out what has no value, so that open-unlearning's retain logs serve here and ours there. Under `SETTINGS` our
logs say what a retain log must share with the run that is compared with it. `TOFU_KEY.json` beside them holds the
digests of the model and of everything else the numbers depend on.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from src.utils import UserError, write_json

EVAL, SUMMARY, KEY = "TOFU_EVAL.json", "TOFU_SUMMARY.json", "TOFU_KEY.json"
SETTINGS = "evaluation_settings"
OPEN_UNLEARNING = {"mink_k": 0.4}  # of logs that do not say; what else they share is theirs to keep

Log = dict[str, dict[str, Any]]


def weights_digest(model: nn.Module, *, trained_only: bool = False) -> str:
    """SHA-256 of the parameters' names, dtypes, shapes and values; `trained_only` leaves out what is frozen."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if trained_only and not parameter.requires_grad:
            continue
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}\n".encode())
        values = parameter.detach().cpu().contiguous().flatten()
        digest.update(values.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def json_digest(value: Any) -> str:
    """SHA-256 of a value that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class RetainLog:
    """What is needed of the retain model's evaluation."""

    truth_ratios: list[float]
    min_k_auc: float | None
    digest: str
    settings: dict[str, Any] | None = None

    def check(self, settings: Mapping[str, Any], forget_rows: int) -> None:
        """Raise `UserError` that names the setting in which this log is another than the run's `settings`."""
        if len(self.truth_ratios) != forget_rows:
            raise UserError(
                f"the retain log has {len(self.truth_ratios)} forget rows, this evaluation {forget_rows}; make the"
                " log with the same --forget_split and --eval_limit"
            )
        source = "was made" if self.settings is not None else "does not say its settings, so it was made"
        for name, value in (OPEN_UNLEARNING if self.settings is None else self.settings).items():
            if name in settings and settings[name] != value:
                raise UserError(
                    f"the retain log {source} with {name} {value!r}, this run has {settings[name]!r}; make it with"
                    " the same settings, or run with its"
                )


def read_retain_log(path: Path) -> RetainLog:
    """Read a retain model's `TOFU_EVAL.json`, ours or open-unlearning's (its folder serves too)."""
    if path.is_dir():
        path = path / EVAL
    log = _read(path)
    try:
        by_index = log["forget_truth_ratio"]["value_by_index"]
        ratios = [float(by_index[key]["score"]) for key in sorted(by_index, key=int)]
        recorded = log.get(SETTINGS)
        settings = None if recorded is None else dict(recorded["settings"])
        attack = log.get("mia_min_k", {})
        # A log that neither says its settings nor has open-unlearning's "auc" is of this project's first version,
        # whose Min-K was another.
        auc = attack.get("agg_value") if recorded or "auc" in attack else None
        auc = None if auc is None else float(auc)
    except (KeyError, TypeError, ValueError, AttributeError):
        ratios, auc, settings = [], None, None
    if not ratios or any(math.isnan(ratio) for ratio in ratios):
        raise UserError(f"{path} has no forget_truth_ratio scores; it is no evaluation of a retain model")
    return RetainLog(ratios, auc, json_digest([ratios, auc]), settings)


def read_matching(folder: Path, key: Mapping[str, Any]) -> Log | None:
    """The log in `folder` if it was made with exactly this key, else None."""
    try:
        stored = json.loads((folder / KEY).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    if stored != json.loads(json.dumps(key)):
        return None
    return _read(folder / EVAL)


def write_log(folder: Path, log: Log, key: Mapping[str, Any]) -> None:
    """Write log, summary and key; the key last, so that an interrupted writing leaves none."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / KEY).unlink(missing_ok=True)
        write_json(folder / EVAL, log)
        write_json(folder / SUMMARY, {name: value for name, value in scores_of(log).items() if value is not None})
        write_json(folder / KEY, key)
    except OSError as error:
        raise UserError(f"cannot write the evaluation to {folder}: {error.strerror}") from error


def scores_of(log: Log) -> dict[str, float | None]:
    """The value of each metric, None where it has none."""
    return {name: entry["agg_value"] for name, entry in log.items() if name != SETTINGS}


def _read(path: Path) -> Log:
    try:
        log = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the evaluation {path}: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON: {error.msg}") from error
    if not isinstance(log, dict):
        raise UserError(f"{path} is not an evaluation log")
    return log
