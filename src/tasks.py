"""Tasks: where their rows come from, and how a run draws its train, dev and evaluation samples.

A task is one class here and one template in `src/templates.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import nn
from transformers import PreTrainedTokenizerBase

from src.objectives import AnswerLikelihood, CandidateScoring, GenerationF1, Objective
from src.templates import SQuADTemplate, SST2Template
from src.utils import UserError, one_line, read_jsonl

# Ways to make a loss of a sample; each is also the name of the flag that chooses it.
LOSSES = ("train_as_classification", "non_diff", "only_train_option")


@dataclass(frozen=True)
class Sample:
    """One example.

    Attributes:
        prompt: the text before the answer.
        answers: every right continuation; likelihood training uses the first.
        candidates: what a classification chooses among, the right one included; empty for free text.
    """

    prompt: str
    answers: tuple[str, ...]
    candidates: tuple[str, ...] = ()

    @property
    def answer(self) -> str:
        return self.answers[0]

    @property
    def label(self) -> int:
        """Index of the right candidate."""
        return self.candidates.index(self.answer)


@dataclass(frozen=True)
class Limits:
    """Tokens of a micro-batch at most, None for the device's default, and of a generated answer."""

    token_budget: int | None = None
    max_new_tokens: int = 50


@dataclass(frozen=True)
class Splits:
    train: list[Sample]
    dev: list[Sample]
    test: list[Sample]


class Task:
    """A data set and its template. Subclasses name the hub's data set and turn a row into a `Sample`.

    `own_loss` is the loss that the paper trains on; evaluation always uses its objective.
    """

    name: ClassVar[str]
    folder: ClassVar[str]
    hub: ClassVar[tuple[str, str | None]]
    own_loss: ClassVar[str]
    metric_for_best_model: ClassVar[str] = "eval_loss"

    def sample(self, row: Mapping[str, Any]) -> Sample:
        raise NotImplementedError

    def objective(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        samples: list[Sample],
        limits: Limits = Limits(),
    ) -> Objective:
        """What the task is scored by; its losses are those of `own_loss`."""
        raise NotImplementedError

    def check_loss(self, name: str) -> None:
        """Raises `UserError` unless the task can be trained on the loss called `name`."""
        known = (self.own_loss, "only_train_option")
        if name not in known:
            raise UserError(f"{self.name} has no loss {name}: use {' or '.join(f'--{loss}' for loss in known)}")

    def training_objective(
        self,
        loss: str,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        samples: list[Sample],
        limits: Limits = Limits(),
    ) -> Objective:
        """Per-sample losses by one of `LOSSES`; `only_train_option` is the answer's negative log-likelihood."""
        self.check_loss(loss)
        if loss == "only_train_option":
            return self.likelihood(model, tokenizer, samples, limits)
        return self.objective(model, tokenizer, samples, limits)

    def likelihood(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        samples: list[Sample],
        limits: Limits = Limits(),
    ) -> Objective:
        """Mean negative log-likelihood of the first right answer's tokens alone."""
        prompts, answers = [s.prompt for s in samples], [s.answer for s in samples]
        return AnswerLikelihood(model, tokenizer, prompts, answers, token_budget=limits.token_budget)

    def splits(
        self, data_dir: str | None, *, num_train: int, num_dev: int, num_eval: int, train_set_seed: int
    ) -> Splits:
        """The paper's draw: train and dev from the train split, test from the validation split.

        `train_set_seed` permutes the train split; its first `num_train` rows are the training set and the
        `num_dev` after them the dev set. The test set is at most `num_eval` rows of the validation split,
        drawn with seed 0, so that it is the same in every run.
        """
        rows = self._rows("train", data_dir)
        if len(rows) < num_train + num_dev:
            raise UserError(
                f"{self.name} has {len(rows)} training rows, fewer than num_train + num_dev ="
                f" {num_train} + {num_dev}; lower NUM_TRAIN or NUM_DEV"
            )
        drawn = _draw(rows, num_train + num_dev, train_set_seed)
        held_out = self._rows("validation", data_dir)
        test = _draw(held_out, min(num_eval, len(held_out)), seed=0)
        return Splits(
            train=self._samples(drawn[:num_train]),
            dev=self._samples(drawn[num_train:]),
            test=self._samples(test),
        )

    def _samples(self, rows: Iterable[Mapping[str, Any]]) -> list[Sample]:
        try:
            return [self.sample(row) for row in rows]
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"a row of {self.name} is not as expected: {type(error).__name__} {error}") from error

    def _rows(self, split: str, data_dir: str | None) -> list[dict[str, Any]]:
        if data_dir:
            return read_jsonl(Path(data_dir) / self.folder / f"{split}.jsonl")
        return hub_rows(*self.hub, split)


