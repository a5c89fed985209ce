"""The discrete Laplace mechanism, in shares: integer noise of one site, or of several sites together.

Formal guarantee. Let a function of the patients give integer vectors that differ by at most L in the L1 norm when one
unit is added or removed. With independent noise P(k) ~ exp(-|k| / s) on every entry it is (L / s, 0)-differentially
private (Ghosh, Roughgarden and Sundararajan 2009, the geometric mechanism). A histogram whose unit has a total weight
of at most L is such a function, whatever the number of bins: at epsilon 1 the noise of a bin has a standard deviation
of 1.4 L, where a Gaussian needs 3.7 of the L2 norm at delta 1e-5.

Shares. A discrete Laplace variable is the difference of two geometric ones, and a geometric variable is the sum of h
independent negative binomial ones NB(1 / h, 1 - exp(-1 / s)) (Goryczka and Xiong 2015, "A comprehensive comparison of
multiparty secure additions with differential privacy"). So h honest sites that each add the difference of two such
draws make together the noise that one curator would have added. What further sites add is post-processing.

Sampler. NB(r, p) is a Poisson number of variables of the logarithmic series (Johnson, Kemp and Kotz 2005, section 5.3),
drawn here by inversion and by Kemp's method from 53-bit uniforms of a `KeyStream`. An entry is within 2^-44 of its
distribution in total variation, which is no part of the epsilon and adds less than 10^-9 to delta in 1,000 entries.
"""

import math

import numpy as np

from fedhpc.privacy.noise import KeyStream
from fedhpc.util.arrays import I64

LARGEST_SCALE = 1e9
MOST_CLUSTERS = 400
"""No Poisson mean below 21 (a scale of 10^9) reaches this with a chance above 2^-60."""


def laplace_integers(scale: float, share: int, size: int, stream: KeyStream) -> I64:
    """Return one site's share of discrete Laplace noise, int64[size].

    Args:
        scale: s of the whole noise, 1 to LARGEST_SCALE; its standard deviation is about 1.41 s (public).
        share: h, among how many honest sites the noise is divided; 1: this site adds all of it (public).
        size: how many entries.
        stream: the source.

    >>> laplace_integers(1000.0, 1, 3, KeyStream.of_seed(7)).tolist()
    [-103, -765, 1296]
    """
    if not 1 <= scale <= LARGEST_SCALE or share < 1:
        raise ValueError(f"scale={scale}, share={share}; allowed: 1 to {LARGEST_SCALE:g}, and at least 1")
    return _negative_binomial(scale, share, size, stream) - _negative_binomial(scale, share, size, stream)


def _negative_binomial(scale: float, share: int, size: int, stream: KeyStream) -> I64:
    """NB(1 / share, 1 - q), q = exp(-1 / scale): a Poisson number, of mean -log(1 - q) / share, of log-series draws."""
    log_miss = math.log(-math.expm1(-1 / scale))
    counts = np.searchsorted(_poisson_cdf(-log_miss / share), stream.uniform(size), side="right")
    total = int(counts.sum())
    u, v = stream.uniform(total), stream.uniform(total)
    # Kemp 1981: 1 + floor(log V / log(1 - (1 - q)^U)), with V = 1 - v, which is never 0.
    with np.errstate(divide="ignore"):
        rate = np.log(-np.expm1(u * log_miss))
        draws = 1 + np.floor(np.log1p(-v) / rate)
    owner = np.repeat(np.arange(size), counts)
    sums = np.bincount(owner, weights=draws, minlength=size)
    out: I64 = sums.astype(np.int64)
    return out


def _poisson_cdf(mean: float) -> np.ndarray:
    k = np.arange(MOST_CLUSTERS)
    log_factorial = np.concatenate(([0.0], np.cumsum(np.log(k[1:]))))
    cdf: np.ndarray = np.cumsum(np.exp(k * math.log(mean) - mean - log_factorial))
    return cdf


def rdp(epsilon: float, order: float) -> float:
    """Renyi divergence of order > 1 of any epsilon-private mechanism: at most that of randomised response.

    Every such mechanism is a function of the outcome of randomised response (Kairouz, Oh and Viswanath 2015, "The
    composition theorem for differential privacy", Theorem 2.8).

    >>> round(rdp(1.0, 2.0), 4), round(rdp(1.0, 1000.0), 2)
    (0.7353, 1.0)
    """
    log_p, log_q = -math.log1p(math.exp(-epsilon)), -math.log1p(math.exp(epsilon))
    first = order * log_p + (1 - order) * log_q
    second = order * log_q + (1 - order) * log_p
    return float(np.logaddexp(first, second)) / (order - 1)
