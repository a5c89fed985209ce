"""The one source of randomness that privacy rests on: an AES-256-CTR keystream, and exactly rounded Gaussian noise.

Poisson sampling, the choice of a unit's images, random flips, Gaussian and Skellam noise all read a `KeyStream`.

Formal guarantee, if AES-256 in counter mode is a pseudorandom generator (NIST SP 800-38A; the key is 256 bits from the
operating system and is never stored or sent):

1. `gaussian.released` and `gaussian_integers` return exactly round(v + s Z), where s Z is Gaussian with standard
   deviation s, and v is the sum in units of a public grid. So a release is post-processing of the exact Gaussian
   mechanism (Dwork and Roth 2014, Appendix A): rounding adds nothing to the sensitivity, and a Gaussian accountant
   holds without a correction. The only values that can be released are integers, the same ones for every v, hence
   low-order bits tell nothing (the attack of Mironov 2012, "On significance of the least significant bits for
   differential privacy", needs values that one input can give and a neighbour cannot).
2. How the rounding is exact. Box and Muller's transform of two real uniforms in [-1, 1), of which the keystream gives
   the first 64 bits: x = v + s sqrt(-2 log |U1|) cos(pi U2), and the same with sin. float64 gives x to within
   `tolerance`. Where no half-integer lies that near, the remaining bits of U1 and U2 and all rounding errors cannot
   change round(x). Where one does (chance about 2^-22 a draw), U1 and U2 get 128 more bits and x is computed to 256
   bits. What is left undecided then has a chance below 2^-90 a draw, so the statistical distance of 2^40 draws is below
   2^-50; delta is charged nothing. `ERROR` assumes that log, sqrt, sin and cos of the platform are good to 4 units in
   the last place. Tests compare every integer with the 256-bit computation.
3. The integers are a function of v and the keystream alone: numpy, torch on a CPU and torch on a GPU give the same.
4. Integers and choices from uniform words are exact but for the resolution of `uniform`, 2^-53 a Poisson draw.

Not covered: timing (Jin et al. 2022, "Are we there yet? Timing and floating-point attacks on differential privacy
systems"). The rare second computation depends on the fraction of v + s Z, which is uniform whatever v is, to within
exp(-2 pi^2 s^2); the time of a training step depends on the number of images that were drawn. Not covered either: the
memory of the process, and the rounding of the sum v itself, which is in `fedhpc.site.per_example.clipped_sum`.
Casacuberta et al. 2022, "Widespread underestimation of sensitivity in differentially private libraries", is about that
sum.

`privacy.noise_seed` replaces the key by a hash of a number that is known, for tests: it voids the whole guarantee.
"""

import hashlib
import math
import os
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

from fedhpc.util.arrays import F64, I64, U64

KEY_BYTES, BLOCK_BYTES, WORD_BYTES = 32, 16, 8
ZEROS = bytes(2**15)
"""What is encrypted at a time: it stays in a core's first cache."""

ERROR = 2.0**-40
"""No Z is further from its true value than this where LEAST_SQUARE <= -2 log |U1| <= LARGEST_SQUARE. |U1| is known to
within 2^-63 + 2^-52 |U1|, which moves the radius r by that over |U1| r, at most 2^-40.9; all other errors together are
below 2^-45."""
LEAST_SQUARE, LARGEST_SQUARE = 2.0**-22, 33.0
SMALLEST_STD, LARGEST_STD = 2.0**4, 2.0**24
MORE_BITS, PRECISION_BITS = 128, 256
RADIUS_UNIT, ANGLE_UNIT = 2.0**-63, math.pi * 2.0**-63
CHUNK_PAIRS = 2**15
"""Pairs of draws whose words lie together in the stream: first all of U1, then all of U2."""
Bytes = bytes


