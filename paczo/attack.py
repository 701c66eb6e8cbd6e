"""The strongest adversary of PACZero's threat model, played many times on a small objective. NumPy and SciPy only.

He knows the data, the membership matrix, the mechanism and the transcript, hence the model at every step and
the sign of every candidate subset's mean. He wants the secret index S*, or whether one sample, fixed before the
run, lies in S* (arXiv 2605.06505, setting). `ATTACKS` says what he is given beyond the bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr
from scipy.stats import beta

from paczo.mechanisms import NonPrivate, PacMI, PacZPL, Release
from paczo.pac_utils import clip_derivatives, draw_membership, subset_signs
from paczo.randomness import SecretRandom

Floats = NDArray[np.float64]

NUM_SAMPLES, DIMENSION, CLIP, LEARNING_RATE = 16, 6, 4.0, 0.05
# PAC-MI by the bit, and PAC-ZPL that abstains, beside the paper's.
CHARGES = {"pac-mi": "real", "pac-mi-bit": "bit"}
ABSTAINS = {"pac-zpl": False, "pac-zpl-abstain": True}
CONTROLS = ("zpl-follows-secret", "quant_half")
MECHANISMS = (*CHARGES, *ABSTAINS, *CONTROLS)
_FOLLOWED = 0.9


@dataclass(frozen=True)
class Setting:
    """What is attacked.

    Attributes:
        mechanism: one of `MECHANISMS`; `CONTROLS` are without privacy.
        claimed_nats: the budget that the run states; the bound follows from it.
        spent_nats: the budget that the mechanism is really given, larger in a control.
        directions: K.
        num_subsets: M.
        steps: T.
    """

    mechanism: str
    claimed_nats: float
    spent_nats: float
    directions: int = 1
    num_subsets: int = 8
    steps: int = 8

    @property
    def is_control(self) -> bool:
        return self.mechanism in CONTROLS or self.spent_nats > self.claimed_nats

    @property
    def name(self) -> str:
        shape = f"K={self.directions} M={self.num_subsets} T={self.steps}"
        excess = "" if self.spent_nats <= self.claimed_nats else f", spends {self.spent_nats:g}"
        return f"{self.mechanism} {self.claimed_nats:g} nats{excess} {shape}"


@dataclass(frozen=True)
class Runs:
    """What the adversary sees of R runs with n releases each, and the truth.

    Attributes:
        signs: (R, n, M), of the subsets' means.
        bits: (R, n), as published.
        noise_std: (R, n), sigma; inf where there was none.
        noisy_signs: (R, n), r; 0 where there was none.
        flips: (R, n), probability of a turned sign; 1/2 where there was none.
        secret: (R,), S*.
        member: bool (R, M), the subsets that hold the target sample.
    """

    signs: Floats
    bits: Floats
    noise_std: Floats
    noisy_signs: Floats
    flips: Floats
    secret: NDArray[np.int64]
    member: NDArray[np.bool_]


def play(setting: Setting, runs: int, seed: int) -> Runs:
    """Train a point theta in R^6 towards 16 random points, `runs` times, through the project's mechanisms.

    l_i = |theta - x_i|^2 / 2, so the derivative along z is z . (theta - x_i) exactly. Points, membership, target
    sample and directions are public and differ between runs, as do the secrets.
    """
    count = setting.steps * setting.directions
    shape = (runs, count)
    signs = np.empty((*shape, setting.num_subsets))
    bits, noise_std, noisy, flips = np.empty(shape), np.full(shape, np.inf), np.zeros(shape), np.full(shape, 0.5)
    secret = np.empty(runs, dtype=np.int64)
    member = np.empty((runs, setting.num_subsets), dtype=bool)
    for run in range(runs):
        public = np.random.default_rng([seed, run])
        stream = SecretRandom.from_seed(seed * 1_000_003 + run)
        points = public.standard_normal((NUM_SAMPLES, DIMENSION))
        membership = draw_membership(NUM_SAMPLES, setting.num_subsets, public)
        secret[run] = stream.uniform_index("secret", 0, setting.num_subsets)
        member[run] = membership[public.integers(NUM_SAMPLES)]
        release = _releaser(setting, int(secret[run]), membership, stream)
        theta = np.zeros(DIMENSION)
        for step in range(setting.steps):
            update = np.zeros(DIMENSION)
            for k in range(setting.directions):
                at = (run, step * setting.directions + k)
                z = public.standard_normal(DIMENSION)
                derivatives = clip_derivatives((theta - points) @ z, CLIP).astype(np.float64)
                current = subset_signs(derivatives, membership)
                signs[at] = current
                released = release(derivatives, current)
                bits[at] = released.bit
                if released.noise_std is not None:
                    noise_std[at], noisy[at] = released.noise_std, released.noisy_sign
                if released.flip is not None:
                    flips[at] = released.flip
                update += bits[at] * z / setting.directions
            theta = theta - LEARNING_RATE * update
    return Runs(signs, bits, noise_std, noisy, flips, secret, member)


def _releaser(
    setting: Setting, secret: int, membership: NDArray[np.bool_], stream: SecretRandom
) -> Callable[[Floats, NDArray[np.int8]], Release]:
    """A function of derivatives and signs."""
    num_subsets, name = setting.num_subsets, setting.mechanism
    if name in CHARGES:
        nats, steps, directions = setting.spent_nats, setting.steps, setting.directions
        mi = PacMI(num_subsets, secret, nats, steps, stream, directions=directions, charge=CHARGES[name])
        return lambda _, signs: mi.release(signs)
    if name in ABSTAINS:
        zpl = PacZPL(num_subsets, secret, stream, abstain=ABSTAINS[name])
        return lambda _, signs: zpl.release(signs)
    if name == "zpl-follows-secret":  # and so it does where they agree
        return lambda _, signs: Release(float(signs[secret]), 0.0, "coin")
    if name == "quant_half":
        half = NonPrivate("quant_half", membership[:, secret], stream)
        return lambda derivatives, _: half.release(derivatives)
    raise ValueError(f"unknown mechanism '{name}'; known: {', '.join(MECHANISMS)}")


def log_posterior_from_bits(runs: Runs) -> Floats:
    """(R, M) up to a constant: exact Bayes where b = sign(s + sigma n), so P(b | s) = Phi(b s / sigma).

    He is told every sigma, which is private, so this is more than the transcript gives.
    """
    scaled = runs.bits[:, :, None] * runs.signs / runs.noise_std[:, :, None]
    informative = np.isfinite(runs.noise_std)[:, :, None]
    total: Floats = np.where(informative, log_ndtr(scaled), 0.0).sum(axis=1)
    return total


def log_posterior_from_noisy_signs(runs: Runs) -> Floats:
    """(R, M) up to a constant, from the real-valued r, which never leaves: the quantity that is accounted for."""
    distance = (runs.signs - runs.noisy_signs[:, :, None]) / runs.noise_std[:, :, None]
    total: Floats = (-0.5 * distance**2).sum(axis=1)
    return total


def log_posterior_from_flips(runs: Runs) -> Floats:
    """(R, M) up to a constant: exact Bayes where b = s with probability 1 - flip; he can compute every flip."""
    half_log_odds = 0.5 * np.log1p((1.0 - 2.0 * runs.flips) / runs.flips)
    return ((runs.bits * half_log_odds)[:, :, None] * runs.signs).sum(axis=1)


def log_posterior_of_a_sceptic(runs: Runs) -> Floats:
    """(R, M) up to a constant, of one who trusts no mechanism: each bit is S*'s sign with probability 0.9.

    Steps on which all subsets agree drop out by themselves, as do those without a bit. It finds whatever follows
    the secret.
    """
    agrees = runs.bits[:, :, None] == runs.signs
    return agrees.sum(axis=1) * math.log(_FOLLOWED / (1.0 - _FOLLOWED))


ATTACKS: dict[str, Callable[[Runs], Floats]] = {
    "bits and sigma": log_posterior_from_bits,
    "noisy values": log_posterior_from_noisy_signs,
    "bits and flips": log_posterior_from_flips,
    "sceptic": log_posterior_of_a_sceptic,
}


def attacks_on(mechanism: str) -> list[str]:
    """The names of the attacks that fit a mechanism: the sceptic's, and those from what its releases have."""
    fitting = {"pac-mi": ["bits and sigma", "noisy values"], "pac-mi-bit": ["bits and flips"]}
    return [*fitting.get(mechanism, []), "sceptic"]


