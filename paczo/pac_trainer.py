"""`PACTrainer`: zeroth-order training whose released signs tell a bounded amount about a secret subset."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from paczo.bounds import epsilon_for_success, posterior_success
from paczo.ledger import Ledger, LedgerContent, pack_membership, pack_signs, read_ledger, unpack_signs
from paczo.mechanisms import BudgetExhausted, NonPrivate, PacMI, PacZPL, Release
from paczo.pac_arguments import PACArguments
from paczo.pac_utils import clip_derivatives, draw_membership, subset_signs
from paczo.publishing import model_card, public_folder, write_card
from paczo.randomness import SecretRandom
from src.engine.processes import on_first
from src.objectives import Objective
from src.record.chain import Record, RecordError, link
from src.transcript import Transcript, check_same, load
from src.zo.directions import StepRecord
from src.zo.trainer import ZOTrainer


class PACTrainer(ZOTrainer):
    """A `ZOTrainer` that releases one privatised sign a direction (arXiv 2605.06505).

    It differs from the base in `release`, and in that it writes a private ledger before the transcript and
    resumes from both (see `paczo/ledger.py`). The training set is the adversary's known universe; the secret
    is which of M known subsets S* the signs come from. With `pac_mi` the signs, and with them the whole
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
        super().__init__(model, args, train_dataset, eval_dataset, **kwargs)
        # Membership is known to the adversary, so it comes from the public seed.
        self.membership = draw_membership(
            len(train_dataset),
            args.pac_m,
            np.random.default_rng([args.seed, len(train_dataset), args.pac_m]),
            sampling_rate=args.pac_sampling_rate,
            disjoint_pairs=args.pac_disjoint_pairs,
        )
        self._random = SecretRandom.of_run(args.pac_secret_seed, on_first)
        self._secret = self._random.uniform_index("secret", 0, args.pac_m)
        self.mechanism = self._make_mechanism()
        self.releases: Counter[str] = Counter()
        self._ledger: Ledger | None = None
        self._past_ledger: LedgerContent | None = None

    @property
    def num_directions(self) -> int:
        return self.args.pac_k

    @property
    def mechanism_name(self) -> str:
        if self.args.pac_zpl:
            return "pac-zpl"
        return f"non-private ({self.args.ablation})" if self.args.no_privacy else "pac-mi"

    def _make_mechanism(self) -> PacMI | PacZPL | NonPrivate:
        args = self.args
        if args.pac_zpl:
            return PacZPL(args.pac_m, self._secret, self._random)
        if args.pac_mi is not None:
            return PacMI(
                args.pac_m,
                self._secret,
                args.pac_mi,
                args.max_steps,
                self._random,
                adaptive=args.pac_adaptive_mi,
                directions=args.pac_k,
            )
        return NonPrivate(str(args.ablation), self.membership[:, self._secret], self._random)

    def public_header(self) -> dict[str, Any]:
        # Ties the transcript to its ledger. A pseudorandom function of the secret key, so it tells nothing of it.
        run_id = self._random.uniform_index("run id", 0, 1 << 64)
        return {
            **super().public_header(),
            "mechanism": self.mechanism_name,
            "secrets": self._random.label,
            "run_id": f"{run_id:016x}",
            "num_samples": len(self.train_dataset),
        }

    def start_records(self, head: Record) -> None:
        """The ledger begins before the transcript, whose header it names."""
        if self._past_ledger is None:
            first = {
                "secret": self._secret,
                "key": self._random.export_key().hex(),
                "secrets": self._random.label,
                "num_subsets": self.args.pac_m,
                "membership": pack_membership(self.membership),
                "data": self.data_fingerprint,
                "transcript": link("", head),
            }
            self._ledger = Ledger(self.run_dir / "private", first)
        elif self._past_ledger.first["transcript"] != link("", head):
            raise RecordError(f"{self._past_ledger.content.path} is of a run with other settings or another model")
        super().start_records(head)
        self._seal()

    def load_records(self) -> Transcript | None:
        """Reads ledger and transcript, and brings secrets, posterior and spent nats back."""
        path = self.run_dir / "transcript.jsonl"
        begun = path.exists() and b"\n" in path.read_bytes()
        transcript = load(path) if begun else None
        ledger = read_ledger(self.run_dir / "private", None if transcript is None else transcript.content)
        if path.exists() and not begun:
            path.unlink()  # a header that was not written to its end: nothing was released yet
        self._check_private(ledger.first, ledger.content.path)
        self._random = SecretRandom(bytes.fromhex(ledger.first["key"]), reproducible=self._random.reproducible)
        self._secret = self._random.uniform_index("secret", 0, self.args.pac_m)
        if self._secret != ledger.first["secret"]:
            raise RecordError(f"{ledger.content.path}: the secret does not follow from its key")
        if transcript is not None:
            check_same(transcript, {**transcript.head, "public": self.public_header()})
        self.mechanism = self._make_mechanism()
        for line in ledger.steps:
            self._repeat(line, ledger.content.path)
        self._past_ledger = ledger
        self._ledger = Ledger.resume(ledger)
        return transcript

    def _check_private(self, first: Record, path: Path) -> None:
        key = self._random.export_key().hex() if self._random.reproducible else first["key"]
        expected = {
            "secrets": self._random.label,
            "key": key,
            "num_subsets": self.args.pac_m,
            "membership": pack_membership(self.membership),
            "data": self.data_fingerprint,
        }
        for name, value in expected.items():
            if first[name] != value:
                raise RecordError(f"{path} is of another run: its {name} differ(s) from this one's")

    def _repeat(self, line: Record, path: Path) -> None:
        """Makes a recorded step's releases again. The noise is the same, so they must be too."""
        for recorded in line["releases"]:
            if isinstance(self.mechanism, NonPrivate):
                self.mechanism.skip()
                self.releases[recorded["kind"]] += 1
                continue
            release = self.mechanism.release(unpack_signs(recorded["signs"], self.args.pac_m))
            if any(recorded[name] != value for name, value in _diagnostics(release).items()):
                raise RecordError(f"{path}: step {line['step']} does not give the release that is recorded")
            self.releases[release.kind] += 1
        if line["spent_nats"] != _finite(self.mechanism.spent_nats):
            raise RecordError(f"{path}: the nats spent up to step {line['step']} do not add up")

    def unpublished(self, step: int) -> tuple[float, ...] | None:
        """A step that is in the ledger is never made again: its noise is spent."""
        if self._past_ledger is None or step >= len(self._past_ledger.steps):
            return None
        return tuple(self._past_ledger.steps[step]["coefficients"])

    def recorded_loss(self, step: int) -> float:
        if self._past_ledger is None or step >= len(self._past_ledger.steps):
            return super().recorded_loss(step)
        return float(self._past_ledger.steps[step]["loss"])

    def publish(self, record: StepRecord) -> None:
        super().publish(record)
        self._seal()

    def end_records(self, trainable_checksum: str | None) -> None:
        assert self._ledger is not None
        assert self.transcript is not None
        if self._past_ledger is None or not self._past_ledger.ended:
            posterior = self.mechanism.posterior
            shown = None if posterior is None else [float(value) for value in posterior]
            self._ledger.append({"end": self.transcript.num_steps, "posterior": shown})
        super().end_records(trainable_checksum)
        self._seal()

    def close_records(self) -> None:
        super().close_records()
        if self._ledger is not None:
            self._ledger.close()

    def _seal(self) -> None:
        assert self._ledger is not None
        assert self.transcript is not None
        self._ledger.seal(self.transcript.chain)

    def release(self, step: int, derivatives: np.ndarray) -> tuple[float, ...] | None:
        """Clip, take the subsets' signs and release one coefficient a direction; None once the budget is spent."""
        if self._past_ledger is not None and self._past_ledger.ended:
            return None
        releases, clip_shares, lines = [], [], []
        for row in derivatives:
            clipped = clip_derivatives(row, self.args.pac_clip)
            clip_shares.append(float(np.mean(np.abs(row) > self.args.pac_clip)))
            signs = subset_signs(clipped, self.membership)
            try:
                release = self._release_one(clipped, signs)
            except BudgetExhausted:
                return None
            releases.append(release)
            lines.append({**_diagnostics(release), "signs": pack_signs(signs), "agreement": _agreement(signs)})
        self.releases.update(release.kind for release in releases)
        coefficients = tuple(release.bit for release in releases)
        assert self._ledger is not None
        self._ledger.append(
            {
                "step": step,
                "coefficients": list(coefficients),
                "loss": self.step_loss,
                "clip_share": clip_shares,
                "spent_nats": _finite(self.mechanism.spent_nats),
                "releases": lines,
            }
        )
        return coefficients

    def _release_one(self, derivatives: np.ndarray, signs: np.ndarray) -> Release:
        return self.mechanism.release(derivatives if isinstance(self.mechanism, NonPrivate) else signs)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)
        self._write_card(self.args.output_dir if output_dir is None else output_dir)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The run's own card in the place of the library's draft."""
        self._write_card(self.args.output_dir)

    def _write_card(self, folder: str | Path | None) -> None:
        if not self.args.should_save:  # one of several processes saves
            return
        library = "peft" if isinstance(self.model, PeftModel) else "transformers"
        write_card(str(folder), model_card(self.privacy(), self.public_header(), library=library))

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """As the base's, from a folder without the private files."""
        if self.hub_model_id is None:
            self.init_hf_repo(token=kwargs.get("token"), private=kwargs.get("private"))
        kwargs.setdefault("model_name", self.run_dir.name)
        with public_folder(self.args, self.run_dir):
            return super().push_to_hub(*args, **kwargs)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        with public_folder(self.args, self.run_dir):
            super()._push_from_checkpoint(checkpoint_folder)

    def privacy(self) -> dict[str, Any]:
        """The run's guarantee: budget and spent nats, bound on a membership attack, matching epsilon.

        The bound follows from the budget. What was spent on this path of the run is not by itself a bound:
        mutual information is the mean over all paths, and only the budget holds on each.
        """
        args = self.args
        rate = 0.5 if args.pac_sampling_rate is None else args.pac_sampling_rate / args.pac_m
        prior = max(rate, 1 - rate)
        report: dict[str, Any] = {
            "mechanism": self.mechanism_name,
            "secrets": self._random.label,
            "private": not args.no_privacy and not self._random.reproducible,
            "prior_success": prior,
            "releases": dict(sorted(self.releases.items())),
        }
        if args.no_privacy:
            return {**report, "guarantee": "none"}
        budget = 0.0 if args.pac_mi is None else args.pac_mi
        success = posterior_success(budget, prior)
        return {
            **report,
            "budget_nats": budget,
            "spent_nats": float(self.mechanism.spent_nats),
            "posterior_success_bound": success,
            "epsilon": _finite(epsilon_for_success(success)) if prior == 0.5 else None,
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _agreement(signs: np.ndarray) -> float:
    """Share of the subsets on the commoner side, 1.0 where all agree."""
    plus = float(np.mean(signs > 0))
    return max(plus, 1.0 - plus)


def _diagnostics(release: Release) -> dict[str, Any]:
    return {
        "kind": release.kind,
        "mi_nats": _finite(release.mi_nats),
        "q_plus": release.q_plus,
        "noise_std": release.noise_std,
        "noisy_sign": release.noisy_sign,
    }