class KeyStream:
    """The keystream of one key, read from its beginning to its end; no byte is given out twice."""

    def __init__(self, key: Bytes) -> None:
        """From a 256-bit key that is used for this stream alone."""
        self._encryptor = Cipher(AES(key), CTR(bytes(BLOCK_BYTES))).encryptor()
        self._more = AES(hashlib.sha256(b"fedhpc more bits" + key).digest())
        self._drawn = 0

    @classmethod
    def fresh(cls) -> "KeyStream":
        """A stream of 256 bits of entropy from the operating system."""
        return cls(os.urandom(KEY_BYTES))

    @classmethod
    def of_seed(cls, noise_seed: int, *where: str | int) -> "KeyStream":
        """A reproducible stream for tests, keyed by SHA-256 of a seed of any size and of the place of use.

        It guarantees nothing: whoever knows or guesses the seed removes the noise.

        >>> a, b = (KeyStream.of_seed(seed, "site1").bytes(8) for seed in (1, 1 + 2**64))
        >>> a == b
        False
        """
        return cls(hashlib.sha256(repr((noise_seed, *where)).encode()).digest())

    def bytes(self, n: int) -> Bytes:
        """Return the next `n` bytes."""
        return self._filled(n).tobytes()

    def words(self, n: int) -> U64:
        """Return the next `n` uniform words, uint64[n]."""
        return self._filled(WORD_BYTES * n).view(np.uint64)

    def uniform(self, n: int) -> F64:
        """Return the next `n` multiples of 2^-53 that are uniform in [0, 1), float64[n]."""
        return (self.words(n) >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def chosen(self, n: int, k: int) -> I64:
        """Of the numbers 0 to n - 1 a uniform subset of `k`, rising, int64[k]."""
        chosen: I64 = np.sort(np.argsort(self.words(n), kind="stable")[:k])
        return chosen

    def draws(self, n: int) -> int:
        """Number the next `n` pairs of draws, counted from the beginning of the stream; return the first number."""
        first, self._drawn = self._drawn, self._drawn + n
        return first

    def more_bits(self, pair: int) -> tuple[int, int]:
        """MORE_BITS more bits of each of the two uniforms of a pair of draws, by the pair's number."""
        nonce = (2 * pair).to_bytes(BLOCK_BYTES, "big")
        blocks = Cipher(self._more, CTR(nonce)).encryptor().update(bytes(2 * BLOCK_BYTES))
        return int.from_bytes(blocks[:BLOCK_BYTES], "big"), int.from_bytes(blocks[BLOCK_BYTES:], "big")

    def fill(self, out: NDArray[np.uint8], zeros: Bytes = ZEROS) -> None:
        """The next bytes, as many as go into `out`, uint8 [n]; `zeros` is what is encrypted at a time."""
        view, zeros = memoryview(out), memoryview(zeros)  # type: ignore[arg-type,assignment]
        for at in range(0, len(out), len(zeros)):
            size = min(len(zeros), len(out) - at)
            self._encryptor.update_into(zeros[:size], view[at : at + size])

    def _filled(self, n: int) -> NDArray[np.uint8]:
        out = np.empty(n, np.uint8)
        self.fill(out)
        return out


def source(noise_seed: int | None, site: str, round: int, purpose: str) -> KeyStream:
    """Return the stream of one site, round and purpose: fresh from the operating system, at every call another one.

    With a `noise_seed` it is a function of the arguments: for tests, and without any guarantee.
    """
    return KeyStream.fresh() if noise_seed is None else KeyStream.of_seed(noise_seed, site, round, purpose)


def gaussian_integers(std: float, size: int, stream: KeyStream) -> I64:
    """round(N(0, std^2)), exactly (see the module), int64[size]; `fedhpc.privacy.gaussian` does the same on tensors.

    Args:
        std: SMALLEST_STD to LARGEST_STD; below, rounding to integers would be coarse beside the noise (public).
        size: how many.
        stream: the source; see `source`.

    >>> gaussian_integers(1000.0, 3, KeyStream.of_seed(7)).tolist()
    [790, 507, -706]
    """
    check_std(std)
    out = np.empty(size + size % 2, np.int64)
    for at in range(0, size, 2 * CHUNK_PAIRS):
        chunk = out[at : at + 2 * CHUNK_PAIRS]
        chunk[:] = _gaussian_chunk(std, len(chunk) // 2, stream)
    return out[:size]


def _gaussian_chunk(std: float, pairs: int, stream: KeyStream) -> I64:
    """2 `pairs` draws: the cosines, then the sines."""
    first, words = stream.draws(pairs), stream.words(2 * pairs).view(np.int64)
    radius, angle = words[:pairs], words[pairs:]
    with np.errstate(divide="ignore", invalid="ignore"):  # of a word of 0, which is computed again
        square = -np.log((radius * RADIUS_UNIT) ** 2)
        r, turn = std * np.sqrt(square), angle * ANGLE_UNIT
        x = np.concatenate([r * np.cos(turn), r * np.sin(turn)])
        nearest = np.rint(x)
        unsure = ~(np.abs(x - nearest) < 0.5 - tolerance(std, 0))
    unsure |= np.tile((square < LEAST_SQUARE) | (square > LARGEST_SQUARE), 2)
    out: I64 = np.where(unsure, 0, nearest).astype(np.int64)
    for index in np.flatnonzero(unsure).tolist():
        part, pair = divmod(index, pairs)
        known = Pair(int(radius[pair]), int(angle[pair]), first + pair)
        out[index] = known.rounded(0.0, std, part, stream)
    return out


def check_std(std: float) -> None:
    """Raises ValueError for a standard deviation that `ERROR` was not computed for."""
    if not SMALLEST_STD <= std <= LARGEST_STD:
        raise ValueError(f"std={std}; allowed: {SMALLEST_STD} to {LARGEST_STD}, in units of the grid")


def tolerance(std: float, largest: float) -> float:
    """Return how near to a half-integer x = v + std Z must not lie to be rounded as it is, where |v| <= `largest`."""
    return std * ERROR + (largest + 10 * std) * 2.0**-51


@dataclass(frozen=True)
class Pair:
    """The two words, int64, of one pair of draws, and the number of the pair in its stream (secret)."""

    radius: int
    angle: int
    number: int

    def rounded(self, value: float, std: float, part: int, stream: KeyStream) -> int:
        """round(value + std Z), computed from MORE_BITS more bits of each uniform.

        Args:
            value: v, in units of the grid (private).
            std: s, in units of the grid.
            part: 0 for the pair's cosine, 1 for its sine.
            stream: which the words are from.
        """
        from mpmath import mp, mpf

        words = (self.radius, self.angle)
        with mp.workprec(PRECISION_BITS):
            radius, angle = (
                (mpf((word << MORE_BITS) + more) + 0.5) / mpf(2) ** (MORE_BITS + 63)
                for word, more in zip(words, stream.more_bits(self.number), strict=True)
            )
            turn = (mp.cos, mp.sin)[part](mp.pi * angle)
            return int(mp.nint(mpf(value) + mpf(std) * mp.sqrt(-2 * mp.log(abs(radius))) * turn))
