"""The releases of PACZero (arXiv 2605.06505): PAC-MI, PAC-ZPL and the modes without privacy. NumPy only.

A mechanism sees the M subset signs of one direction and lets one number out. Its object is private as a
whole: the secret index, the posterior and the noise never leave the private side, only `Release.bit` does.
"""

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paczo.bit_channel import calibrated_flip, flip_log_odds
from paczo.pac_utils import calibrated_noise, check_count, check_num_subsets, subset_means
from paczo.randomness import SecretRandom, secret_source

CHARGES = ("real", "bit")
NON_PRIVATE_MODES = ("none", "quant_full", "raw_half", "quant_half", "random_sign")

_SMALLEST_SHARE_NATS = 1e-300


class BudgetExhausted(RuntimeError):
    """Nothing may be released any more; nothing was released and nothing changed."""


@dataclass(frozen=True)
class Release:
    """One release. Only `bit` leaves the private side; repr shows no private diagnostic, so no log line can.

    bit: -1.0 or +1.0; 0.0 where PacZPL abstains (a real number in the modes "none" and "raw_half" of NonPrivate).
    kind: "unanimous" | "noisy" | "coin" | "abstain" | "non-private"; a function of all M signs, not of the secret.
    mi_nats: its cost in nats, None where nothing is accounted. Private for PAC-MI: the posterior sets it.
    noise_std, q_plus, noisy_sign: sigma, the posterior mass of sign +1 before the release, r = s + sigma n.
    flip: probability of a turned sign. All private; None where they do not exist.
    """

    bit: float
    mi_nats: float | None = field(repr=False)
    kind: str
    noise_std: float | None = field(default=None, repr=False)
    q_plus: float | None = field(default=None, repr=False)
    noisy_sign: float | None = field(default=None, repr=False)
    flip: float | None = field(default=None, repr=False)


class _Counted:
    """What the mechanisms share: their random source and the count of releases."""

    def __init__(self, rng: np.random.Generator | SecretRandom) -> None:
        self._source = secret_source(rng)
        self._releases = 0

    @property
    def releases(self) -> int:
        """Releases made so far; also the number of the next one in the random stream."""
        return self._releases


class _OverSubsets(_Counted):
    """A mechanism with a posterior over the M subsets, at first `log_prior`, or uniform."""

    def __init__(
        self,
        num_subsets: int,
        secret: int,
        rng: np.random.Generator | SecretRandom,
        log_prior: ArrayLike | None,
    ) -> None:
        super().__init__(rng)
        check_num_subsets(num_subsets)
        if not isinstance(secret, int | np.integer) or isinstance(secret, bool) or not 0 <= secret < num_subsets:
            # The value is not shown: this message may reach a public log.
            raise ValueError(f"secret must be an integer in 0..{num_subsets - 1}")
        self._num_subsets = int(num_subsets)
        self._log_posterior = np.full(num_subsets, -math.log(num_subsets))
        if log_prior is not None:
            self._log_posterior = np.array(log_prior, dtype=np.float64)
            shaped = self._log_posterior.shape == (num_subsets,) and bool(np.isfinite(self._log_posterior).all())
            if not shaped or abs(_logsumexp(self._log_posterior)) > 1e-9:
                raise ValueError(f"log_prior must be {num_subsets} finite logarithms of masses that sum to 1")

    @property
    def log_posterior(self) -> NDArray[np.float64]:
        """Natural logarithm of `posterior`, (M,), a copy. Private."""
        return self._log_posterior.copy()

    @property
    def posterior(self) -> NDArray[np.float64]:
        """The posterior over the subsets given all that is accounted for: (M,), sums to 1. Private."""
        weights: NDArray[np.float64] = np.exp(self._log_posterior)
        return weights / float(weights.sum())