def _draw(rows: list[dict[str, Any]], count: int, seed: int) -> list[dict[str, Any]]:
    order = np.random.default_rng(seed).permutation(len(rows))[:count]
    return [rows[index] for index in order]


def hub_rows(path: str, name: str | None, split: str) -> list[dict[str, Any]]:
    try:
        import datasets

        return datasets.load_dataset(path, name, split=split).to_list()
    except ImportError as error:
        raise UserError("package 'datasets' is missing; install it or set DATA_DIR") from error
    except Exception as error:  # the hub client raises a dozen unrelated types when it is offline
        label = f"{path}/{name}" if name else path
        reason = one_line(error)[:160]
        raise UserError(f"cannot load {label} from the hub ({reason}); set DATA_DIR to a local copy") from error


class SST2(Task):
    """Stanford Sentiment Treebank, binary (GLUE): is a movie-review sentence positive?"""

    name = "SST2"
    folder = "sst2"
    hub = ("nyu-mll/glue", "sst2")
    own_loss = "train_as_classification"
    template = SST2Template()

    def sample(self, row: Mapping[str, Any]) -> Sample:
        label = self.template.label(row)
        if label not in (0, 1):
            raise ValueError(f"label {label} is neither 0 nor 1")
        candidates = self.template.candidates
        return Sample(self.template.prompt(row), (candidates[label],), candidates)

    def objective(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        samples: list[Sample],
        limits: Limits = Limits(),
    ) -> Objective:
        """Cross-entropy over the candidates' scores; nothing is generated."""
        return CandidateScoring(
            model,
            tokenizer,
            [sample.prompt for sample in samples],
            [list(sample.candidates) for sample in samples],
            [sample.label for sample in samples],
            token_budget=limits.token_budget,
        )


class SQuAD(Task):
    """Stanford Question Answering Dataset 1.1: answer a question with a span of a paragraph."""

    name = "SQuAD"
    folder = "squad"
    hub = ("rajpurkar/squad", None)
    own_loss = "non_diff"
    metric_for_best_model = "eval_f1"
    template = SQuADTemplate()

    def sample(self, row: Mapping[str, Any]) -> Sample:
        answers = self.template.answers(row)
        if not answers:
            raise ValueError(f"question {row.get('id', row['question'])!r} has no answer")
        return Sample(self.template.prompt(row), answers)

    def objective(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        samples: list[Sample],
        limits: Limits = Limits(),
    ) -> Objective:
        """Minus the F1 of the greedily generated answer; it has no gradient, which no step here needs."""
        return GenerationF1(
            model,
            tokenizer,
            [sample.prompt for sample in samples],
            [list(sample.answers) for sample in samples],
            limits.max_new_tokens,
            token_budget=limits.token_budget,
        )


TASKS: dict[str, type[Task]] = {task.name: task for task in (SST2, SQuAD)}


def get_task(name: str) -> Task:
    """The task called `name` (as in the cells, e.g. "SST2"); an unknown one raises `UserError`."""
    if name not in TASKS:
        raise UserError(f"unknown task '{name}'; known: {', '.join(TASKS)}")
    return TASKS[name]()
