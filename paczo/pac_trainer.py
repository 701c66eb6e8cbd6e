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

from paczo.continuation import EarlierRuns, check_free, claim, load_earlier, secret_index
from paczo.exact_attack import write_exact_attack
from paczo.guarantee import privacy_report
from paczo.ledger import Ledger, LedgerContent, check_facts, pack_membership, pack_signs, read_ledger
from paczo.mechanisms import BudgetExhausted, NonPrivate, Release
from paczo.pac_arguments import PACArguments
from paczo.pac_utils import clip_derivatives, draw_membership, subset_signs
from paczo.publishing import model_card, public_folder, write_card
from paczo.randomness import SecretRandom
from paczo.run_mechanism import Mechanism, diagnostics, make_mechanism, mechanism_name, repeat, run_id
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
        self._earlier = on_first(self._load_earlier)
        self._secret = secret_index(self._random, args.pac_m, self._earlier)
        self.mechanism = self._make_mechanism()
        self.releases: Counter[str] = Counter()
        self._ledger: Ledger | None = None
        self._past_ledger: LedgerContent | None = None

    @property
    def num_directions(self) -> int:
        return self.args.pac_k

    @property
    def may_rest(self) -> bool:
        """A step may change nothing where PAC-ZPL abstains."""
        return self.args.pac_zpl_abstain

    @property
    def mechanism_name(self) -> str:
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
            "mechanism": self.mechanism_name,
            "secrets": self._random.label,
            "run_id": run_id(self._random),
            "num_samples": len(self.train_dataset),
            **({} if self._earlier is None else {"continues": self._earlier.public_facts()}),
        }

    def start_records(self, head: Record) -> None:
        """The ledger begins before the transcript, whose header it names."""
        if self._past_ledger is None:
            first = {
                **self._facts(),
                "secret": self._secret,
                "key": self._random.export_key().hex(),
                "earlier_runs": None if self._earlier is None else asdict(self._earlier),
                "transcript": link("", head),
            }
            self._ledger = Ledger(self.run_dir / "private", first)
        elif self._past_ledger.first["transcript"] != link("", head):
            raise RecordError(f"{self._past_ledger.content.path} is of a run with other settings or another model")
        if self.args.pac_continue_from is not None:
            claim(Path(self.args.pac_continue_from), run_id(self._random))
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
        key = self._random.export_key().hex() if self._random.reproducible else ledger.first["key"]
        earlier = None if self._earlier is None else asdict(self._earlier)
        check_facts(ledger.first, {**self._facts(), "key": key, "earlier_runs": earlier}, ledger.content.path)
        self._random = SecretRandom(bytes.fromhex(key), reproducible=self._random.reproducible)
        self._secret = secret_index(self._random, self.args.pac_m, self._earlier)
        if self._secret != ledger.first["secret"]:
            raise RecordError(f"{ledger.content.path}: the secret does not follow from its key")
        if transcript is not None:
            check_same(transcript, {**transcript.head, "public": self.public_header()})
        self.mechanism = self._make_mechanism()
        for line in ledger.steps:
            self.releases.update(repeat(self.mechanism, line, ledger.content.path))
        self._past_ledger = ledger
        self._ledger = Ledger.resume(ledger)
        return transcript

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
            shown = None if posterior is None else posterior.tolist()
            self._ledger.append({"end": self.transcript.num_steps, "posterior": shown})
        if self.args.tells_bits_only and (self._earlier is None or self._earlier.from_bits):
            write_exact_attack(self.run_dir / "private", self.membership, self.privacy())
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
            lines.append({**diagnostics(release), "signs": pack_signs(signs), "agreement": _agreement(signs)})
        self.releases.update(release.kind for release in releases)
        coefficients = tuple(release.bit for release in releases)
        assert self._ledger is not None
        self._ledger.append(
            {
                "step": step,
                "coefficients": list(coefficients),
                "loss": self.step_loss,
                "clip_share": clip_shares,
                "spent_nats": self.mechanism.spent_nats,
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
        """The run's guarantee: budget and spent nats, and what the budget bounds; see `privacy_report`."""
        return privacy_report(self.args, self.mechanism, self._random, self.releases, self._earlier)


def _agreement(signs: np.ndarray) -> float:
    """Share of the subsets on the commoner side, 1.0 where all agree."""
    plus = float(np.mean(signs > 0))
    return max(plus, 1.0 - plus)