class PacMI(_OverSubsets):
    """PAC-MI: at most budget_nats about the secret index through all releases together.

    Guarantee: for a secret distributed as the prior (uniform on 0..num_subsets-1 unless `log_prior` says what
    earlier releases have left of it), I(secret; all releases) <= E[spent_nats] <= budget_nats, for an adversary
    who knows the data, all subsets and everything public (arXiv 2605.06505, PAC-MI; chain rule of mutual
    information; proof in paczo/proofs.md). spent_nats of one run is one draw of that mean: only budget_nats is a
    bound. There is no neighbouring relation: hidden is which subset was used.

    charge: "real" accounts for the noisy sign r = s + N(0, sigma^2), of which the sign is released (the paper's);
    "bit" for what is released, the sign turned with probability `flip`. Then flip, posterior and charge follow
    from the released bits for whoever knows the data, and the draw is exact.

    A step is `directions` releases; its budget (`adaptive`: (budget - spent) / steps left, else
    budget / steps) is fixed before the first of them and split evenly. `rng` is a SecretRandom (exact after
    a crash) or a numpy Generator. Raises ValueError for an odd num_subsets, a secret out of range, steps or
    directions < 1, a budget that is not positive and finite, or below 1e-300 nats a release, another charge, and
    a log_prior that is not (num_subsets,) finite logarithms of masses that sum to 1.
    """

    def __init__(
        self,
        num_subsets: int,
        secret: int,
        budget_nats: float,
        steps: int,
        rng: np.random.Generator | SecretRandom,
        *,
        adaptive: bool = True,
        directions: int = 1,
        charge: str = "real",
        log_prior: ArrayLike | None = None,
    ) -> None:
        super().__init__(num_subsets, secret, rng, log_prior)
        check_count("steps", steps, 1)
        check_count("directions", directions, 1)
        if not 0.0 < budget_nats < math.inf:
            raise ValueError(f"budget_nats must be positive and finite, got {budget_nats!r}")
        if budget_nats / steps / directions < _SMALLEST_SHARE_NATS:
            raise ValueError(f"budget_nats={budget_nats!r} leaves less than 1e-300 nats for each release")
        if charge not in CHARGES:
            raise ValueError(f"charge must be one of {', '.join(CHARGES)}, got {charge!r}")
        self._secret = int(secret)
        self._budget_nats, self._adaptive = float(budget_nats), bool(adaptive)
        self._steps, self._directions = int(steps), int(directions)
        self._answer = self._turned if charge == "bit" else self._noised
        self._spent_nats = self._step_nats = 0.0

    @property
    def spent_nats(self) -> float:
        """Sum of the charges so far, at most budget_nats. Private: the charges follow from the posterior."""
        return self._spent_nats

    def release(self, signs: ArrayLike) -> Release:
        """Release one sign from `signs` (M,), each -1 or +1, and move the posterior.

        Free where all subsets with positive posterior mass agree, else calibrated noise. Raises ValueError
        for other signs and BudgetExhausted after steps * directions releases; both change nothing.
        """
        checked = _checked_signs(signs, self._num_subsets)
        step_nats = self._budget_for_step()
        log_posterior = self._log_posterior
        log_minus, log_plus = (_logsumexp(log_posterior[checked == sign]) for sign in (-1.0, 1.0))
        q_plus = math.exp(log_plus)
        if min(log_minus, log_plus) == -math.inf:
            release = Release(1.0 if log_plus > log_minus else -1.0, 0.0, "unanimous", q_plus=q_plus)
        else:
            minority = math.exp(min(log_minus, log_plus))
            release, tilt = self._answer(float(checked[self._secret]), minority, q_plus, step_nats)
            log_posterior = log_posterior + checked * tilt
            log_posterior = log_posterior - _logsumexp(log_posterior)
        self._log_posterior, self._step_nats = log_posterior, step_nats
        self._releases += 1
        # Each charge is 4e-7 below its share, so the exact sum is within the budget: min removes rounding.
        self._spent_nats = min(self._spent_nats + (release.mi_nats or 0.0), self._budget_nats)
        return release

    def _noised(self, sign: float, minority: float, q_plus: float, step_nats: float) -> tuple[Release, float]:
        """The sign of r, and the tilt: log p_m gains tilt s_m, which is -(s_m - r)^2 / (2 sigma^2) up to what all
        subsets share."""
        noise_std, charge = calibrated_noise(minority, step_nats / self._directions)
        noisy_sign = sign + noise_std * self._source.standard_normal(self._releases)
        bit = 1.0 if noisy_sign >= 0.0 else -1.0
        release = Release(bit, charge, "noisy", noise_std, q_plus, noisy_sign)
        return release, noisy_sign / noise_std / noise_std

    def _turned(self, sign: float, minority: float, q_plus: float, step_nats: float) -> tuple[Release, float]:
        """The sign, turned with probability flip, and the tilt: P(b | s_m) is 1 - flip for s_m = b, else flip."""
        flip, charge = calibrated_flip(minority, step_nats / self._directions)
        bit = -sign if self._source.bernoulli(self._releases, flip) else sign
        return Release(bit, charge, "noisy", q_plus=q_plus, flip=flip), 0.5 * bit * flip_log_odds(flip)

    def _budget_for_step(self) -> float:
        step, direction = divmod(self._releases, self._directions)
        if step >= self._steps:
            raise BudgetExhausted(f"all {self._steps} steps of {self._directions} releases are made")
        if direction:
            return self._step_nats
        if self._adaptive:
            return (self._budget_nats - self._spent_nats) / (self._steps - step)
        return self._budget_nats / self._steps


