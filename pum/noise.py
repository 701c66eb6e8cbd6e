"""Secrets of the server: zero-sum noise, scalings alpha, jitter, and the generators that all come from.

Source: run guide of arXiv 2602.23798. Base noise of m copies: z_k ~ N(0, std^2) independent and
e_k = sqrt(m/(m-1)) (z_k - mean z), so sum_k e_k = 0 and every e_k has variance std^2.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence

import torch
from torch import Tensor

# Layout of the state that torch's CPU generator gives out: 24 bytes of header, 624 words of 8 bytes each, of
# which the Mersenne Twister uses 32 bits.
_STATE_WORDS = 624
_STATE_START = 24
KEY_BYTES = 32


class SecretSource:
    """Gives out generators for the server's secrets, one for each purpose; never the global ones.

    Noise, disguises and alphas are pure functions of one secret, so that none of them has to be stored: a key of
    32 bytes from the operating system, or a seed. SHAKE-256 of secret and purpose fills each generator's whole
    state; who learns one state learns neither the key nor another. `manual_seed` would not do: torch's CPU
    generator keeps 32 bits of a seed, and 2^32 states can be tried one by one against a published copy. The bounds
    take the numbers as truly random: the Mersenne Twister is no cryptographic generator, and floating-point
    Gaussians are not exact Gaussians (Mironov 2012).

    Args:
        secret: the key; None draws one. An integer is a seed, for experiments: such a run is not private.
    """

    def __init__(self, secret: bytes | int | None = None) -> None:
        self._secret = os.urandom(KEY_BYTES) if secret is None else secret

    @property
    def key(self) -> bytes | None:
        """The key, which has to stay secret; None where there is a seed."""
        return self._secret if isinstance(self._secret, bytes) else None

    @property
    def seed(self) -> int | None:
        return self._secret if isinstance(self._secret, int) else None

    @property
    def label(self) -> str:
        """Where the secrets come from, as every output says it."""
        return "reproducible secrets, not private" if self.reproducible else "operating-system entropy"

    @property
    def reproducible(self) -> bool:
        return self.seed is not None

    def generator(self, *purpose: object) -> torch.Generator:
        """A CPU generator of its own, a function of the secret and the purpose."""
        return _generator_of(repr((self._secret, *purpose)).encode())

    def name(self, *purpose: object) -> str:
        """128 bits in hexadecimal that say nothing of the secret: a name for what may be published."""
        return hashlib.shake_256(repr((self._secret, "name", *purpose)).encode()).hexdigest(16)


def _generator_of(key: bytes) -> torch.Generator:
    """A CPU generator whose whole state is a function of `key`."""
    generator = torch.Generator()
    words = hashlib.shake_256(key).digest(4 * _STATE_WORDS)
    state = generator.manual_seed(0).get_state()
    fresh = torch.frombuffer(bytearray(words), dtype=torch.int32).to(torch.int64) & 0xFFFFFFFF
    state[_STATE_START : _STATE_START + 8 * _STATE_WORDS] = fresh.view(torch.uint8)
    return generator.set_state(state)


def draw_alphas(copies: int, alpha_min: float, alpha_max: float, generator: torch.Generator) -> list[float]:
    """m secret scalings alpha_k ~ U[alpha_min, alpha_max]; ValueError unless 1 <= alpha_min <= alpha_max."""
    if not 1.0 <= alpha_min <= alpha_max < math.inf:
        raise ValueError(f"1 <= alpha_min <= alpha_max is needed, got {alpha_min!r} and {alpha_max!r}")
    uniform = torch.rand(copies, generator=generator, dtype=torch.float64)
    return [alpha_min + (alpha_max - alpha_min) * float(u) for u in uniform]


def zero_sum_noise(shape: Sequence[int], copies: int, std: float, generator: torch.Generator) -> Tensor:
    """Base noise e_1..e_m of one parameter: float32 (copies, *shape), zero sum over the copies.

    std: of every entry, in units of the weights. Raises ValueError as `ZeroSumStream`.
    """
    stream = ZeroSumStream(copies)
    return torch.stack([stream.draw("", shape, std, generator) for _ in range(copies)])


class ZeroSumStream:
    """The same noise one copy at a time, with nothing of a parameter's size in memory between two copies.

    Given e_1..e_{k-1}, the rest is exchangeable with a known sum: with P their sum and n = m - k + 1,
    e_k ~ N(-P/n, std^2 m/(m-1) (n-1)/n). The last copy's is -P: the sum is zero by construction. That is the
    law of sqrt(m/(m-1)) (z_k - mean z) without drawing the mean beforehand. P is made anew from a key of 256 bits
    a copy and parameter, by m (m - 1)/2 draws in the place of m - 1: holding it would be one more model while a
    copy is trained.

    Args:
        copies: m. One copy has no zero-sum noise: m = 1 with std > 0 raises ValueError, for it would publish
            the weights as they are.
        device: where the noise is wanted.
    """

    def __init__(self, copies: int, device: torch.device | str = "cpu") -> None:
        if copies < 1:
            raise ValueError(f"copies must be at least 1, got {copies}")
        self._copies = copies
        self._device = torch.device(device)
        self._drawn: dict[str, list[tuple[bytes, float]]] = {}  # key and std, by copy

    def draw(self, name: str, shape: Sequence[int], std: float, generator: torch.Generator) -> Tensor:
        """The next copy's noise for the parameter `name`: float32, `shape`, on the stream's device.

        Raises ValueError as `skip`.
        """
        self.skip(name, std, generator)
        drawn, total = self._drawn[name], None
        for done, (key, before) in enumerate(drawn[:-1]):
            again = self._noise(shape, before, self._copies - done, key, total)
            total = again.clone() if total is None else total.add_(again)
        if len(drawn) == self._copies:
            return torch.zeros(tuple(shape), device=self._device) if total is None else total.neg_()
        key, std = drawn[-1]
        return self._noise(shape, std, self._copies - len(drawn) + 1, key, total)

    def skip(self, name: str, std: float, generator: torch.Generator) -> None:
        """Pass over the next copy's noise for the parameter `name`: later draws are those that would follow it.

        Raises ValueError for a std that is negative, NaN or infinite, and after the m-th draw of a name.
        """
        if not 0.0 <= std < math.inf:
            raise ValueError(f"the noise's standard deviation must be finite and >= 0, got {std!r}")
        if self._copies == 1 and std > 0.0:
            raise ValueError("one copy has no zero-sum noise: use at least two copies, or sigma 0 and jitter")
        drawn = self._drawn.setdefault(name, [])
        if len(drawn) == self._copies:
            raise ValueError(f"all {self._copies} draws of '{name}' are made")
        key = torch.randint(256, (32,), generator=generator, dtype=torch.uint8).numpy().tobytes()
        drawn.append((key, std))

    def _noise(self, shape: Sequence[int], std: float, left: int, key: bytes, total: Tensor | None) -> Tensor:
        if std == 0.0:
            return torch.zeros(tuple(shape), device=self._device)
        spread = std * math.sqrt(self._copies / (self._copies - 1) * (left - 1) / left)
        noise = torch.randn(tuple(shape), generator=_generator_of(key)).mul_(spread).to(self._device)
        return noise if total is None else noise.sub_(total, alpha=1.0 / left)


def jitter_noise(shape: Sequence[int], jitter: float, generator: torch.Generator) -> Tensor:
    """xi_k ~ N(0, jitter^2), independent for every copy and entry: float32 on the CPU."""
    return torch.randn(tuple(shape), generator=generator).mul_(jitter)
