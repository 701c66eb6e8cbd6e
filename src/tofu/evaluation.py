"""TOFU's evaluation of a model: every metric of open-unlearning's benchmark, one teacher-forced pass per text."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm  # type: ignore[import-untyped]
from transformers import PreTrainedTokenizerBase

from src.engine.batching import ScoredSequence
from src.tofu import metrics as scores
from src.tofu.chat import ChatFormat, chat_format
from src.tofu.entries import SetScores, attack, likelihoods, memorization, rouge
from src.tofu.logs import SETTINGS, Log, RetainLog, json_digest, read_matching, weights_digest, write_log
from src.tofu.passes import Scored, generate, gradient_norms, teacher_forced
from src.tofu.prompts import encode_answers, encode_prompts
from src.tofu.rows import Row, load_split, split_rows
from src.utils import UserError

METRICS_VERSION = 2  # part of the key: raise it when a metric's meaning changes
SETS = ("forget", "retain", "ra", "wf")  # ra: real authors, wf: world facts
UTILITY = tuple(
    f"{name}_{metric}"
    for name, probability in (("retain", "Q_A_Prob"), ("ra", "Q_A_Prob_normalised"), ("wf", "Q_A_Prob_normalised"))
    for metric in (probability, "Q_A_ROUGE", "Truth_Ratio")
)
ATTACKS = ("mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus", "mia_gradnorm", "mia_reference")


@dataclass(frozen=True)
class EvalSettings:
    """What the numbers depend on beside model and data.

    Attributes:
        max_new_tokens: of a greedy generation.
        limit: rows of each set at most, from its start; None for all.
        gradnorm: whether to compute the GradNorm attack, one backward pass for each forget and holdout row.
        mink_k: share of the tokens that Min-K% and Min-K%++ look at.
        autocast: matrix products in bfloat16, over weights of any dtype, as in training with `--bf16`.
    """

    max_new_tokens: int = 200
    limit: int | None = None
    gradnorm: bool = True
    mink_k: float = 0.4
    autocast: bool = False

    def __post_init__(self) -> None:
        if not 0.0 < self.mink_k <= 1.0:
            raise UserError(f"mink_k must lie in (0, 1], got {self.mink_k}")


@dataclass(frozen=True)
class EvalData:
    """Rows of the four sets (`SETS`) with their perturbed answers, and rows that no model was trained on."""

    forget_split: str
    sets: dict[str, list[Row]]
    holdout: list[Row] = field(default_factory=list)


def load_eval_data(
    forget_split: str, data_dir: str | None, *, holdout_rows: int = 0, limit: int | None = None
) -> EvalData:
    """The perturbed splits that belong to a forget split. Arguments: see `src.tofu.rows.load_split`."""
    names = (f"{forget_split}_perturbed", "retain_perturbed", "real_authors_perturbed", "world_facts_perturbed")
    sets = {key: split_rows(name, data_dir)[:limit] for key, name in zip(SETS, names, strict=True)}
    holdout = load_split(forget_split, data_dir, holdout_rows=holdout_rows).holdout[:limit]
    return EvalData(forget_split, sets, holdout)


class _Texts:
    """(question, answer) pairs that go through the model together; the same pair goes once."""

    def __init__(self) -> None:
        self.index: dict[tuple[str, str], int] = {}

    def add(self, question: str, answer: str) -> int:
        return self.index.setdefault((question, answer), len(self.index))

    def encode(
        self, tokenizer: PreTrainedTokenizerBase, chat: ChatFormat, max_length: int | None
    ) -> list[ScoredSequence]:
        return encode_answers(tokenizer, list(self.index), chat, max_length=max_length)


class Evaluation:
    """A model's TOFU evaluation.

    Args:
        model, tokenizer: of a causal LM; LoRA adapters are merged before.
        data: rows of the four sets.
        chat: how questions are put; default: the format of the tokenizer's family.
        retain_log: of a model that never saw the forget set; None leaves forget_quality and privleak open.
        reference_model: for the attack that compares losses; None leaves it open.
        is_retain_model: it is the one that a retain log is made of, so that the lack of one is no surprise.

    Raises:
        UserError: the retain log was made with other settings.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        data: EvalData,
        settings: EvalSettings | None = None,
        *,
        chat: ChatFormat | None = None,
        retain_log: RetainLog | None = None,
        reference_model: nn.Module | None = None,
        is_retain_model: bool = False,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.data = data
        self.settings = settings or EvalSettings()
        self.retain_log = retain_log
        self.reference_model = reference_model
        self.is_retain_model = is_retain_model
        self.texts = _Texts()
        self.places = {name: self._places(rows) for name, rows in data.sets.items()}
        self.holdout_places = [self.texts.add(row["question"], row["answer"]) for row in data.holdout]
        self.chat = chat = chat or chat_format(tokenizer)
        if retain_log is not None:
            retain_log.check(self.shared_settings(), len(data.sets["forget"]))
        config: Any = model.config
        self.sequences = self.texts.encode(tokenizer, chat, getattr(config, "max_position_embeddings", None))
        self.prompts = {
            name: encode_prompts(tokenizer, [row["question"] for row in rows], chat)
            for name, rows in data.sets.items()
        }

    def _places(self, rows: Sequence[Row]) -> list[tuple[int, int, list[int]]]:
        add = self.texts.add
        return [
            (
                add(row["question"], row["answer"]),
                add(row["question"], row["paraphrased_answer" if "paraphrased_answer" in row else "answer"]),
                [add(row["question"], wrong) for wrong in row["perturbed_answer"]],
            )
            for row in rows
        ]

    def shared_settings(self) -> dict[str, Any]:
        """What a retain log must have been made with, too."""
        return shared_settings(self.data.forget_split, self.chat, self.settings.mink_k)

    def key(self) -> dict[str, Any]:
        """Digests of everything the numbers depend on."""
        config: Any = self.model.config
        ignored = ("transformers_version", "_name_or_path")
        shape = {name: str(value) for name, value in config.to_diff_dict().items() if name not in ignored}
        tokens = [[s.ids for s in self.sequences], self.prompts, self.places, self.holdout_places]
        return {
            "version": METRICS_VERSION,
            "weights": weights_digest(self.model),
            "config": json_digest(shape),
            "data": json_digest(tokens),
            "settings": asdict(self.settings),
            "retain_log": self.retain_log.digest if self.retain_log else None,
            "reference_model": weights_digest(self.reference_model) if self.reference_model else None,
        }

    def run(self) -> Log:
        """Every metric; where one cannot be had, its value is None and a warning says why."""
        prompts = sum(len(ids) for ids in self.prompts.values())
        with tqdm(total=len(self.sequences) + prompts, desc="evaluation", disable=None, leave=False) as bar:
            passed = teacher_forced(self.model, self.sequences, done=bar.update)
            log: Log = {SETTINGS: {"agg_value": None, "settings": self.shared_settings()}}
            told = iter(
                generate(
                    self.model,
                    self.tokenizer,
                    [ids for name in SETS for ids in self.prompts[name]],
                    max_new_tokens=self.settings.max_new_tokens,
                    done=bar.update,
                )
            )
            for name in SETS:
                rows = SetScores(
                    [passed[answer] for answer, _, _ in self.places[name]],
                    [passed[paraphrase] for _, paraphrase, _ in self.places[name]],
                    [[passed[i] for i in wrong] for _, _, wrong in self.places[name]],
                )
                log.update(likelihoods(name, rows))
                log.update(rouge(name, self.data.sets[name], [next(told) for _ in self.prompts[name]]))
                if name == "forget":
                    log.update(memorization(rows))
        log.update(self._attacks(passed))
        utility = [float(log[name]["agg_value"]) for name in UTILITY]
        log["model_utility"] = {"agg_value": scores.model_utility(utility)}
        log.update(self._against_retain(log))
        return log

    def _attacks(self, passed: Sequence[Scored]) -> Log:
        """Membership attacks: forget rows are members, holdout rows are not."""
        log: Log = {name: {"agg_value": None} for name in ATTACKS}
        if not self.holdout_places:
            warnings.warn(
                f"{self.data.forget_split} has no holdout rows, so membership attacks and privleak stay open;"
                " add a holdout split to the data, or give --holdout_rows in training and evaluation",
                stacklevel=3,
            )
            return log
        members = [answer for answer, _, _ in self.places["forget"]]
        chosen = [*members, *self.holdout_places]
        found = [passed[place] for place in chosen]
        picked = [self.sequences[place] for place in chosen]
        texts = [self.tokenizer.decode(one.ids[one.start :], skip_special_tokens=True) for one in picked]
        k = self.settings.mink_k
        values = {
            "mia_loss": [one.loss for one in found],
            "mia_zlib": [scores.zlib_score(one.loss, str(text)) for one, text in zip(found, texts, strict=True)],
            "mia_min_k": [scores.min_k_score(one.log_probs[:-1], k) for one in found],
            "mia_min_k_plus_plus": [scores.min_k_score(one.standardised[:-1], k) for one in found],
        }
        if self.settings.gradnorm:
            with tqdm(total=len(picked), desc="gradients", disable=None, leave=False) as bar:
                values["mia_gradnorm"] = gradient_norms(self.model, picked, done=bar.update)
        if self.reference_model is not None:
            others = teacher_forced(self.reference_model, picked)
            values["mia_reference"] = [one.loss - other.loss for one, other in zip(found, others, strict=True)]
        for name, column in values.items():
            log[name] = attack(column[: len(members)], column[len(members) :])
        return log

    def _against_retain(self, log: Log) -> Log:
        """What compares with the retain model; `privleak_vs_half` compares with an AUC of one half instead."""
        auc = log["mia_min_k"]["agg_value"]
        found: dict[str, float | None] = dict.fromkeys(("forget_quality", "privleak", "rel_diff"))
        found["privleak_vs_half"] = None if auc is None else scores.privleak(auc, 0.5)
        if self.retain_log is not None:
            ratios = [entry["score"] for entry in log["forget_truth_ratio"]["value_by_index"].values()]
            found["forget_quality"] = scores.forget_quality(ratios, self.retain_log.truth_ratios)
            retain_auc = self.retain_log.min_k_auc
            if auc is not None and retain_auc is not None and retain_auc < 1:
                found["privleak"] = scores.privleak(auc, retain_auc)
                found["rel_diff"] = scores.relative_difference(auc, retain_auc)
            elif auc is not None:
                warnings.warn("privleak stays open: the retain log has no Min-K AUC below 1", stacklevel=3)
        return {name: {"agg_value": value} for name, value in found.items()}


