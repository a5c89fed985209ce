"""Gaussian noise on a vector, rounded exactly to a public grid: `fedhpc.privacy.noise` on torch tensors, CPU or CUDA.

The keystream is made on the CPU and transformed in float64 on the vector's device. What comes out is a function of the
vector and the keystream alone, so every device gives the same.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fedhpc.privacy.noise import CHUNK_PAIRS, LARGEST_SQUARE, LEAST_SQUARE, KeyStream, Pair, tolerance

GRID_LOG2 = 16
"""A standard deviation of noise is 2^16 to 2^17 units of its grid."""
CUDA_CHUNKS = 64


def grid_of(std: float) -> float:
    """The spacing of all values that a release with noise of this standard deviation can have, a power of two (public).

    >>> grid_of(1.0) == grid_of(1.99) == 2.0**-16
    True
    """
    return 2.0 ** (math.floor(math.log2(std)) - GRID_LOG2)


def noisy_(total: Tensor, std: float, largest: float, stream: KeyStream) -> Tensor:
    """Add N(0, std^2) to each entry and round it exactly to the nearest multiple of `grid_of(std)`, in place.

    Args:
        total: float64 [d], contiguous, finite, on any device (private); what is returned is no longer private.
        std: of the noise; 0 leaves `total` as it is, for tests (public).
        largest: a bound on the entries; it is used for rounding errors alone, and a larger one costs time only.
        stream: the source of the noise.
    """
    if total.dtype != torch.float64 or not total.is_contiguous():
        raise ValueError(f"total: {total.dtype}, contiguous: {total.is_contiguous()}; give contiguous float64")
    if std == 0:
        return total
    chunks = CUDA_CHUNKS if total.is_cuda else torch.get_num_threads()
    noise = _Noise(std, largest, stream)
    whole = len(total) - len(total) % (2 * CHUNK_PAIRS)
    for at in range(0, whole, 2 * CHUNK_PAIRS * chunks):
        noise.add_(total[at : min(at + 2 * CHUNK_PAIRS * chunks, whole)].view(-1, 2, CHUNK_PAIRS))
    rest = total[whole:]
    if len(rest):
        even = torch.cat([rest, rest.new_zeros(len(rest) % 2)])
        noise.add_(even.view(1, 2, -1))
        rest.copy_(even[: len(rest)])
    return total


@dataclass(frozen=True)
class _Noise:
    """Adds noise of one standard deviation, some chunks of the stream at a time."""

    std: float
    largest: float
    stream: KeyStream

    def add_(self, value: Tensor) -> None:
        """To float64 [chunks, 2, pairs]: of each chunk the first half gets the cosines, the second the sines."""
        words = torch.from_numpy(self.stream.words(value.numel()).view("int64")).view_as(value).to(value.device)
        first = self.stream.draws(value.numel() // 2)
        radius, angle = words[:, 0], words[:, 1]
        square = (radius * _like(value, 2.0**-63)).square_().log_().neg_()
        r, turn = (square * self.std**2).sqrt_(), angle * _like(value, math.pi * 2.0**-63)
        x = torch.stack([torch.cos(turn), torch.sin(turn)], dim=1).mul_(r[:, None]).add_(value)
        # Near 1.5 2^52 grid, the spacing of float64 is the grid, and addition rounds to it exactly.
        far = 1.5 * 2.0**52 * grid_of(self.std)
        nearest = (x + far).sub_(far)
        distance = x.sub_(nearest).abs_()
        limit = grid_of(self.std) / 2 - tolerance(self.std, self.largest)
        sure = distance.amax() < limit and square.amin() >= LEAST_SQUARE and square.amax() <= LARGEST_SQUARE
        if not sure:
            outside = (square < LEAST_SQUARE) | (square > LARGEST_SQUARE)
            unsure = ~(distance < limit) | outside[:, None]
            for chunk, part, pair in unsure.nonzero().tolist():
                known = Pair(int(radius[chunk, pair]), int(angle[chunk, pair]), first + chunk * value.shape[2] + pair)
                scaled = float(value[chunk, part, pair]) / grid_of(self.std), self.std / grid_of(self.std)
                nearest[chunk, part, pair] = known.rounded(*scaled, part, self.stream) * grid_of(self.std)
        value.copy_(nearest)


def _like(value: Tensor, number: float) -> Tensor:
    return torch.tensor(number, dtype=torch.float64, device=value.device)
