"""Ours beside open-unlearning's published numbers: `bash scripts/tofu_parity.sh`, or

    python -m pum.parity [--model_family Llama-3.2-1B-Instruct] [--output_dir saves/parity] ...

Evaluates the family's published models, the one to unlearn from and the one that never saw the forget set, whose
evaluation is the retain log of both, and prints each score beside open-unlearning's (its docs/repro.md).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from pum.unlearn.running import RunArguments, evaluation_of, load
from src.tofu.evaluation import evaluate
from src.tofu.logs import EVAL, scores_of
from src.utils import Parser, UserError, run_cli, versions, write_json

Row = Mapping[str, float]
SCORES = ("forget_quality", "model_utility", "forget_truth_ratio")
KINDS = ("retain", "full")
# open-unlearning's docs/repro.md: forget quality, model utility, forget truth ratio, by family, split and kind
PUBLISHED: dict[str, dict[str, dict[str, tuple[float, float, float]]]] = {
    "Llama-3.2-1B-Instruct": {
        "forget01": {"full": (0.01, 0.60, 0.47), "retain": (1.0, 0.60, 0.65)},
        "forget05": {"full": (1.33e-13, 0.60, 0.47), "retain": (1.0, 0.60, 0.64)},
        "forget10": {"full": (1.66e-21, 0.60, 0.48), "retain": (1.0, 0.59, 0.63)},
    },
    "Llama-2-7b-chat-hf": {
        "forget01": {"full": (1.27e-3, 0.63, 0.53), "retain": (1.0, 0.63, 0.68)},
        "forget05": {"full": (5.87e-14, 0.63, 0.51), "retain": (1.0, 0.63, 0.67)},
        "forget10": {
            "full": (4.35e-25, 0.63, 0.52),
            "retain": (1.0, 0.61, 0.68),
            "NPO": (0.42, 0.54, 0.73),
            "GradDiff": (1.80e-229, 0.58, 1.46e-7),
            "RMU": (6.92e-21, 0.03, 0.81),
        },
    },
}


@dataclass
class ParityArguments:
    """Which published models."""

    model_family: str = field(
        default="Llama-3.2-1B-Instruct", metadata={"help": f"One of {', '.join(PUBLISHED)}."}
    )
    models: str | None = field(
        default=None, metadata={"help": "Folder with models full and retain, in the place of the hub's."}
    )
    unlearned: str | None = field(
        default=None, metadata={"help": "Folder with runs of tofu_unlearn.sh on the family's full model, if any."}
    )

    def __post_init__(self) -> None:
        if self.model_family not in PUBLISHED:
            known = ", ".join(PUBLISHED)
            raise UserError(f"nothing is published of model_family '{self.model_family}'; known: {known}")

    def path(self, kind: str, forget_split: str) -> str:
        if self.models is not None:
            return str(Path(self.models) / kind)
        name = kind if kind == "full" else f"retain{100 - int(forget_split[-2:])}"
        return f"open-unlearning/tofu_{self.model_family}_{name}"


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate and compare; raises `UserError` before anything is written."""
    words = sys.argv[1:] if argv is None else argv
    parity, run, args = Parser((ParityArguments, RunArguments, TrainingArguments)).parse(words)
    if parity.models is None and not torch.cuda.is_available():
        raise UserError("the published models want a CUDA machine; SMOKE=1 takes tiny ones the same way")
    if run.retain_log is not None:
        raise UserError("the retain log is made of the published retain model: drop --retain_log")
    folder = Path(args.output_dir)
    ours: dict[str, dict[str, Any]] = {}
    for kind in KINDS:
        where = folder / f"{parity.model_family}_{run.forget_split}_{kind}" / "evals"
        one = replace(run, model_name=parity.path(kind, run.forget_split))
        ours[kind], prompts = published_scores(one, args.device, where, is_retain_model=kind == "retain")
        if kind == "retain":
            run.retain_log = str(where / EVAL)
            ours[kind]["forget_quality"] = 1.0  # the same truth ratios on both sides
    ours |= unlearned_scores(parity, run.forget_split)
    theirs = PUBLISHED[parity.model_family].get(run.forget_split, {}) if parity.models is None else {}
    report = {
        "model_family": parity.model_family,
        "forget_split": run.forget_split,
        "ours": ours,
        "published": {kind: dict(zip(SCORES, values, strict=True)) for kind, values in theirs.items()},
        "prompts": prompts,
        "dtype": run.dtype,
        "versions": versions(),
    }
    write_json(folder / "parity.json", report)
    print(comparison(ours, report["published"]))
    print(f"wrote {folder / 'parity.json'}")


def published_scores(
    run: RunArguments, device: torch.device, folder: Path, *, is_retain_model: bool
) -> tuple[dict[str, float | None], dict[str, Any]]:
    """Scores of one published model, written to `folder`, and how it was asked."""
    loaded = load(run, device)
    evaluation = evaluation_of(loaded.model, loaded.tokenizer, run, is_retain_model=is_retain_model)
    return scores_of(evaluate(evaluation, folder)[0]), loaded.chat.record()


def unlearned_scores(parity: ParityArguments, forget_split: str) -> dict[str, dict[str, Any]]:
    """Scores of the runs in `parity.unlearned` by method, of those that something is published of."""
    found = {}
    for method in PUBLISHED[parity.model_family].get(forget_split, {}):
        name = f"tofu_tofu_{parity.model_family}_full_{forget_split}_{method}"
        path = Path(parity.unlearned or "") / name / "metrics.json"
        if parity.unlearned is not None and path.exists():
            found[method] = json.loads(path.read_text(encoding="utf-8"))["scores"]
    return found


def comparison(ours: Mapping[str, Mapping[str, Any]], published: Mapping[str, Row]) -> str:
    """A line for each model and score: ours, open-unlearning's, the difference; "-" where there is no number."""
    lines = [f"{'model':<10}{'score':<20}{'ours':>12}{'published':>12}{'difference':>12}"]
    for kind, scores in ours.items():
        for name in SCORES:
            own, other = scores.get(name), published.get(kind, {}).get(name)
            difference = None if own is None or other is None else own - other
            cells = ("-" if value is None else f"{value:.3g}" for value in (own, other, difference))
            lines.append(f"{kind:<10}{name:<20}" + "".join(f"{cell:>12}" for cell in cells))
    return "\n".join(lines)


if __name__ == "__main__":
    run_cli(main)
