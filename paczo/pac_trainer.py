"""`PACTrainer`: zeroth-order training whose released signs tell a bounded amount about a secret subset."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from paczo.continuation import EarlierRuns, check_free, check_unclaimed, claim, load_earlier, secret_index
from paczo.exact_attack import write_exact_attack
from paczo.guarantee import privacy_report
from paczo.ledger import LedgerContent, pack_membership, pack_signs
from paczo.mechanisms import BudgetExhausted, NonPrivate, Release
from paczo.pac_arguments import PACArguments
from paczo.pac_utils import clip_derivatives, draw_membership, subset_signs
from paczo.private_run import PrivateRun
from paczo.publishing import model_card
from paczo.run_mechanism import Mechanism, diagnostics, make_mechanism, mechanism_name, repeat, run_id
from src.engine.processes import on_first
from src.objectives import Objective
from src.record.chain import Record, RecordError
from src.record.steps import Transcript


class PACTrainer(PrivateRun):
    """A `PrivateRun` that releases one privatised sign a direction (arXiv 2605.06505).

    It differs from the base in `release`. The training set is the adversary's known universe; the secret is which
    of M known subsets S* the signs come from. With `pac_mi` the signs, and with them the whole
    transcript and the model, tell at most `pac_mi` nats about S*; with `pac_zpl`, nothing.

    `output_dir/private/` holds S* and its randomness and must stay with the data's owner; the rest of
    `output_dir` may be published.

    Args:
        model: a causal LM (wrapped by peft or not) whose trainable parameters have `requires_grad`.
        args: the mechanism and the usual training arguments.
        train_dataset: per-sample losses of the N training samples over `model`.
        eval_dataset: of the dev set, which is taken as public.

    Raises:
        UserError: contradictory settings, losses that are NaN, infinite or all zero, or a folder in use.
    """

    args: PACArguments

    def __init__(
        self,
        model: PreTrainedModel | nn.Module,
        args: PACArguments,
        train_dataset: Objective,
        eval_dataset: Objective | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, args, train_dataset, eval_dataset, secret_seed=args.pac_secret_seed, **kwargs)
        # Membership is known to the adversary, so it comes from the public seed.
        self.membership = draw_membership(
            len(train_dataset),
            args.pac_m,
            np.random.default_rng([args.seed, len(train_dataset), args.pac_m]),
            sampling_rate=args.pac_sampling_rate,
            disjoint_pairs=args.pac_disjoint_pairs,
        )
        self._earlier = on_first(self._load_earlier)
        self._secret = secret_index(self._random, args.pac_m, self._earlier)
        self.mechanism = self._make_mechanism()
        self.releases: Counter[str] = Counter()
        self._progress: list[dict[str, float]] = []

    @property
    def num_directions(self) -> int:
        return self.args.pac_k

    @property
    def may_rest(self) -> bool:
        """A step may change nothing where PAC-ZPL abstains."""
        return self.args.pac_zpl_abstain

    @property
    def mechanism_name(self) -> str:  # type: ignore[override]
        return mechanism_name(self.args)

    def _make_mechanism(self) -> Mechanism:
        log_prior = None if self._earlier is None else self._earlier.log_posterior
        steps = self.args.max_steps
        return make_mechanism(self.args, steps, self._secret, self.membership, self._random, log_prior)

    def _load_earlier(self) -> EarlierRuns | None:
        if self.args.pac_continue_from is None:
            return None
        folder = Path(self.args.pac_continue_from)
        check_free(folder, self.run_dir)
        return load_earlier(folder, self._facts(), self.membership, self._random)

    def _facts(self) -> Record:
        """What the ledgers of all runs on one secret say alike."""
        return {
            "secrets": self._random.label,
            "num_subsets": self.args.pac_m,
            "membership": pack_membership(self.membership),
            "data": self.data_fingerprint,
        }

    def public_header(self) -> dict[str, Any]:
        return {
            **super().public_header(),
            "num_samples": len(self.train_dataset),
            **({} if self._earlier is None else {"continues": self._earlier.public_facts()}),
        }

    def private_facts(self) -> Record:
        return {
            **self._facts(),
            "secret": self._secret,
            "earlier_runs": None if self._earlier is None else asdict(self._earlier),
        }

    def rekeyed(self, past: LedgerContent) -> None:
        """The secret and its mechanism, of the run's own stream."""
        self._secret = secret_index(self._random, self.args.pac_m, self._earlier)
        if self._secret != past.first["secret"]:
            raise RecordError(f"{past.content.path}: the secret does not follow from its key")
        self.mechanism = self._make_mechanism()

    def repeat(self, line: Record, path: Path) -> None:
        self.releases.update(repeat(self.mechanism, line, path))
        self._note_progress()

    def start_records(self, head: Record) -> None:
        """As the base's; then a continued run is claimed, so that no other one starts from its posterior.

        By then the key that names the claimant is on the disk, and nothing has been released.
        """
        if self.args.pac_continue_from is not None:
            check_free(Path(self.args.pac_continue_from), self.run_dir)
        super().start_records(head)
        self._claim()

    def load_records(self) -> Transcript | None:
        """As the base's; a run that was killed before it claimed the one that it continues does so now."""
        transcript = super().load_records()
        self._claim()
        return transcript

    def _claim(self) -> None:
        if self.args.pac_continue_from is not None:
            claim(Path(self.args.pac_continue_from), run_id(self._random))

    def recorded_loss(self, step: int) -> float:
        if self._past_ledger is None or step >= len(self._past_ledger.steps):
            return super().recorded_loss(step)
        return float(self._past_ledger.steps[step]["loss"])

    def closing_facts(self) -> Record:
        posterior = self.mechanism.posterior
        return {"posterior": None if posterior is None else posterior.tolist()}

    def end_records(self, trainable_checksum: str | None) -> None:
        super().end_records(trainable_checksum)
        if self.args.tells_bits_only and (self._earlier is None or self._earlier.from_bits):
            write_exact_attack(self.run_dir / "private", self.membership, self.privacy())

    def release(self, step: int, derivatives: np.ndarray) -> tuple[float, ...] | None:
        """Clip, take the subsets' signs and release one coefficient a direction; None once the budget is spent."""
        if self.closed:
            return None
        clipped = clip_derivatives(derivatives, self.args.pac_clip)
        signs = subset_signs(clipped, self.membership)
        releases, lines = [], []
        for values, opinions in zip(clipped, signs, strict=True):
            try:
                release = self._release_one(values, opinions)
            except BudgetExhausted:
                return None
            releases.append(release)
            told = {"signs": pack_signs(opinions), "agreement": _agreement(opinions)}
            lines.append({**diagnostics(release), **told})
        self.releases.update(release.kind for release in releases)
        self._note_progress()
        coefficients = tuple(release.bit for release in releases)
        facts = {
            "loss": self.step_loss,
            "clip_share": np.mean(np.abs(derivatives) > self.args.pac_clip, axis=1).tolist(),
            "spent_nats": self.mechanism.spent_nats,
            "releases": lines,
        }
        self.note(step, coefficients, facts)
        return coefficients

    def _release_one(self, derivatives: np.ndarray, signs: np.ndarray) -> Release:
        return self.mechanism.release(derivatives if isinstance(self.mechanism, NonPrivate) else signs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the base's; beside a training loss how far the run is, which tells of S* nothing that is not paid."""
        if "loss" in logs and self._progress:
            logs = {**logs, **self._progress[min(self.state.global_step, len(self._progress)) - 1]}
            if self.step_seconds:
                logs["samples_per_second"] = len(self.train_dataset) / self.step_seconds[-1]
        super().log(logs, start_time)

    def _note_progress(self) -> None:
        """Share of the releases so far in which all subsets agreed, and the nats spent; after each step."""
        spent = self.mechanism.spent_nats
        if spent is not None:
            share = self.releases["unanimous"] / self.releases.total()
            self._progress.append({"unanimous": share, "spent_nats": float(spent)})

    def card(self) -> str:
        library = "peft" if isinstance(self.model, PeftModel) else "transformers"
        return model_card(self.privacy(), self.public_header(), library=library)

    def check_new(self) -> None:
        if self._earlier is not None:
            check_unclaimed(Path(str(self.args.pac_continue_from)))

    def privacy(self) -> dict[str, Any]:
        """The run's guarantee: budget and spent nats, and what the budget bounds; see `privacy_report`."""
        return privacy_report(self.args, self.mechanism, self._random, self.releases, self._earlier)


def _agreement(signs: np.ndarray) -> float:
    """Share of the subsets on the commoner side, 1.0 where all agree."""
    plus = float(np.mean(signs > 0))
    return max(plus, 1.0 - plus)
