"""What a number of nats means: bounds on what attacks reach, and the epsilon of DP with the same success.

NumPy only. arXiv 2605.06505 bounds I(S*; releases) by the spent nats. A guess made from the releases that is
right with probability p, where blind guessing is right with probability `prior`, needs
KL(Bern(p) || Bern(prior)) <= I (PAC privacy: Xiao and Devadas, arXiv 2210.03458, theorem 1). That one formula,
`posterior_success`, covers all guesses that are right or wrong:

    membership of one sample                       prior 1/2, or the larger of rate and 1 - rate
    naming S* among M subsets                      prior 1/M: `naming_success`
    the memberships of k samples at once           prior `blind_success(membership[k rows])`; 2^-k if independent
    reconstruction up to some error                prior: chance of that without the releases
    the best of k runs on one S*                   the budgets add: k B nats

Proofs: paczo/proofs.md.

    python -m paczo.bounds                          a table for the paper's budgets
    python -m paczo.bounds --mi 0.33                all that 0.33 nats bound
    python -m paczo.bounds --mi 0.33 --prior 0.25   a guess with another blind success
    python -m paczo.bounds --mi 0.33 --steps 500    how far the released bits follow their signs, by charge
    python -m paczo.bounds --eps 2 --delta 1e-5
"""

import argparse
import math
from collections.abc import Sequence
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from paczo.bit_channel import binary_mi, relative_entropy
from paczo.mechanisms import CHARGES, PacMI
from paczo.pac_utils import check_count
from paczo.randomness import SecretRandom

PAPER_BUDGETS = (1e-4, 3e-4, 5e-4, 1e-3, 2e-3, 3e-3, 1e-2, 3e-2, 5e-2, 0.07, 0.11, 0.2, 0.33, 0.5, 0.68)

FALSE_RATES = (0.0, 1e-3)

# Above every rounding error of the divergence below: the success is found for slightly more nats.
_ROUND_UP = 1e-13


def posterior_success(mi_nats: float, prior: float = 0.5) -> float:
    """Largest success probability of any guess from releases that hold mi_nats about the secret.

    The root p in [prior, 1] of KL(Bern(p) || Bern(prior)) = mi_nats, rounded up, never below the true root.
    Proof: paczo/proofs.md. prior is the success of the best blind guess: 1/2 for "was sample i in the secret
    half". 0 nats give prior; -ln(prior) nats and more (inf too) give 1.0. At prior 1/2 the equation reads
    ln 2 - h(p) = mi_nats.

    Raises ValueError for mi_nats < 0 or NaN, and for prior outside the open interval (0, 1).
    """
    _check_prior(prior)
    if not mi_nats >= 0.0:
        raise ValueError(f"mi_nats must be >= 0, got {mi_nats!r}")
    if mi_nats == 0.0:
        return float(prior)
    if mi_nats >= -math.log(prior):
        return 1.0
    low, high = 0.0, 1.0 - prior
    target = mi_nats * (1.0 + _ROUND_UP)
    while low < (middle := 0.5 * (low + high)) < high:
        if relative_entropy(prior, middle) < target:
            low = middle
        else:
            high = middle
    return min(1.0, math.nextafter(prior + high, 2.0))


def naming_success(mi_nats: float, num_subsets: int) -> float:
    """Largest probability of naming S* among num_subsets equally probable subsets: `posterior_success`, 1/M.

    Raises ValueError for mi_nats < 0 or NaN, and for num_subsets that is no integer of at least 2.
    """
    check_count("num_subsets", num_subsets, 2)
    return posterior_success(mi_nats, 1.0 / num_subsets)


def blind_success(membership: NDArray[np.bool_]) -> float:
    """Best success without releases of a guess at all memberships of k samples in S* at once.

    The share of the commonest column among the M of membership, bool (k, M): those samples' rows of the matrix.
    Raises ValueError for another type or shape.
    """
    rows = np.asarray(membership)
    if rows.dtype != np.bool_ or rows.ndim != 2 or not rows.size:
        raise ValueError(f"membership must be bool (k, M), got {rows.dtype} {rows.shape}")
    return float(np.unique(rows, axis=1, return_counts=True)[1].max()) / rows.shape[1]