def shared_settings(forget_split: str, chat: ChatFormat, mink_k: float) -> dict[str, Any]:
    """Settings that an evaluation and the retain model's must have in common to be compared."""
    return {"forget_split": forget_split, "mink_k": mink_k, "prompts": chat.record()}


def no_retain_log(forget_split: str) -> str:
    """Why forget quality has no value, and the command that makes what it needs."""
    command = f"python -m pum.run_unlearn retain-log --forget_split {forget_split} --model_name BASE_MODEL"
    return (
        f"no retain log is given, so forget_quality and privleak stay open; make one with: {command}"
        " (BASE_MODEL: what the unlearned model was fine-tuned from), then pass --retain_log"
    )


def evaluate(evaluation: Evaluation, folder: Path) -> tuple[Log, bool]:
    """The evaluation's log, written to `folder`, and whether it lay there already, made with the same key."""
    if evaluation.retain_log is None and not evaluation.is_retain_model:
        warnings.warn(no_retain_log(evaluation.data.forget_split), stacklevel=2)
    key = evaluation.key()
    stored = read_matching(folder, key)
    if stored is not None:
        return stored, True
    device = next(evaluation.model.parameters()).device.type
    with torch.random.fork_rng(), torch.autocast(device, torch.bfloat16, enabled=evaluation.settings.autocast):
        log = evaluation.run()
    write_log(folder, log, key)
    return log, False
