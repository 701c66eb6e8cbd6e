"""What a step of DPZero and DP-AggZO draws and adds up: Poisson batch, clipping on a grid, exact noise. No torch.

A step releases integers, one for each of K directions: y = sum over the batch of v_i + e, where

- v_i in Z^K is a function of sample i alone with |v_i| <= STD / noise_multiplier,
- e_1 ... e_K are independent discrete Gaussians of standard deviation STD (`discrete.py`).

**Guarantee.** Let T steps of the Poisson-subsampled Gaussian mechanism with this noise multiplier be
(epsilon, delta')-DP (`accounting.py`). Then T steps of y are (epsilon, delta' + (1 + e^epsilon) tau)-DP, with
tau = K T / (16 STD^2).

*Proof.* Let the accountants' mechanism add N(0, STD^2 I) to the same sums, and round its release to the nearest
integers, which is post-processing. As the sums are integers, it adds the rounded Gaussian Q where y has the
discrete Gaussian P. Let phi be the density of N(0, STD^2). By Taylor, with Peano's kernel (1/2 - |u|)^2 / 2,
|phi(n) - Q(n)| is at most 1/8 of the integral of |phi''| over [n - 1/2, n + 1/2], and the whole integral is
below 0.968 / STD^2. P is phi over its sum on the integers, which is within 3 e^(-2 pi^2 STD^2) of 1 by
Poisson's summation formula. So P and Q are within 0.0605 / STD^2 + 2 e^(-2 pi^2 STD^2) < 1 / (16 STD^2) in
total variation. Given what was released before, both mechanisms have the same sums with the same chances, so
after T steps of K coordinates they are within tau; and Pr[y in E] <= Pr[Q's in E] + tau <= e^epsilon Pr'[Q's in
E] + delta' + tau <= e^epsilon (Pr'[y in E] + tau) + delta' + tau.

With STD = 2^40, 64 directions and 2,000 steps tau is 6.6e-21. What a trainer makes of y is post-processing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from baselines.discrete import RandomBits, discrete_gaussian, discrete_laplace
from paczo.randomness import SecretRandom

# Standard deviation of the noise in grains of the grid.
STD = 1 << 40
_UNIT = 1 << 53


def cost_of_the_grid(epsilon: float, draws: int) -> float:
    """(1 + e^epsilon) tau: the delta that `draws` discrete instead of continuous Gaussian numbers cost."""
    return (1 + math.exp(epsilon)) * draws / (16.0 * STD**2) if epsilon < 700 else math.inf


@dataclass(frozen=True)
class Grid:
    """Where vectors and noise live: the multiples of a grain, STD of which are the noise's standard deviation.

    Attributes:
        clip: bound c on the L2 norm of one sample's vector.
        noise_multiplier: the noise's standard deviation over the bound, as it will be at least.
    """

    clip: float
    noise_multiplier: float

    @property
    def grain(self) -> float:
        return self.noise_multiplier * self.clip / STD

    @cached_property
    def largest_square(self) -> int:
        """The largest |v|^2 that a sample may add: (STD / noise_multiplier)^2, rounded down."""
        return math.floor((STD / Fraction(self.noise_multiplier)) ** 2)

    def place(self, vector: NDArray[np.float64]) -> list[int]:
        """A sample's vector (K,) in grains, clipped to norm c and rounded toward zero: |v|^2 <= largest_square.

        That bound is checked in integers, so no rounding of floating-point numbers can break it.
        """
        norm = float(np.linalg.norm(vector))
        scaled = vector * (self.clip / max(norm, self.clip) / self.grain)
        whole = [int(value) for value in scaled.tolist()]
        while sum(value * value for value in whole) > self.largest_square:
            whole = [value - (value > 0) + (value < 0) for value in whole]
        return whole

    def total(self, derivatives: NDArray[np.float32]) -> list[int]:
        """The sum of g_i / K over the samples, each clipped, in grains; K zeros for an empty batch.

        Args:
            derivatives: float32 (K, n), finite, one column a sample.
        """
        vectors = derivatives.astype(np.float64) / len(derivatives)
        placed = [self.place(vector) for vector in vectors.T]
        return [sum(values) for values in zip([0] * len(derivatives), *placed, strict=True)]


def release(grid: Grid, derivatives: NDArray[np.float32], random: SecretRandom, step: int) -> NDArray[np.float64]:
    """The noisy sum of a batch, float64 (K,): an integer vector y as above, times the grain.

    A pure function of the derivatives, the stream's key and the step.
    """
    total, first = grid.total(derivatives), step * len(derivatives)
    noise = [discrete_gaussian(RandomBits(random, "dp noise", first + k), STD) for k in range(len(total))]
    noisy = [value + error for value, error in zip(total, noise, strict=True)]
    return np.array(noisy, dtype=np.float64) * grid.grain


def poisson_batch(random: SecretRandom, step: int, num_samples: int, sample_rate: float) -> NDArray[np.int64]:
    """Numbers of the samples that a step draws, each independently with chance floor(2^53 q) / 2^53.

    int64, ascending, a pure function of the stream's key and the step.
    """
    below = math.floor(sample_rate * _UNIT)
    first = step * num_samples
    drawn = [i for i in range(num_samples) if random.uniform_index("poisson batch", first + i, _UNIT) < below]
    return np.array(drawn, dtype=np.int64)


def noisy_count(random: SecretRandom, num_samples: int, epsilon: float) -> int:
    """num_samples plus discrete Laplace noise of scale 1 / epsilon, at least 1: (epsilon, 0)-DP.

    The same whenever the same stream is asked.
    """
    scale = 1 / Fraction(epsilon)
    noise = discrete_laplace(RandomBits(random, "dp count", 0), scale.numerator, scale.denominator)
    return max(num_samples + noise, 1)
