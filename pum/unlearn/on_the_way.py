"""TOFU's evaluation while a run is under way, each so many steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

Scores = Mapping[str, float | None]
SHOWN = ("forget_quality", "model_utility", "forget_Q_A_Prob", "retain_Q_A_Prob")


class EvaluationOnTheWay(TrainerCallback):
    """Calls `score(model, folder)` once `every` more steps are done; for PUM, at the end of the round.

    Attributes:
        history: {"step": ..., "scores": ...} of each evaluation. The last step's is left to the run's end.
    """

    def __init__(self, every: int, score: Callable[[nn.Module, Path], Scores]) -> None:
        self.every = self._next = every
        self.score = score
        self.history: list[dict[str, Any]] = []

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._evaluate(kwargs["model"], Path(str(args.output_dir)), state)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if "round" in kwargs.get("logs", {}):
            self._evaluate(kwargs["model"], Path(str(args.output_dir)), state)

    def _evaluate(self, model: nn.Module, folder: Path, state: TrainerState) -> None:
        step = state.global_step
        if step < self._next or step == state.max_steps:
            return
        self._next = (step // self.every + 1) * self.every
        training = model.training
        scores = self.score(model, folder / "evals" / f"step{step}")
        model.train(training)
        self.history.append({"step": step, "scores": dict(scores)})
        shown = [f"{name} {value:.4g}" for name in SHOWN if (value := scores.get(name)) is not None]
        print(f"step {step}: {', '.join(shown)}")
