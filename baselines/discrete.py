"""Exact discrete Gaussian and Laplace noise from random bits (Canonne, Kamath and Steinke, arXiv 2004.00010).

Integers only: no floating-point number decides anything, so the distributions below are those of the draws and
not an approximation of them. Given uniform `bits.below(n)`:

- `bernoulli_exp` is True with chance exp(-numerator/denominator): the first k >= 1 at which a coin of chance
  x/k fails is odd with chance 1 - x + x^2/2! - ... = exp(-x), for x in [0, 1]; exp(-x) for x > 1 is a product
  (Algorithm 1);
- `discrete_laplace` is y with chance proportional to exp(-|y| / scale) (Algorithm 2);
- `discrete_gaussian` is y with chance proportional to exp(-y^2 / (2 std^2)): a discrete Laplace y of scale std
  is taken with chance exp(-(|y| - std)^2 / (2 std^2)) (Algorithm 3 with t = std, which its proof allows).

Why not OpenDP, whose samplers these are: its package (0.16) is 260 MB unpacked and draws from the operating system
alone. A step that is made again after a crash must draw the same noise, and so from the run's own keyed stream.
"""

from __future__ import annotations

from typing import Protocol

from paczo.randomness import SecretRandom

_WORD_BITS = 64
# Words of the keyed stream that one draw may use: a draw takes about thirty.
_WORDS_BITS = 32


class Uniform(Protocol):
    """What a sampler draws from."""

    def below(self, n: int) -> int:
        """An integer in 0..n-1, exactly uniform and independent of all others."""
        ...


class RandomBits:
    """The random bits of draw number `index`, a pure function of (key, purpose, index).

    Raises ValueError, when first used, for an index outside 0..2^32-1.
    """

    __slots__ = ("_bits", "_next_word", "_purpose", "_random", "_size")

    def __init__(self, random: SecretRandom, purpose: str, index: int) -> None:
        self._random, self._purpose = random, purpose
        self._next_word = index << _WORDS_BITS
        self._bits = self._size = 0

    def below(self, n: int) -> int:
        """An integer in 0..n-1, exactly uniform by rejection, for n >= 1 of any size."""
        size = (n - 1).bit_length()
        while (value := self._take(size)) >= n:
            pass
        return value

    def _take(self, size: int) -> int:
        while self._size < size:
            word = self._random.uniform_index(self._purpose, self._next_word, 1 << _WORD_BITS)
            self._bits |= word << self._size
            self._size += _WORD_BITS
            self._next_word += 1
        value = self._bits & ((1 << size) - 1)
        self._bits >>= size
        self._size -= size
        return value


def bernoulli_exp(bits: Uniform, numerator: int, denominator: int) -> bool:
    """True with chance exp(-numerator / denominator), for numerator >= 0 and denominator >= 1."""
    while numerator > denominator:
        if not bernoulli_exp(bits, 1, 1):
            return False
        numerator -= denominator
    k = 1
    while bits.below(denominator * k) < numerator:
        k += 1
    return k % 2 == 1


def discrete_laplace(bits: Uniform, scale_numerator: int, scale_denominator: int = 1) -> int:
    """An integer y with chance proportional to exp(-|y| / scale), for a positive rational scale.

    Added to an integer that one sample more or less changes by at most 1: (1 / scale, 0)-differentially private.
    """
    while True:
        low = bits.below(scale_numerator)
        if not bernoulli_exp(bits, low, scale_numerator):
            continue
        high = 0
        while bernoulli_exp(bits, 1, 1):
            high += 1
        size = (low + scale_numerator * high) // scale_denominator
        negative = bits.below(2)
        if size or not negative:  # or 0 would come twice as often
            return -size if negative else size


def discrete_gaussian(bits: Uniform, std: int) -> int:
    """An integer y with chance proportional to exp(-y^2 / (2 std^2)), for an integer std >= 1."""
    while True:
        value = discrete_laplace(bits, std)
        if bernoulli_exp(bits, (abs(value) - std) ** 2, 2 * std * std):
            return value