def tpr_at_fpr(mi_nats: float, fpr: float, prior: float = 0.5) -> float:
    """Largest true positive rate of any test "sample i is in S*" whose false positive rate is at most fpr.

    prior = P(sample i in S*): 1/2, or k/M under a sampling rate. The largest t in [fpr, 1] with
    I(member; guess) <= mi_nats for the channel with P(guess | in) = t and P(guess | out) = fpr, rounded up, never
    below the true one (data processing; paczo/proofs.md). 0 nats give fpr; enough nats for a perfect answer of
    the member (and fpr 1) give 1.0. At fpr 0 and prior 1/2: ln 2 - (1 - t/2) h((1 - t) / (2 - t)) = mi_nats.

    Raises ValueError for mi_nats < 0 or NaN, fpr outside [0, 1], and prior outside the open interval (0, 1).
    """
    _check_prior(prior)
    if not mi_nats >= 0.0:
        raise ValueError(f"mi_nats must be >= 0, got {mi_nats!r}")
    if not 0.0 <= fpr <= 1.0:
        raise ValueError(f"fpr must lie in [0, 1], got {fpr!r}")
    if mi_nats == 0.0:
        return float(fpr)
    target = mi_nats * (1.0 + _ROUND_UP)
    low, high = 0.0, 1.0 - fpr
    if binary_mi(prior, fpr, high) <= target:
        return 1.0
    while low < (middle := 0.5 * (low + high)) < high:
        if binary_mi(prior, fpr, middle) < target:
            low = middle
        else:
            high = middle
    return min(1.0, math.nextafter(fpr + high, 2.0))


def mi_for_success(p: float, prior: float = 0.5) -> float:
    """KL(Bern(p) || Bern(prior)) in nats: releases with fewer nats keep every guess below success p.

    The inverse of posterior_success. 0.0 at p = prior, -ln(prior) at p = 1.
    Raises ValueError for NaN, p outside [prior, 1] and prior outside (0, 1).
    """
    _check_prior(prior)
    if not prior <= p <= 1.0:
        raise ValueError(f"p must lie in [prior, 1] = [{prior!r}, 1], got {p!r}")
    return -math.log(prior) if p == 1.0 else relative_entropy(prior, p - prior)


def epsilon_for_success(p: float) -> float:
    """epsilon = ln(p / (1 - p)): pure DP that allows a balanced membership attack the success p.

    A translation at one point (arXiv 2605.06505, setting), not a differential-privacy guarantee of the mechanism:
    pure DP with epsilon 2 keeps the true positive rate below 0.75 % at a false positive rate of 0.1 %
    (`tpr_for_epsilon`); 0.33 nats, whose success it shares, alone allow 69 % (`tpr_at_fpr`). 0.0 at p = 1/2, inf
    at p = 1. Raises ValueError for NaN and p outside [1/2, 1].
    """
    if not 0.5 <= p <= 1.0:
        raise ValueError(f"p must lie in [1/2, 1], got {p!r}")
    return math.log1p((2.0 * p - 1.0) / (1.0 - p)) if p < 1.0 else math.inf


def success_for_epsilon(eps: float, delta: float = 0.0) -> float:
    """Largest success (e^eps + delta) / (1 + e^eps) of a balanced membership attack under (eps, delta)-DP.

    Balanced: the sample was in or out with probability 1/2 each, and neighbouring data sets differ in that
    sample. From the hypothesis-testing form of DP (Kairouz, Oh, Viswanath 2015, theorem 2.1) where both error
    rates are equal. eps inf or delta 1 gives 1.0. Raises ValueError for NaN, eps < 0, delta outside [0, 1].
    """
    _check_dp(eps, delta)
    shrink = math.exp(-eps)
    return (1.0 + delta * shrink) / (1.0 + shrink)


def tpr_for_epsilon(eps: float, fpr: float, delta: float = 0.0) -> float:
    """Largest true positive rate at a false positive rate of fpr under (eps, delta)-DP (theorem as above).

    Raises ValueError for NaN, eps < 0, delta or fpr outside [0, 1].
    """
    _check_dp(eps, delta)
    if not 0.0 <= fpr <= 1.0:
        raise ValueError(f"fpr must lie in [0, 1], got {fpr!r}")
    if math.isinf(eps):
        return 1.0
    grown = math.exp(min(0.0, eps + math.log(fpr))) if fpr > 0.0 else 0.0
    return min(1.0, grown + delta, 1.0 - math.exp(-eps) * (1.0 - delta - fpr))


def _check_dp(eps: float, delta: float) -> None:
    if not eps >= 0.0:
        raise ValueError(f"eps must be >= 0, got {eps!r}")
    if not 0.0 <= delta <= 1.0:
        raise ValueError(f"delta must lie in [0, 1], got {delta!r}")


def _check_prior(prior: float) -> None:
    if not 0.0 < prior < 1.0:
        raise ValueError(f"prior must lie strictly between 0 and 1, got {prior!r}")


