"""How long an update can be, by its public noise and the bound on its signal."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedhpc.aggregation.base import UpdateScale
from fedhpc.util.arrays import F32

NORM_ALPHA = 1e-4
"""The chance that the noise of an honest update is longer than is allowed, in one round."""


@dataclass(frozen=True)
class Lengths:
    """How long an honest update can be, and how long it is as a rule, which is not more."""

    longest: float
    usual: float


def longest_norm(scale: UpdateScale, size: int) -> float:
    """Return the bound on the signal, and of noise of `size` entries what is exceeded with a chance of NORM_ALPHA.

    >>> round(longest_norm(UpdateScale(noise=2.0, longest=5.0), size=54), 1)
    25.1
    """
    # The config imports this module, and its errors are reported before anything that takes long to import.
    from scipy.special import chdtri

    return scale.longest + scale.noise * math.sqrt(float(chdtri(size, NORM_ALPHA)))


def lengths(scale: UpdateScale, signal: float, size: int) -> Lengths:
    """Return the lengths of a whole, exact update of `size` entries, with a signal that is usually so long."""
    longest = longest_norm(scale, size)
    return Lengths(longest, min(longest, math.hypot(signal, scale.noise * math.sqrt(size))))


def inexact_lengths(others: Sequence[float], factor: float) -> Lengths:
    """Return the lengths of an update that is known only by those of others: their median, and `factor` times that."""
    usual = float(np.median(others))
    return Lengths(factor * usual, usual)


def shortened(update: F32, longest: float) -> F32:
    """Return an update f32[d], no longer than `longest`; the same bits where it is not."""
    length = float(np.linalg.norm(update.astype(np.float64)))
    return update if length <= longest else update * np.float32(longest / length)
