"""Values on a public grid of float32 bit patterns: one scheme from lossless to 3 bits, the same on every machine.

The bits of a positive float32, read as an integer, are a piecewise linear log2 of it: 2**23 more of them are a factor
of two, an octave. Magnitudes whose bits are `lowest + level * step` are thus log-scaled, and a value is made from its
level by integers alone: no exp or log, whose last bit differs from one machine to another.

    step 1             every float32: lossless
    step 2**13         eleven significant bits, as fp16 has, without its limits of range
    wider, to 2**23    sign + 2**(value_bits - 1) levels from the smallest value to the largest, but for outliers

Outliers are the largest 1 in 1000, and of a selection that reaches down to values that hardly count, as at density 1,
those values. They get further levels of the same step, which cost little, since the levels are entropy-coded.

Guarantee. A value c is sent as a neighbour s of it on the grid, and c - s is a float32, exactly. So the residual c - s
has no rounding error, and s + (c - s) == c, bit for bit, at any number of bits and with either rounding.

    Proof. Let a <= b be the magnitudes of c and s in either order; their bits differ by at most step <= 2**23. If the
    bits of b are below 2**24, then b < 2**-125, where all float32 are multiples of 2**-149, and so is b - a <= b: a
    float32. Else the bits of a are at least 2**23, a is a normal number, and b <= 2 a, since 2**23 more bits double a
    normal number; then b - a is a float32 by Sterbenz's lemma (Sterbenz 1974, Floating-Point Computation, Theorem
    4.3.1). It takes gradual underflow, as IEEE 754 has it: not torch.set_flush_denormal(True).

At 3 bits four levels may be too few for the range at hand. The step then stays at one octave and there are more levels:
every normal number arrives within a factor of two of itself, and by nearest rounding within a third.
"""

from dataclasses import dataclass

import numpy as np

from fedhpc.compression.float_bits import LOWER, SIGN, blocks, histogram, magnitude_bits, smallest_bits
from fedhpc.util.arrays import F32, I64, U32

OCTAVE = 1 << 23
FP16_STEP = 1 << 13
OUTLIERS = 1 / 1000
"""The share of the values, the largest, that the levels need not reach: they get further levels of the same step."""
STEP_ERROR = 0.045
"""Mean squared relative error of nearest rounding with a step of one octave: 1/12 of the mean of 1/m**2, where the
mantissa m is log-uniform in [1, 2) and a step of t octaves is t/m of the value. It grows with t**2."""


@dataclass(frozen=True)
class QuantizationGrid:
    """The magnitudes whose float32 bits are lowest + level * step, for level = 0, 1, 2 ... (public).

    >>> QuantizationGrid(lowest=0x3F800000, step=2**22).magnitudes(np.arange(4, dtype=np.uint32)).tolist()
    [1.0, 1.5, 2.0, 3.0]
    """

    lowest: int
    step: int

    def levels(self, bits: U32) -> U32:
        """Return the level at or below each of the bits of magnitudes, u32[n]; all at least `lowest`."""
        return (bits - np.uint32(self.lowest)) // np.uint32(self.step)

    def magnitudes(self, levels: U32) -> F32:
        """Return the magnitude of each level, f32[n]."""
        return (levels * np.uint32(self.step) + np.uint32(self.lowest)).view(np.float32)


EXACT = QuantizationGrid(1, 1)
"""Every float32 but zero."""


def grid_for(values: F32, value_bits: int) -> QuantizationGrid:
    """The grid for values f32[k] that may be sent and are not zero: it starts at the smallest magnitude, or just below.

    Args:
        values: only their magnitudes matter.
        value_bits: 32, 16, or 8 to 3.
    """
    if value_bits == 32 or not values.size:
        return EXACT
    smallest = smallest_bits(values)
    if value_bits == 16:
        return QuantizationGrid(smallest // FP16_STEP * FP16_STEP or smallest, FP16_STEP)
    return log_grid(histogram(values), smallest, value_bits)


def log_grid(counts: I64, smallest: int, value_bits: int) -> QuantizationGrid:
    """Return the grid of 8 to 3 bits for values of which the histogram and the bits of the smallest are known."""
    intervals = 2 ** (value_bits - 1) - 1
    top = int(np.searchsorted(np.cumsum(counts), counts.sum() * (1 - OUTLIERS))) + 1
    first = max(_first_that_counts(counts[:top], intervals) << LOWER, smallest)
    return QuantizationGrid(smallest, min(max(-(-((top << LOWER) - first) // intervals), 1), OCTAVE))


def _first_that_counts(counts: I64, intervals: int) -> int:
    """Return the bin of `histogram` from which `intervals` steps to the top make the squared error least.

    More reach downwards takes wider steps for all; without it, what lies below the bin is taken for lost here.
    """
    bins = np.arange(counts.size, dtype=np.uint32)
    energy = counts * np.square((bins << LOWER | 1 << LOWER - 1).view(np.float32).astype(np.float64))
    lost = np.cumsum(energy) - energy
    octaves = np.minimum((counts.size - bins) * 2.0**LOWER / (intervals * OCTAVE), 1.0)
    return int(np.argmin(lost / energy.sum() + STEP_ERROR * octaves**2))


def rounded(values: F32, grid: QuantizationGrid, draws: np.random.Generator | None) -> F32:
    """Each value as one of its two neighbours on the grid, f32[k].

    Args:
        values: f32[k], magnitudes at or above the grid's lowest and below 2**127.
        grid: as of `grid_for`.
        draws: None: to the nearer one, and to the smaller where both are equally near. A generator: to the larger one
            with the chance that makes the expected result the value, to one part in 2**52 of a step.
    """
    if grid == EXACT:
        return values
    out = np.empty_like(values)
    for block in blocks(values.size):
        bits = magnitude_bits(values[block])
        below = grid.levels(bits) * np.uint32(grid.step) + np.uint32(grid.lowest)
        value, low, high = (b.view(np.float32) for b in (bits, below, below + np.uint32(grid.step)))
        # All three differences are exact, for the reason that the guarantee is true.
        rises = value - low > (high - value if draws is None else draws.random(bits.size) * (high - low))
        below += rises * np.uint32(grid.step)
        out[block] = (below | values[block].view(np.uint32) & SIGN).view(np.float32)
    return out
