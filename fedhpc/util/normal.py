"""The standard normal distribution, by `scipy.special`.

Its import takes .3 s of a rank's start, which one that needs none of this does not wait for: it is imported at the
first call.
"""

from numpy.typing import ArrayLike

from fedhpc.util.arrays import F64


def ndtr(x: ArrayLike) -> F64:
    """Return the distribution function at `x`, f64 of its shape."""
    from scipy import special

    out: F64 = special.ndtr(x)
    return out


def ndtri(p: ArrayLike) -> F64:
    """Return the inverse of `ndtr` at `p`, f64 of its shape."""
    from scipy import special

    out: F64 = special.ndtri(p)
    return out


def log_ndtr(x: float) -> float:
    """Return the logarithm of `ndtr(x)`, exact where that is below the smallest float64."""
    from scipy import special

    return float(special.log_ndtr(x))
