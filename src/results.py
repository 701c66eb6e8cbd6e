"""What a run leaves behind: `metrics.json`, a flat file of scores, and a table on the screen."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from src.arguments import RunArguments
from src.objectives import CandidateScoring, GenerationF1, Objective
from src.record.folder import write_digest
from src.samples import Sample
from src.utils import UserError, versions, write_json

SCORES = ("loss", "accuracy", "f1")
DEV_LABEL = "trained on the public dev set"


def by_split(metrics: dict[str, float]) -> dict[str, dict[str, float]]:
    """{"dev": {...}, "test": {...}} of a trainer's flat metrics, without the library's speed figures."""
    return {
        split: {name: metrics[f"{prefix}_{name}"] for name in SCORES if f"{prefix}_{name}" in metrics}
        for split, prefix in (("dev", "eval"), ("test", "test"))
    }


def machine(device: torch.device, processes: int) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine() + " CPU"
    return {"device": name, "processes": processes, "versions": versions()}


def flat_path(settings: RunArguments, number: int | None) -> Path | None:
    """Where the flat file goes, named as in the sources; None where none is asked for.

    Args:
        number: of the train set; None where every test sample has demonstrations of its own.
    """
    if settings.result_file:
        return Path(settings.result_file)
    if not settings.tag:
        return None
    parts = [settings.task_name, settings.model_name.rstrip("/").rpartition("/")[2]]
    parts += [name for name in ("sfc", "icl_sfc") if getattr(settings, name)]
    sizes = (("sampleeval", settings.num_eval), ("ntrain", settings.num_train), ("ndev", settings.num_dev))
    parts += [f"{name}{value}" for name, value in sizes if value]
    parts += [settings.tag, "onetrainpereval" if number is None else f"trainset{number}"]
    return Path("result") / ("-".join(parts) + ".json")


def check_flat_path(path: Path | None, run_dir: Path) -> None:
    """Raises `UserError` where the flat file would take the place of the run's own."""
    if path is not None and path.resolve() == (run_dir / "metrics.json").resolve():
        raise UserError(f"--result_file {path} is the run's own file: choose another name")


def flat(scores: dict[str, dict[str, float]]) -> dict[str, float]:
    """{"accuracy" or "f1": ..., "dev_accuracy" or "dev_f1": ...}."""
    named = (("", scores.get("test", {})), ("dev_", scores.get("dev", {})))
    return {prefix + name: value for prefix, found in named for name, value in found.items() if name != "loss"}


def write_results(run_dir: Path, metrics: dict[str, Any], digest: str, flat_file: Path | None) -> None:
    """Writes the files and prints the table."""
    write_digest(run_dir, digest)
    if flat_file is not None:
        flat_file.parent.mkdir(parents=True, exist_ok=True)
        write_json(flat_file, flat(metrics["after"]))
    write_json(run_dir / "metrics.json", metrics)
    print(summary_table(metrics))
    print(f"wrote {run_dir / 'metrics.json'}" + (f" and {flat_file}" if flat_file is not None else ""))


def answers(samples: Sequence[Sample], objective: Objective) -> list[str]:
    """What the model answers to each of the objective's samples; every process must call this."""
    if isinstance(objective, GenerationF1):
        return objective.texts()
    assert isinstance(objective, CandidateScoring)
    best = objective.predictions().tolist()
    return [sample.continuations[index].strip() for sample, index in zip(samples, best, strict=True)]


def show(samples: Sequence[Sample], before: Sequence[str], given: Sequence[str]) -> None:
    """Prints samples word for word, with what stands in front of them and the model's answers."""
    for number, (sample, text, answer) in enumerate(zip(samples, before, given, strict=True), start=1):
        right = sample.answers or [sample.continuations[index].strip() for index in sorted(sample.right)]
        print(f"=== sample {number}\n{text}{sample.prompt}\n=== answer {answer!r}, right {' or '.join(right)!r}")


def summary_table(metrics: dict[str, Any]) -> str:
    """The run in a few lines: scores before and after, what was spent, and what that bounds."""
    privacy, before, after = metrics["privacy"], metrics["before"], metrics["after"]
    lines = [("", "before" if before else "", "after")] if any(after.values()) else []
    for split, scores in after.items():
        for name, value in scores.items():
            was = f"{before[split][name]:.4f}" if before else ""
            lines.append((f"{split} {name}", was, f"{value:.4f}"))
    rows = [f"{a:<16}{b:>10}{c:>10}" for a, b, c in lines]
    if "label" in metrics:
        rows.append(f"note            {metrics['label']}")
    rows.append(f"mechanism       {privacy['mechanism']} ({privacy['secrets']})")
    releases = ", ".join(f"{count} {kind}" for kind, count in privacy["releases"].items()) or "none"
    rows.append(f"releases        {releases}")
    if metrics.get("kept_front"):
        kept = metrics["kept_front"]
        rows.append(f"kept front      {kept['layers']} layers, {kept['bytes'] / 2**20:.0f} MiB")
    rows += _guarantee(privacy)
    seconds = metrics["seconds"]["per_step_median"]
    if seconds is not None:
        rows.append(f"seconds a step  {seconds:.3f}")
    return "\n".join(rows)


def _guarantee(privacy: dict[str, Any]) -> list[str]:
    if "posterior_success_bound" not in privacy:
        return [f"guarantee       {privacy['guarantee']}"]
    bound = f"attack success  at most {privacy['posterior_success_bound']:.4f}"
    if "budget_nats" not in privacy:
        return [
            f"guarantee       epsilon {privacy['epsilon']:g} at delta {privacy['delta']:g},"
            f" noise multiplier {privacy['noise_multiplier']:g}",
            f"{bound} (prior {privacy['prior_success']:.4f})",
        ]
    epsilon = "" if privacy["epsilon"] is None else f", as epsilon {privacy['epsilon']:.2f}"
    rates = ", ".join(f"{most:.4f} at FPR {fpr}" for fpr, most in privacy["tpr_bounds"].items())
    return [
        f"nats            {privacy['spent_nats']:.6g} spent of {privacy['budget_nats']:.6g}",
        f"{bound} (prior {privacy['prior_success']:.4f}{epsilon})",
        f"true positives  at most {rates}",
        f"naming S*       at most {privacy['naming_success_bound']:.4f}",
    ]
