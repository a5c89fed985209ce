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
    """

    std: float
    largest: float
    stream: KeyStream


def released(total: Tensor, noise: Noise, divisor: float = 1.0, out: Tensor | None = None) -> Tensor:
    """(total + N(0, std^2) I), rounded exactly to the nearest multiples of `grid_of(std)`, then divided by `divisor`.

    Args:
        total: float64 [d], contiguous, finite, on any device (private).
        noise: what to add.
        divisor: of what is private already, as is the conversion to the type of `out` (public).
        out: [d], where to write the result; a new float64 where there is none.
    """
    if total.dtype != torch.float64 or not total.is_contiguous():
        raise ValueError(f"total: {total.dtype}, contiguous: {total.is_contiguous()}; give contiguous float64")
    out = torch.empty_like(total) if out is None else out
    if noise.std == 0:
        return out.copy_(total / divisor)
    chunks = CUDA_CHUNKS if total.is_cuda else torch.get_num_threads()
    whole = len(total) - len(total) % CHUNK
    workspace = _Workspace(total, min(chunks * CHUNK, len(total) + len(total) % 2))
    for at in range(0, whole, chunks * CHUNK):
        part = slice(at, min(at + chunks * CHUNK, whole))
        noisy = workspace.noisy(total[part].view(-1, 2, CHUNK_PAIRS), noise)
        out[part].copy_(noisy.view(-1).mul_(1 / divisor))
    if whole < len(total):
        rest = total[whole:]
        even = torch.cat([rest, rest.new_zeros(len(rest) % 2)]).view(1, 2, -1)
        out[whole:].copy_(workspace.noisy(even, noise).view(-1)[: len(rest)].mul_(1 / divisor))
    return out


class _Workspace:
    """Memory for one block of chunks, used again for each: fresh pages would cost more than what is computed there."""

    def __init__(self, total: Tensor, size: int) -> None:
        self._bytes = np.empty(WORD_BYTES * size, np.uint8)
        self._words = torch.from_numpy(self._bytes.view(np.int64))
        self._square, self._angle = total.new_empty(size // 2), total.new_empty(size // 2)
        self._x, self._nearest = total.new_empty(size), total.new_empty(size)

    def noisy(self, value: Tensor, noise: Noise) -> Tensor:
        """The rounded sums of `value` [chunks, 2, pairs] and noise: the first halves get cosines, the second sines."""
        chunks, _, pairs = value.shape
        size, std, grid = value.numel(), noise.std, grid_of(noise.std)
        first = noise.stream.draws(chunks * pairs)
        noise.stream.fill(self._bytes[: WORD_BYTES * size])
        words = self._words[:size].view(value.shape).to(value.device)
        square, angle = (memory[: size // 2].view(chunks, pairs) for memory in (self._square, self._angle))
        x, nearest = (memory[:size].view(value.shape) for memory in (self._x, self._nearest))
        square.copy_(words[:, 0]).mul_(RADIUS_UNIT).square_().log_()
        inside = float(square.amin()) >= -LARGEST_SQUARE and float(square.amax()) <= -LEAST_SQUARE
        radius = square.mul_(-(std**2)).sqrt_()[:, None]
        angle.copy_(words[:, 1]).mul_(ANGLE_UNIT)
        torch.cos(angle, out=x[:, 0])
        torch.sin(angle, out=x[:, 1])
        torch.addcmul(value, x, radius, out=x)
        # Near 1.5 2^52 grid, the spacing of float64 is the grid, and addition rounds to it exactly.
        far = 1.5 * 2.0**52 * grid
        torch.add(x, far, out=nearest).sub_(far)
        distance = x.sub_(nearest)
        limit = grid / 2 - tolerance(std, noise.largest)
        if not (inside and float(distance.amin()) > -limit and float(distance.amax()) < limit):
            squares = (radius / std).square()
            sure = (distance.abs() < limit) & (squares > LEAST_SQUARE * 1.01) & (squares < LARGEST_SQUARE * 0.99)
            for chunk, part, pair in (~sure).nonzero().tolist():
                known = Pair(int(words[chunk, 0, pair]), int(words[chunk, 1, pair]), first + chunk * pairs + pair)
                scaled = float(value[chunk, part, pair]) / grid, std / grid
                nearest[chunk, part, pair] = known.rounded(*scaled, part, noise.stream) * grid
        return nearest
