"""Tasks: what is asked, how a run draws its train, dev and test samples, and what scores them.

A task is one class in `src/templates.py` and one line of `TASKS`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from src import templates
from src.objectives import AnswerLikelihood, CandidateScoring, GenerationF1, Objective
from src.rows import Rows, Source, draw, draw_train, hub_rows, local_rows, source_rows, with_labels
from src.samples import DEFAULT_LIMITS, PLAIN, Limits, Sample, Scoring
from src.templates import Template
from src.utils import UserError

__all__ = ["LOSSES", "TASKS", "Limits", "Sample", "Scoring", "Splits", "Task", "draw", "get_task", "hub_rows"]

# Ways to make a loss of a sample: a classification over the continuations, minus the F1 of the generated answer,
# the likelihood of the right continuation, or of the whole text with it.
LOSSES = ("train_as_classification", "non_diff", "only_train_option", "full_text")


@dataclass(frozen=True)
class Splits:
    train: list[Sample]
    dev: list[Sample]
    test: list[Sample]


@dataclass(frozen=True)
class Task:
    """A data set and its template.

    Attributes:
        name: as in the sources.
        template: how a row becomes text.
        source: where the rows lie on the hub.
        num_dev: dev samples of the recipe.
    """

    name: str
    template: Template
    source: Source
    num_dev: int = 500

    @property
    def folder(self) -> str:
        """Below DATA_DIR."""
        return self.name.lower()

    @property
    def generates(self) -> bool:
        """Whether answers are free text."""
        return isinstance(self.template, templates.FreeText)

    @property
    def metric_for_best_model(self) -> str:
        return "eval_f1" if self.generates else "eval_loss"

    def sample(self, row: Mapping[str, Any]) -> Sample:
        """The row as texts, without white space at their beginning and spaces at their end.

        Of equal continuations the first counts as the right one.

        Raises:
            KeyError, TypeError, AttributeError, ValueError: the row is not as the task's rows are.
        """
        found = [continuation.rstrip(" ") for continuation in self.template.continuations(row)]
        right = [found.index(found[index]) for index in self.template.right(row)]
        return Sample(
            prompt=self.template.prompt(row).lstrip().rstrip(" "),
            continuations=tuple(found),
            right=frozenset(right),
            label=right[0],
            answers=tuple(self.template.answers(row)),
            sfc_prompt=self.template.sfc_prompt(row),
        )

    def check_loss(self, name: str) -> None:
        """Raises `UserError` unless the task can be trained on the loss called `name`."""
        lacking = "train_as_classification" if self.generates else "non_diff"
        if name == lacking:
            known = [f"--{loss}" for loss in LOSSES[:3] if loss != lacking]
            raise UserError(f"{self.name} has no loss {name}: use {' or '.join(known)}")

    def training_objective(
        self,
        loss: str,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        samples: Sequence[Sample],
        limits: Limits = DEFAULT_LIMITS,
    ) -> Objective:
        """Per-sample losses by one of `LOSSES`."""
        self.check_loss(loss)
        if loss in ("train_as_classification", "non_diff"):
            return self.objective(model, tokenizer, samples, limits)
        return self.likelihood(model, tokenizer, samples, limits, whole=loss == "full_text")

    def likelihood(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        samples: Sequence[Sample],
        limits: Limits = DEFAULT_LIMITS,
        *,
        whole: bool = False,
    ) -> AnswerLikelihood:
        """Mean negative log-likelihood of the right continuation's tokens, or of the whole text's."""
        return AnswerLikelihood(
            model,
            tokenizer,
            [sample.prompt for sample in samples],
            [sample.continuations[sample.label] for sample in samples],
            token_budget=limits.token_budget,
            separator="",
            window=limits.window(model, tokenizer, limits.max_new_tokens if self.generates else 0),
            whole=whole,
        )

    def objective(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        samples: Sequence[Sample],
        limits: Limits = DEFAULT_LIMITS,
        scoring: Scoring = PLAIN,
    ) -> Objective:
        """What the task is scored by: the F1 of generated answers, or cross-entropy over the continuations."""
        self.check_calibration(scoring.calibration)
        if not self.generates:
            return _candidate_scoring(model, tokenizer, samples, limits, scoring)
        before = scoring.demonstrations or [""] * len(samples)
        return GenerationF1(
            model,
            tokenizer,
            [text + sample.prompt for text, sample in zip(before, samples, strict=True)],
            [list(sample.answers) for sample in samples],
            limits.max_new_tokens,
            token_budget=limits.token_budget,
            window=limits.window(model, tokenizer, limits.max_new_tokens),
            decoding=scoring.decoding,
        )

    def check_calibration(self, name: str) -> None:
        """Raises `UserError` where the task knows no calibration."""
        if name and self.generates:
            raise UserError(f"{self.name} has no SFC calibration: it generates answers; drop --{name}")

    def splits(
        self, data_dir: str | None, *, num_train: int, num_dev: int, num_eval: int | None, train_set_seed: int
    ) -> Splits:
        """The sources' draw: train and dev from the train split, test from the validation split.

        Args:
            data_dir: folder with `<task>/<split>.jsonl`, None for the hub.
            num_eval: test samples at most, drawn by `train_set_seed` too; None for the whole split.
        """
        rows = self.rows("train", data_dir)
        train, dev = draw_train(self.name, len(rows), num_train, num_dev, train_set_seed)
        return Splits(
            self.samples(rows[int(i)] for i in train),
            self.samples(rows[int(i)] for i in dev),
            self.test(data_dir, num_eval, train_set_seed),
        )

    def train_sets(self, data_dir: str | None, count: int, seeds: Sequence[int]) -> list[list[Sample]]:
        """The training samples that each of the seeds draws."""
        rows = self.rows("train", data_dir)
        return [self.samples(rows[int(i)] for i in draw(len(rows), count, seed)) for seed in seeds]

    def test(self, data_dir: str | None, num_eval: int | None, seed: int) -> list[Sample]:
        held_out = self.rows("validation", data_dir)
        chosen = range(len(held_out)) if num_eval is None else draw(len(held_out), num_eval, seed)
        return self.samples(held_out[int(index)] for index in chosen)

    def samples(self, rows: Iterable[Mapping[str, Any]]) -> list[Sample]:
        """Raises `UserError` where a row is not as expected."""
        try:
            return [self.sample(row) for row in rows]
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"a row of {self.name} is not as expected: {type(error).__name__} {error}") from error

    def rows(self, split: str, data_dir: str | None) -> Rows:
        """The rows of "train" or "validation" that have a label, in the hub's order."""
        template = self.template
        if data_dir:
            found = local_rows(Path(data_dir) / self.folder, split)
        else:
            found = source_rows(self.source, split, template.label, template.classes)
        return with_labels(found, self.source.labelled)


