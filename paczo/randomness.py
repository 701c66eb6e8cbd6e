"""The private stream of random numbers: the secret index, noise and coins of PACZero (arXiv 2605.06505).

NumPy and SciPy only. Directions, data order and membership have public streams of their own and never come
from here: whoever can recompute this stream knows the secret.
"""

import hashlib
import operator
import os
from collections.abc import Callable
from typing import Protocol

import numpy as np
from scipy.special import ndtri

_KEY_BYTES = 32
_WORD = 1 << 64
_UNIT = 1 << 53


class SecretRandom:
    """Random numbers that are pure functions of (32-byte key, purpose, index), by keyed BLAKE2b.

    Why not a generator with a position: a run that dies and repeats release number n gets the same noise
    again, so the repetition tells nothing new and costs nothing. That holds as long as release n is repeated
    on the same signs. Two runs must never share a key. Under an unknown key the draws are independent and
    uniform as far as BLAKE2b is a pseudorandom function.

    reproducible=True marks a key that others can recompute: such a run is not private, and every output has
    to say so. repr never shows the key. Raises ValueError for a key that is not 32 bytes.
    """

    __slots__ = ("_key", "_reproducible")

    def __init__(self, key: bytes, *, reproducible: bool = False) -> None:
        if not isinstance(key, bytes) or len(key) != _KEY_BYTES:
            size = f"{len(key)} bytes" if isinstance(key, bytes) else type(key).__name__
            raise ValueError(f"a secret key must be {_KEY_BYTES} bytes, got {size}")
        self._key = key
        self._reproducible = bool(reproducible)

    @classmethod
    def from_entropy(cls) -> "SecretRandom":
        """A fresh key from the operating system: the only private choice."""
        return cls(os.urandom(_KEY_BYTES))

    @classmethod
    def from_seed(cls, seed: int) -> "SecretRandom":
        """The key of an integer seed, for experiments that must be repeated. Reproducible, not private."""
        text = str(operator.index(seed)).encode()
        key = hashlib.blake2b(text, digest_size=_KEY_BYTES, person=b"paczo-seed").digest()
        return cls(key, reproducible=True)

    @classmethod
    def of_run(cls, seed: int | None, share: Callable[[Callable[[], bytes]], bytes]) -> "SecretRandom":
        """A run's stream, from entropy where `seed` is None, else from it.

        `share(make)` gives each of the run's processes what `make()` gives in the first, so that all draw alike.
        """
        own = cls.from_entropy() if seed is None else cls.from_seed(seed)
        return cls(share(own.export_key), reproducible=own.reproducible)

    @property
    def reproducible(self) -> bool:
        return self._reproducible

    @property
    def label(self) -> str:
        """Where a run's secrets, noise and coins come from, as every output says it."""
        return "reproducible secrets, not private" if self._reproducible else "operating-system entropy"

    def export_key(self) -> bytes:
        """The key, for the private record that an exact resume needs. It must not leave the private side."""
        return self._key

    def __repr__(self) -> str:
        return f"SecretRandom(key hidden, reproducible={self._reproducible})"

    def __reduce__(self) -> str:
        raise TypeError("a SecretRandom is not pickled: store export_key() in the private record")

    def uniform_index(self, purpose: str, index: int, n: int) -> int:
        """An integer in 0..n-1, exactly uniform by rejection. ValueError unless 1 <= n <= 2^64."""
        if not 1 <= operator.index(n) <= _WORD:
            raise ValueError(f"n must lie in 1..2^64, got {n!r}")
        n = int(n)
        limit = _WORD - _WORD % n
        attempt = 0
        while (word := self._word(purpose, index, attempt)) >= limit:
            attempt += 1
        return word % n

    def coin(self, purpose: str, index: int) -> int:
        """A fair coin, -1 or +1."""
        return 2 * self.uniform_index(purpose, index, 2) - 1

    def bernoulli(self, purpose: str, index: int, probability: float) -> bool:
        """True with exactly this probability: 53 random bits, as an integer, are below probability * 2^53.

        Raises ValueError for a probability that is no multiple of 2^-53 in [0, 1].
        """
        return self.uniform_index(purpose, index, _UNIT) < _numerator(probability)

    def standard_normal(self, purpose: str, index: int) -> float:
        """A N(0, 1) number: the normal quantile of (k + 1/2) 2^-52, k uniform on 52 bits; within +-8.3."""
        k = self._word(purpose, index, 0) >> 12
        return float(ndtri((k + 0.5) * 2.0**-52))

    def _word(self, purpose: str, index: int, attempt: int) -> int:
        index = operator.index(index)
        if not 0 <= index < _WORD:
            raise ValueError(f"index must lie in 0..2^64-1, got {index!r}")
        # Fixed-width numbers before the purpose: no two different triples make the same message.
        message = index.to_bytes(8, "big") + attempt.to_bytes(8, "big") + purpose.encode()
        digest = hashlib.blake2b(message, digest_size=8, key=self._key, person=b"paczo-draw").digest()
        return int.from_bytes(digest, "big")


def _numerator(probability: float) -> int:
    scaled = probability * _UNIT  # exact: a power of two
    if not 0.0 <= probability <= 1.0 or scaled != int(scaled):
        raise ValueError(f"a probability must be a multiple of 2^-53 in [0, 1], got {probability!r}")
    return int(scaled)


class SecretSource(Protocol):
    """What a mechanism draws from: release number `index` needs at most one coin, flip or normal number."""

    def coin(self, index: int) -> int: ...

    def bernoulli(self, index: int, probability: float) -> bool: ...

    def standard_normal(self, index: int) -> float: ...


class _KeyedSource:
    def __init__(self, stream: SecretRandom) -> None:
        self._stream = stream

    def coin(self, index: int) -> int:
        return self._stream.coin("release coin", index)

    def bernoulli(self, index: int, probability: float) -> bool:
        return self._stream.bernoulli("release flip", index, probability)

    def standard_normal(self, index: int) -> float:
        return self._stream.standard_normal("release noise", index)


class _SequentialSource:
    def __init__(self, generator: np.random.Generator) -> None:
        self._generator = generator

    def coin(self, index: int) -> int:
        return 2 * int(self._generator.integers(2)) - 1

    def bernoulli(self, index: int, probability: float) -> bool:
        return int(self._generator.integers(_UNIT)) < _numerator(probability)

    def standard_normal(self, index: int) -> float:
        return float(self._generator.standard_normal())


def secret_source(rng: "np.random.Generator | SecretRandom") -> SecretSource:
    """One interface to both kinds of randomness. Only SecretRandom repeats a release exactly after a crash.

    A numpy Generator is read in sequence, the index is ignored, and its position is its owner's to save.
    Raises TypeError for anything else (no global or default generator is ever used).
    """
    if isinstance(rng, SecretRandom):
        return _KeyedSource(rng)
    if isinstance(rng, np.random.Generator):
        return _SequentialSource(rng)
    raise TypeError(f"rng must be a numpy Generator or a SecretRandom, got {type(rng).__name__}")