class PacZPL(_OverSubsets):
    """PAC-ZPL: zero nats. All signs equal: that sign; else a fair coin that does not depend on the data.

    abstain: 0.0 in the place of the coin, which moves nothing. Whether all signs are equal is a function of the
    data, the subsets and theta, which the adversary knows.

    Guarantee: the releases are the same function of the coins for every secret index, so
    I(secret; releases) = 0 for the adversary of PacMI (arXiv 2605.06505, PAC-ZPL; proof in paczo/proofs.md).
    `secret` is taken for one interface only: it is checked, not kept. Unanimity is over all M subsets, and the
    posterior stays what it was. Raises ValueError as PacMI does.
    """

    spent_nats = 0.0

    def __init__(
        self,
        num_subsets: int,
        secret: int,
        rng: np.random.Generator | SecretRandom,
        *,
        abstain: bool = False,
        log_prior: ArrayLike | None = None,
    ) -> None:
        super().__init__(num_subsets, secret, rng, log_prior)
        self._abstain = bool(abstain)

    def release(self, signs: ArrayLike) -> Release:
        """Release one sign from `signs` (M,), each -1 or +1; others raise ValueError and change nothing."""
        checked = _checked_signs(signs, self._num_subsets)
        if np.all(checked == checked[0]):
            release = Release(float(checked[0]), 0.0, "unanimous")
        elif self._abstain:
            release = Release(0.0, 0.0, "abstain")
        else:
            release = Release(float(self._source.coin(self._releases)), 0.0, "coin")
        self._releases += 1
        return release


class NonPrivate(_Counted):
    """The modes of the paper's ablation without a mechanism (arXiv 2605.06505, non-private modes).

    "none": mean of all derivatives; "quant_full": its sign; "raw_half": mean over the secret subset;
    "quant_half": the sign of that; "random_sign": a fair coin, the control.
    members: bool (N,), the secret subset. Not accounted: mi_nats and spent_nats are None, and there is no
    posterior. That is no statement about I(secret; releases): "none", "quant_full" and "random_sign" do not read
    the secret, so it is 0 for them, and yet they protect no subset and no sample: what they release would have
    been another had the data been another. Raises ValueError for another mode or members that are not bool.
    """

    posterior = spent_nats = None

    def __init__(self, mode: str, members: ArrayLike, rng: np.random.Generator | SecretRandom) -> None:
        super().__init__(rng)
        if mode not in NON_PRIVATE_MODES:
            raise ValueError(f"mode must be one of {', '.join(NON_PRIVATE_MODES)}, got {mode!r}")
        self._mode, self._members = mode, np.array(members)
        if self._members.dtype != np.bool_ or self._members.ndim != 1 or not self._members.size:
            raise ValueError(f"members must be bool (N,), got {self._members.dtype} {self._members.shape}")

    def release(self, derivatives: ArrayLike) -> Release:
        """Release one number from the clipped derivatives (N,); ValueError if one is not finite."""
        full_and_half = np.stack([np.ones_like(self._members), self._members], axis=1)
        full, half = subset_means(derivatives, full_and_half).tolist()
        value = half if self._mode.endswith("half") else full
        if self._mode == "random_sign":
            value = float(self._source.coin(self._releases))
        elif self._mode.startswith("quant"):
            value = 1.0 if value >= 0.0 else -1.0
        self._releases += 1
        return Release(value, None, "non-private")

    def skip(self) -> None:
        """Count a release that was made before a crash, so that the next one draws the next numbers."""
        self._releases += 1


def _checked_signs(signs: ArrayLike, num_subsets: int) -> NDArray[np.float64]:
    values = np.asarray(signs)
    if values.shape != (num_subsets,) or values.dtype.kind not in "if" or not np.all(np.abs(values) == 1):
        raise ValueError(f"signs must be {num_subsets} values of -1 or +1, got {values.dtype} {values.shape}")
    return values.astype(np.float64)


def _logsumexp(values: NDArray[np.float64]) -> float:
    largest = float(np.max(values, initial=-math.inf))
    return largest + math.log(float(np.sum(np.exp(values - largest)))) if largest > -math.inf else largest