def _candidate_scoring(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    samples: Sequence[Sample],
    limits: Limits,
    scoring: Scoring,
) -> CandidateScoring:
    def scored(asked: Sequence[tuple[str, str, Sample]], calibration: Any = None) -> CandidateScoring:
        """Of what stands in front, prompt, and sample whose continuations are scored."""
        return CandidateScoring(
            model,
            tokenizer,
            [prompt for _, prompt, _ in asked],
            [sample.continuations for _, _, sample in asked],
            [sample.label for _, _, sample in asked],
            token_budget=limits.token_budget,
            right=[sample.right for _, _, sample in asked],
            separator="",
            before=[before for before, _, _ in asked] if any(before for before, _, _ in asked) else None,
            window=limits.window(model, tokenizer),
            calibration=calibration,
        )

    before = scoring.demonstrations or [""] * len(samples)
    asked = [(text, sample.prompt, sample) for text, sample in zip(before, samples, strict=True)]
    if not scoring.calibration:
        return scored(asked)
    shown = before if scoring.calibration == "icl_sfc" else [""] * len(samples)
    keys = [(text, str(s.sfc_prompt), s.continuations) for text, s in zip(shown, samples, strict=True)]
    distinct = dict(zip(keys, samples, strict=True))
    place = {key: row for row, key in enumerate(distinct)}
    other = scored([(text, prompt, sample) for (text, prompt, _), sample in distinct.items()])
    return scored(asked, (other, [place[key] for key in keys]))


_SUPER_GLUE = "aps/super_glue"
TASKS: dict[str, Task] = {
    task.name.lower(): task
    for task in (
        Task("SST2", templates.SST2(), Source("nyu-mll/glue", "sst2")),
        Task("SST5", templates.SST5(), Source("SetFit/sst5")),
        Task("TREC", templates.TREC(), Source("CogComp/trec", None, "test", "refs/convert/parquet")),
        Task("MNLI", templates.NLI(), Source("nyu-mll/glue", "mnli", "validation_matched")),
        Task("SNLI", templates.NLI(), Source("stanfordnlp/snli", "plain_text", labelled="label")),
        Task("RTE", templates.RTE(), Source(_SUPER_GLUE, "rte")),
        Task("CB", templates.CB(), Source(_SUPER_GLUE, "cb"), num_dev=100),
        Task("BoolQ", templates.BoolQ(), Source("google/boolq")),
        Task("MultiRC", templates.MultiRC(), Source(_SUPER_GLUE, "multirc")),
        Task("WIC", templates.WIC(), Source(_SUPER_GLUE, "wic")),
        Task("WSC", templates.WSC(), Source(_SUPER_GLUE, "wsc.fixed"), num_dev=100),
        Task("Copa", templates.Copa(), Source(_SUPER_GLUE, "copa"), num_dev=100),
        Task("ReCoRD", templates.ReCoRD(), Source(_SUPER_GLUE, "record")),
        Task("SQuAD", templates.SQuAD(), Source("rajpurkar/squad")),
        Task("DROP", templates.DROP(), Source("ucinlp/drop")),
    )
}


def get_task(name: str) -> Task:
    """The task called `name`, in upper or lower case; an unknown one raises `UserError`."""
    if name.lower() not in TASKS:
        raise UserError(f"unknown task '{name}'; known: {', '.join(task.name for task in TASKS.values())}")
    return TASKS[name.lower()]
