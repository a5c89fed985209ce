"""float32 vectors by their bit patterns, in blocks that fit into a core's cache.

The bits of a positive float32, read as an integer, grow with it: they order magnitudes, count them by size without a
comparison, and have NaN and infinity above all others.
"""

import numpy as np

from fedhpc.util.arrays import F32, I64, U32

MAGNITUDE, SIGN = np.uint32(0x7FFF_FFFF), np.uint32(0x8000_0000)
LARGEST_BITS = 0x7F7F_FFFF
"""Of the largest finite float32."""
LIMIT_BITS = 0x7F00_0000
"""Of 2**127: what may be sent is below it in magnitude, so that a value rounded up by an octave is still finite."""
LOWER = 16
"""How many of the lower bits `histogram` does not look at: bins are exponent and top seven bits of the mantissa."""
BLOCK, LONG_BLOCK = 1 << 16, 1 << 18


def blocks(size: int, length: int = BLOCK) -> list[slice]:
    """Consecutive slices of at most `length` entries that cover `size` of them."""
    return [slice(start, min(start + length, size)) for start in range(0, size, length)]


def magnitude_bits(values: F32) -> U32:
    """Return the bits of |values|, u32[n]."""
    return values.view(np.uint32) & MAGNITUDE


def smallest_bits(values: F32) -> int:
    """Return the bits of the smallest magnitude of values f32[n], n > 0."""
    return min(int(magnitude_bits(values[block]).min()) for block in blocks(values.size))


def first_at_least(values: F32, bits: int) -> int | None:
    """The place of the first value of f32[n] whose magnitude has at least these bits, as that of NaN has; or None."""
    for block in blocks(values.size):
        magnitudes = magnitude_bits(values[block])
        if int(magnitudes.max()) >= bits:
            return int(block.start) + int(np.argmax(magnitudes >= bits))
    return None


def histogram(values: F32) -> I64:
    """Return how many magnitudes there are of each pattern of the upper bits: int64[2**15], ascending."""
    bits, counts = values.view(np.uint32), np.zeros(1 << LOWER, np.int64)
    for block in blocks(values.size, LONG_BLOCK):
        counts += np.bincount(bits[block] >> LOWER, minlength=1 << LOWER)
    positive, negative = np.split(counts, 2)
    return positive + negative
