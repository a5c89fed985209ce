"""Gaussian noise on a vector, rounded exactly to a public grid: `fedhpc.privacy.noise` on torch tensors, CPU or CUDA.

The keystream is made on the CPU and transformed in float64 on the vector's device. What comes out is a function of the
vector and the keystream alone, so every device gives the same.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedhpc.privacy.noise import (
    ANGLE_UNIT,
    CHUNK_PAIRS,
    LARGEST_SQUARE,
    LEAST_SQUARE,
    RADIUS_UNIT,
    WORD_BYTES,
    KeyStream,
    Pair,
    tolerance,
)

GRID_LOG2 = 16
"""A standard deviation of noise is 2^16 to 2^17 units of its grid."""
CHUNK = 2 * CHUNK_PAIRS
CUDA_CHUNKS = 64
LARGEST_UNITS = 2.0**45


def grid_of(std: float) -> float:
    """The spacing of all values that a release with noise of this standard deviation can have, a power of two (public).

    >>> grid_of(1.0) == grid_of(1.99) == 2.0**-16
    True
    """
    return 2.0 ** (math.floor(math.log2(std)) - GRID_LOG2)


@dataclass(frozen=True)
class Noise:
    """What is added to every entry of a vector.

    Attributes:
        std: standard deviation; 0 adds and rounds nothing, for tests (public).
        largest: bounds the entries; of use for rounding errors alone: a larger one costs time, no accuracy.
        stream: where it is drawn from.
        ahead: the bytes of the stream that the vector takes, if they were read already; see `keystream_ahead`.
    """

    std: float
    largest: float
    stream: KeyStream
    ahead: Tensor | None = None


def released(total: Tensor, noise: Noise, divisor: float = 1.0, out: Tensor | None = None) -> Tensor:
    """Return total + N(0, std^2 I), rounded exactly to the nearest multiples of `grid_of(std)`, over `divisor`.

    Args:
        total: float32 or float64 [d], contiguous, finite, on any device (private).
        noise: what to add.
        divisor: of what is private already, as is the conversion to the type of `out` (public).
        out: [d], where to write the result, `total` itself for one; a new float64 where there is none.

    Returns:
        `out`: private by the Gaussian mechanism.

    Raises:
        ValueError: another type or layout, or a `noise.largest` whose sums float64 cannot round exactly.
    """
    if total.dtype not in (torch.float32, torch.float64) or not total.is_contiguous():
        raise ValueError(f"total: {total.dtype}, contiguous: {total.is_contiguous()}; give contiguous floats")
    out = torch.empty_like(total, dtype=torch.float64) if out is None else out
    if noise.std == 0:
        return out.copy_(total.double() / divisor)
    if not noise.largest <= LARGEST_UNITS * grid_of(noise.std):
        raise ValueError(f"largest={noise.largest}, std={noise.std}: float64 cannot round such a sum exactly")
    step = CHUNK * (CUDA_CHUNKS if total.is_cuda else torch.get_num_threads())
    whole = len(total) - len(total) % CHUNK
    for first, last in ((0, whole - whole % step), (whole - whole % step, whole)):
        if first < last:
            block = _Block(min(step, last - first) // CHUNK, CHUNK_PAIRS, total.device)
            for at in range(first, last, step):
                part = slice(at, min(at + step, last))
                out[part].copy_(block.noisy(total[part], noise, at)).mul_(1 / divisor)
    if whole < len(total):
        rest = torch.cat([total[whole:], total.new_zeros(len(total) % 2)])
        block = _Block(1, len(rest) // 2, total.device)
        out[whole:].copy_(block.noisy(rest, noise, whole)[: len(total) - whole]).mul_(1 / divisor)
    return out


def _within(values: Tensor, low: float, high: float) -> bool:
    """Return whether all lie between; none is NaN. numpy is the quickest at it on a CPU."""
    if values.is_cpu:
        array = values.numpy()
        return bool(low < array.min() and array.max() < high)
    least, largest = torch.aminmax(values)
    return low < float(least) and float(largest) < high


class _Block:
    """Memory for some chunks of a vector, used again and again: fresh pages would cost more than the arithmetic.

    Of each chunk [2, pairs] the first half gets the cosines, the second half the sines.
    """

    def __init__(self, chunks: int, pairs: int, device: torch.device) -> None:
        self._shape = (chunks, 2, pairs)
        self._size_bytes = WORD_BYTES * 2 * chunks * pairs
        self._keystream = np.empty(self._size_bytes, np.uint8)
        self._own = torch.from_numpy(self._keystream.view(np.int64)).view(self._shape)
        self._words = self._own
        self._square, self._angle = (torch.empty(chunks, pairs, dtype=torch.float64, device=device) for _ in range(2))
        self._values, self._x, self._nearest = (
            torch.empty(self._shape, dtype=torch.float64, device=device) for _ in range(3)
        )
        self._radius, self._flat = self._square[:, None], self._nearest.view(-1)
        self._cosines, self._sines = self._x[:, 0], self._x[:, 1]

    def noisy(self, values: Tensor, noise: Noise, first: int) -> Tensor:
        """The rounded sums of `values` [entries of the block] and noise, in memory that the next call overwrites.

        Args:
            values: a part of the vector (private).
            noise: what to add.
            first: where the part begins in the vector.
        """
        x, nearest, square = self._x, self._nearest, self._square
        values = values.view(self._shape)
        if values.dtype != torch.float64:
            values = self._values.copy_(values)
        pair = noise.stream.draws(square.numel())
        self._read(noise, first)
        words = self._words if square.is_cpu else self._words.to(square.device, non_blocking=True)
        square.copy_(words[:, 0]).mul_(RADIUS_UNIT).square_().log_()
        sure = _within(square, -LARGEST_SQUARE, -LEAST_SQUARE)
        square.mul_(-(noise.std**2)).sqrt_()
        self._angle.copy_(words[:, 1]).mul_(ANGLE_UNIT)
        torch.cos(self._angle, out=self._cosines)
        torch.sin(self._angle, out=self._sines)
        torch.addcmul(values, x, self._radius, out=x)
        # Near 1.5 2^52 grid, the spacing of float64 is the grid, and addition rounds to it exactly.
        grid = grid_of(noise.std)
        torch.add(x, 1.5 * 2.0**52 * grid, out=nearest).sub_(1.5 * 2.0**52 * grid)
        x.sub_(nearest)
        limit = grid / 2 - tolerance(noise.std, noise.largest)
        if not (sure and _within(x, -limit, limit)):
            self._round_again(values, noise, pair, limit)
        return self._flat

    def _read(self, noise: Noise, first: int) -> None:
        """Let `_words` be the next words of the stream."""
        if noise.ahead is None:
            noise.stream.fill(self._keystream)
            self._words = self._own
        else:
            own = noise.ahead[WORD_BYTES * first : WORD_BYTES * first + self._size_bytes]
            self._words = own.view(torch.int64).view(self._shape)

    def _round_again(self, values: Tensor, noise: Noise, pair: int, limit: float) -> None:
        """Replace what float64 does not tell; `_x` holds the distances to `_nearest`, `pair` numbers the first pair."""
        square, grid = (self._radius / noise.std).square_(), grid_of(noise.std)
        sure = (self._x.abs() < limit) & (square > 1.01 * LEAST_SQUARE) & (square < 0.99 * LARGEST_SQUARE)
        for at in (~sure).nonzero().tolist():
            chunk, part, place = at
            radius, angle = self._words[chunk, :, place].tolist()
            known = Pair(radius, angle, pair + chunk * self._shape[2] + place)
            units = known.rounded(float(values[tuple(at)]) / grid, noise.std / grid, part, noise.stream)
            self._nearest[tuple(at)] = units * grid
