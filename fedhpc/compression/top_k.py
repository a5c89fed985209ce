"""The k entries of largest magnitude, exactly, by histograms of float bits instead of a sort.

A sample tells what magnitude a little more than k entries reach. These are gathered, and among them two histograms, of
the upper and of the lower bits, find the k-th largest to the last bit. A sample that misjudges only costs time.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedhpc.compression.float_bits import LIMIT_BITS, LOWER, blocks, histogram, magnitude_bits
from fedhpc.compression.update import SparseVector
from fedhpc.errors import PayloadError
from fedhpc.util.arrays import F32, I64


class Layer(NamedTuple):
    """Name and number of entries of one parameter tensor (public)."""

    name: str
    size: int


Layers = Sequence[Layer]
"""Every parameter tensor, in the order in which they make up the vector."""

SAMPLE = 1 << 18
DEVIATIONS = 5
"""How many standard deviations of the sample's count the floor is made lower, so that k entries do reach it."""
ANY = 1
"""The bits of the smallest magnitude above zero."""


class Threshold(NamedTuple):
    """The bits of the k-th largest magnitude; how many entries of this very magnitude are, and are not, among the k."""

    bits: int
    taken: int
    left: int


def top_k(vector: F32, k: int, layers: Layers = ()) -> SparseVector:
    """Return the k entries of largest magnitude; of equal ones those with the lowest index, so that it is reproducible.

    Zeros are never chosen, they say nothing: where fewer than k entries are not zero, it is only those.

    Args:
        vector: f32[d].
        k: at least 1.
        layers: to name what is refused.

    Raises:
        PayloadError: where an entry is NaN, infinite or not below 2**127 in magnitude; names the layer.

    >>> top_k(np.array([1, -3, 3, 0, 3], np.float32), 2).indices.tolist()
    [1, 2]
    """
    candidates = _reaching(vector, _floor(vector, k), k)
    counts = histogram(candidates.values)
    if counts[LIMIT_BITS >> LOWER :].any():
        raise PayloadError(str(refusal(vector, layers)), code="payload.not-finite")
    if candidates.indices.size <= k:
        return candidates
    return _cut_down(candidates, k, _kth_largest(candidates.values, counts, k))


def _floor(vector: F32, k: int) -> int:
    """Bits of a magnitude that, most probably, k entries reach and few more."""
    expected = SAMPLE * k / vector.size if vector.size > SAMPLE else SAMPLE
    rank = math.ceil(expected + DEVIATIONS * math.sqrt(expected))
    if rank > SAMPLE:
        return ANY
    sample = vector[np.random.default_rng(0).integers(vector.size, size=SAMPLE)]
    return max(_bin_of_rank(histogram(sample), rank)[0] << LOWER, ANY)


def _reaching(vector: F32, floor: int, k: int) -> SparseVector:
    """All entries with at least these bits; all that are not zero, where they would be fewer than k."""
    count = sum(int(np.count_nonzero(magnitude_bits(vector[block]) >= floor)) for block in blocks(vector.size))
    if count < k and floor > ANY:
        return _reaching(vector, ANY, k)
    indices, values, done = np.empty(count, np.int64), np.empty(count, np.float32), 0
    for block in blocks(vector.size):
        chosen = np.flatnonzero(magnitude_bits(vector[block]) >= floor)
        end = done + chosen.size
        np.add(chosen, block.start, out=indices[done:end])
        np.take(vector[block], chosen, out=values[done:end], mode="clip")
        done = end
    return SparseVector(vector.size, indices, values)


def _kth_largest(values: F32, counts: I64, k: int) -> Threshold:
    """First to the upper bits by `histogram`'s counts, then within their bin by the lower ones."""
    upper, rank = _bin_of_rank(counts, k)
    inside = []
    for block in blocks(values.size):
        above = magnitude_bits(values[block]) - np.uint32(upper << LOWER)
        inside.append(above[above < 1 << LOWER].astype(np.uint16))
    within = np.bincount(np.concatenate(inside), minlength=1 << LOWER)
    lower, taken = _bin_of_rank(within, rank)
    return Threshold(upper << LOWER | lower, taken, int(within[lower]) - taken)


def _bin_of_rank(counts: I64, rank: int) -> tuple[int, int]:
    """(the bin with the entry of this rank, counted from the largest; the entry's rank inside the bin).

    >>> _bin_of_rank(np.array([5, 2, 1]), 3)
    (1, 2)
    """
    at_least = np.cumsum(counts[::-1])[::-1]
    found = int(np.flatnonzero(at_least >= rank)[-1])
    return found, rank - int(at_least[found] - counts[found])


def _cut_down(candidates: SparseVector, k: int, threshold: Threshold) -> SparseVector:
    """The entries above the threshold and the first at it, in the candidates' own memory: each block moves forward."""
    indices, values = candidates.indices, candidates.values
    done, ties = 0, threshold.taken
    for block in blocks(values.size):
        bits = magnitude_bits(values[block])
        kept = bits >= threshold.bits
        if threshold.left:
            tied = bits == threshold.bits
            kept &= ~tied | (np.cumsum(tied) <= ties)
            ties = max(ties - int(np.count_nonzero(tied)), 0)
        end = done + int(np.count_nonzero(kept))
        indices[done:end], values[done:end] = indices[block][kept], values[block][kept]
        done = end
    return SparseVector(candidates.size, indices[:k], values[:k])


def refusal(vector: F32, layers: Layers, largest: float | None = None) -> str | None:
    """Return what is wrong with the first entry that may not be sent, and in which layer; None where all may be.

    Args:
        vector: f32[d].
        layers: the split of the vector, to name the entry.
        largest: the largest magnitude allowed, not below 0; None: any below 2**127.
    """
    limit_bits = LIMIT_BITS if largest is None else int(np.float32(largest).view(np.uint32)) + 1
    allowed = "2**127" if largest is None else f"{largest:g}"
    for block in blocks(vector.size):
        refused = np.flatnonzero(magnitude_bits(vector[block]) >= limit_bits)
        if refused.size:
            index = block.start + int(refused[0])
            said = f"{entry_name(index, layers)} is {vector[index]}"
            return f"{said}; allowed are finite values below {allowed} in magnitude"
    return None


def entry_name(index: int, layers: Layers) -> str:
    """Return the entry, by its layer where the layers are known.

    >>> entry_name(5, [Layer("conv.weight", 4), Layer("conv.bias", 2)]), entry_name(5, [])
    ('entry 1 of layer conv.bias', 'entry 5')
    """
    for layer in layers:
        if index < layer.size:
            return f"entry {index} of layer {layer.name}"
        index -= layer.size
    return f"entry {index}"
