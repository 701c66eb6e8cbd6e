"""What of a private run is made public besides the weights: PACZero's model card, the folder of an upload."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

ASSUMPTIONS = """\
What this takes for granted:

- The adversary may know all {num_samples} training samples, the {pac_m} candidate subsets (which samples are in
  which), the mechanism, the base model and the whole transcript. He does not know the secret random stream.
- The secret is which candidate subset was used. That a sample is among the {num_samples} is not hidden, and
  the dev set, which chose the checkpoint, is public.
- {drawing}
- Computation time and memory traffic are not part of what is protected."""

REAL = "The noise is drawn in floating point. Its real value stays private and only its sign is published."
BIT = (
    "What is accounted for is the published bit: a sign, turned with a probability that is a multiple of 2^-53,"
    " drawn exactly from 53 random bits."
)
COIN = "Where the subsets disagree the released bit is a coin that depends on no data."
NOT_PRIVATE = (
    "**Not private:** the secrets of this run are reproducible from a seed, for experiments. With secrets from"
    " the operating system this would hold: {}"
)
ABSTAIN = "Where the subsets disagree nothing is released, which the adversary could compute himself."


def model_card(privacy: Mapping[str, Any], public: Mapping[str, Any], *, library: str) -> str:
    """A README.md for a model folder: the guarantee in plain words, its assumptions, budget and spending.

    Args:
        privacy: from `PACTrainer.privacy()`.
        public: from `PACTrainer.public_header()`.
        library: "peft" or "transformers".
    """
    base = public.get("base_model")
    head = [
        "---",
        f"library_name: {library}",
        *([f"base_model: {base}"] if base else []),
        "tags:",
        "- paczero",
        "---",
    ]
    body = ["# Fine-tuned with PACZero", _guarantee(privacy)]
    if "budget_nats" in privacy:
        body.append(ASSUMPTIONS.format(**public, drawing=_drawing(public)))
        earlier = privacy.get("earlier")
        runs = f" of this run and {earlier['runs']} before it on the same secret" if earlier else ""
        body.append(
            f"Budget{runs}: {privacy['budget_nats']:g} nats. Spent: {privacy['spent_nats']:.6g} nats. The"
            " guarantee is the budget's; what was spent on this path is one draw of a quantity whose mean the"
            " budget bounds."
        )
    body.append(f"Secrets: {privacy['secrets']}.")
    body.append(
        f"Mechanism: {privacy['mechanism']}, M = {public['pac_m']}, K = {public['pac_k']}, clip"
        f" {public['pac_clip']:g}, {public['max_steps']} steps."
        " `transcript.jsonl` of the run rebuilds the weights from the base model:"
        " `python -m src.transcript replay`. Method: arXiv 2605.06505."
    )
    return "\n".join(head) + "\n\n" + "\n\n".join(body) + "\n"


def _drawing(public: Mapping[str, Any]) -> str:
    """How the releases come about, in one sentence."""
    if public["pac_zpl"]:
        return ABSTAIN if public["pac_zpl_abstain"] else COIN
    return BIT if public["pac_charge"] == "bit" else REAL


def _guarantee(privacy: Mapping[str, Any]) -> str:
    if "budget_nats" not in privacy:
        return (
            "**Not private.** This model was trained without a mechanism, for comparison: what it tells of its"
            " training data is not accounted."
        )
    bound, prior = privacy["posterior_success_bound"], privacy["prior_success"]
    epsilon = privacy["epsilon"]
    same = (
        f" Differential privacy gives this one bound at epsilon {epsilon:.2f}; it would bound rare, sure guesses"
        " more tightly."
        if epsilon
        else ""
    )
    rates = "; ".join(f"{most:.4f} at {fpr}" for fpr, most in privacy["tpr_bounds"].items())
    text = (
        "Whatever is computed from this model, a guess whether a given sample was in the secret part of the"
        f" training data is right with a probability of at most {bound:.4f}; without the model it is"
        f" {prior:.4f}.{same} A test for one sample has a true positive rate of at most, at a false positive rate:"
        f" {rates}."
    )
    return text if privacy["private"] else NOT_PRIVATE.format(text)


def write_card(folder: str | Path, text: str) -> None:
    (Path(folder) / "README.md").write_text(text, encoding="utf-8")


@contextmanager
def public_folder(args: TrainingArguments, run_dir: Path) -> Iterator[None]:
    """For its duration `args.output_dir` is `run_dir/hub`, which holds nothing private.

    The library uploads the output folder whole, and the run's own holds `private/`.
    """
    hub = run_dir / "hub"
    hub.mkdir(parents=True, exist_ok=True)
    transcript = run_dir / "transcript.jsonl"
    if transcript.exists():
        shutil.copy(transcript, hub)
    args.output_dir = str(hub)
    try:
        yield
    finally:
        args.output_dir = str(run_dir)