def index_hits(runs: Runs, log_posterior: Floats, rng: np.random.Generator) -> int:
    """Right maximum-a-posteriori guesses of S*; ties are broken by a coin of the adversary's."""
    best = log_posterior.max(axis=1, keepdims=True)
    tied = log_posterior >= best - 1e-12
    guess = np.where(tied, rng.random(tied.shape), -1.0).argmax(axis=1)
    return int((guess == runs.secret).sum())


def member_hits(runs: Runs, log_posterior: Floats, rng: np.random.Generator) -> int:
    """Right maximum-a-posteriori guesses of whether the target sample lies in S*; prior 1/2."""
    weights = np.exp(log_posterior - log_posterior.max(axis=1, keepdims=True))
    inside = (weights * runs.member).sum(axis=1) / weights.sum(axis=1)
    tied = np.abs(inside - 0.5) < 1e-12
    guess = np.where(tied, rng.random(len(inside)) < 0.5, inside > 0.5)
    truth = runs.member[np.arange(len(runs.secret)), runs.secret]
    return int((guess == truth).sum())


def clopper_pearson(hits: int, trials: int, confidence: float = 0.99) -> tuple[float, float]:
    """The exact two-sided interval of a success probability (Clopper and Pearson 1934)."""
    tail = (1.0 - confidence) / 2.0
    low = 0.0 if hits == 0 else float(beta.ppf(tail, hits, trials - hits + 1))
    high = 1.0 if hits == trials else float(beta.ppf(1.0 - tail, hits + 1, trials - hits))
    return low, high