def sign_excess(mi_nats: float, steps: int, charge: str, *, num_subsets: int = 128, runs: int = 8) -> float:
    """Mean of P(released bit = true sign) - 1/2 over the releases of PAC-MI, what a budget leaves to learn from.

    In `runs` seeded runs of one release a step, the signs of the subsets being fair coins. With both signs equally
    likely a share b of the nats gives sqrt(b/2) by "bit" and sqrt(b/pi) by "real", as b goes to 0.

    Raises ValueError as `PacMI` does.
    """
    found = []
    for seed in range(runs):
        signs = np.random.default_rng(seed).choice((-1.0, 1.0), size=(steps, num_subsets))
        mechanism = PacMI(num_subsets, 0, mi_nats, steps, SecretRandom.from_seed(seed), charge=charge)
        for row in signs:
            release = mechanism.release(row)
            if release.flip is not None:
                found.append(0.5 - release.flip)
            elif release.noise_std is not None:
                found.append(0.5 * math.erf(1.0 / release.noise_std / math.sqrt(2.0)))
            else:
                found.append(0.5)  # all that are still possible agree
    return float(np.mean(found))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def _line(mi_nats: float, prior: float) -> str:
    success = posterior_success(mi_nats, prior)
    epsilon = f"{epsilon_for_success(success):>9.4f}" if prior == 0.5 else f"{'-':>9}"
    return f"{mi_nats:>10.4g} {prior:>7.4g} {success:>9.6f} {success - prior:>10.6f} {epsilon}"


def _quantities(mi_nats: float, num_subsets: int) -> list[tuple[str, float, float]]:
    """What mi_nats bound besides the success at prior 1/2: (attack, without the releases, at most)."""
    rows = [(f"true positives at false positive rate {a:g}", a, tpr_at_fpr(mi_nats, a)) for a in FALSE_RATES]
    rows.append((f"naming S* among M = {num_subsets}", 1 / num_subsets, naming_success(mi_nats, num_subsets)))
    for count in (2, 8, 32):
        prior = 2.0**-count
        rows.append((f"{count} independent memberships at once", prior, posterior_success(mi_nats, prior)))
    rows.append(("reconstruction with a blind success of 1 %", 0.01, posterior_success(mi_nats, 0.01)))
    rows += [(f"a membership, best of {k} runs on one S*", 0.5, posterior_success(k * mi_nats)) for k in (2, 5)]
    return rows


def _meaning_of_epsilon(mi_nats: float) -> str:
    epsilon, rate = epsilon_for_success(posterior_success(mi_nats)), FALSE_RATES[-1]
    return (
        f"epsilon translates the success at prior 1/2 and nothing else: pure DP with epsilon {epsilon:.4g} keeps\n"
        f"the true positive rate at a false positive rate of {rate:g} at or below"
        f" {tpr_for_epsilon(epsilon, rate):.4g};\n{mi_nats:g} nats alone allow {tpr_at_fpr(mi_nats, rate):.4g}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Print what a budget, or an (epsilon, delta), allows; exit code 2 with one line for wrong numbers."""
    parser = _Parser(prog="paczo.bounds", description="What a budget of nats bounds.", allow_abbrev=False)
    parser.add_argument("--mi", type=float, help="budget in nats")
    parser.add_argument("--prior", type=float, help="success of the best blind guess (default: 0.5)")
    parser.add_argument("--num_subsets", type=int, default=128, help="M, for naming S* (default: 128)")
    parser.add_argument("--steps", type=int, help="releases to share it out to: what they leave to learn from")
    parser.add_argument("--eps", type=float, help="epsilon of differential privacy, to compare")
    parser.add_argument("--delta", type=float, help="its delta (default: 0)")
    args = parser.parse_args(argv)
    if args.eps is not None and (args.mi is not None or args.prior is not None):
        parser.error("--eps is for a balanced guess: it excludes --mi and --prior")
    if args.delta is not None and args.eps is None:
        parser.error("--delta needs --eps")
    if args.steps is not None and args.mi is None:
        parser.error("--steps needs --mi")
    if args.steps is not None and args.steps < 1:
        parser.error("--steps must be at least 1")
    try:
        if args.steps is not None:
            print(
                f"P(released bit = true sign) - 1/2, mean over {args.steps} releases of {args.mi:g} nats in all:"
            )
            for charge in CHARGES:
                excess = sign_excess(args.mi, args.steps, charge, num_subsets=args.num_subsets)
                print(f"--pac_charge {charge:<6}{excess:.4f}")
            return
        if args.eps is not None:
            success = success_for_epsilon(args.eps, args.delta or 0.0)
            print(f"success bound {success:.6f}, advantage {success - 0.5:.6f} over a blind guess")
            print(f"the same bound as a budget of {mi_for_success(success):.6g} nats")
            return
        prior = 0.5 if args.prior is None else args.prior
        rows = [_line(nats, prior) for nats in (PAPER_BUDGETS if args.mi is None else (args.mi,))]
        full = args.mi is not None and args.prior is None
        others = _quantities(args.mi, args.num_subsets) if full else []
    except ValueError as error:
        parser.error(str(error))
    print(f"{'nats':>10} {'prior':>7} {'success':>9} {'advantage':>10} {'epsilon':>9}")
    print("\n".join(rows))
    if full:
        print(f"\n{'attack':<44} {'blind':>10} {'at most':>10}")
        print("\n".join(f"{name:<44} {blind:>10.4g} {most:>10.4g}" for name, blind, most in others))
        print("\n" + _meaning_of_epsilon(args.mi))


if __name__ == "__main__":
    main()
