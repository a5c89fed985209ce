"""Exact and near-exact confidence intervals for what the audit measures; no data, no model.

Every function takes `risk`, the chance that the interval misses the truth. The laws of one audit together stay below
`AUDIT_RISK`; see docs/audit.md for the sum.
"""

import math

import numpy as np
from scipy.stats import binom, chi2, kstest, kstwo, norm
from scipy.stats import t as student

from fedhpc.util.arrays import F64

Interval = tuple[float, float]
AUDIT_RISK = 1e-4
"""The chance that an audit of a sound implementation fails, all its laws, bounds and ceilings together, is below it."""
LAW_RISK = 1e-7
"""The share of one law, however many steps, tensors or sites it is tested on."""


def spread_interval(values: F64, risk: float) -> Interval:
    """The standard deviation of Gaussian `values` of mean 0, by the chi-square distribution of their squares' sum.

    >>> low, high = spread_interval(np.array([1.0, -1.0] * 5000), 1e-7)
    >>> round(low, 2), round(high, 2)
    (0.96, 1.04)
    """
    total, n = float(np.sum(np.square(values))), values.size
    return math.sqrt(total / chi2.isf(risk / 2, n)), math.sqrt(total / chi2.ppf(risk / 2, n))


def mean_interval(values: F64, deviation: float, risk: float) -> Interval:
    """Return the mean of values whose standard deviation is known to be at most `deviation`."""
    half = float(norm.isf(risk / 2)) * deviation / math.sqrt(values.size)
    centre = float(np.mean(values))
    return centre - half, centre + half


def share_interval(found: int, trials: int, risk: float) -> Interval:
    """A probability from a binomial count (Clopper and Pearson 1934).

    >>> share_interval(0, 100, 1e-7)[0]
    0.0
    """
    from scipy.stats import beta

    low = float(beta.ppf(risk / 2, found, trials - found + 1)) if found else 0.0
    high = float(beta.isf(risk / 2, found + 1, trials - found)) if found < trials else 1.0
    return low, high


def dispersion_interval(counts: F64, trials: int, share: float, risk: float) -> Interval:
    """Variance over binomial variance of `counts` of `trials` each, by the chi-square approximation.

    A binomial's fourth moment is 3 + 1 / (trials * share * (1 - share)) at most, a Gaussian's 3: from 10 expected draws
    on the interval is at most 3 % too narrow. A count that never varies gives (0, 0).
    """
    ratio = np.square(counts - trials * share) / (trials * share * (1 - share))
    total, n = float(ratio.sum()), counts.size
    return total / float(chi2.isf(risk / 2, n)), total / float(chi2.ppf(risk / 2, n))


def correlation_limit(length: int, pairs: int, risk: float) -> float:
    """No correlation of so many pairs of independent Gaussian vectors of mean 0 is larger, but with chance `risk`."""
    quantile = float(student.isf(risk / (2 * pairs), length - 1))
    return quantile / math.sqrt(length - 1 + quantile**2)


def largest_correlation(rows: F64) -> float:
    """Return the largest absolute correlation, about mean 0, of two different rows [k, n]."""
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300)
    found = np.abs(unit @ unit.T)
    np.fill_diagonal(found, 0.0)
    return float(found.max())


def gaussian_distance(values: F64, deviation: float) -> float:
    """The largest difference of the distribution function of `values` from a Gaussian's (Kolmogorov and Smirnov)."""
    # The distance alone: the exact p-value of many values would take seconds.
    return float(kstest(values, norm(scale=deviation).cdf, method="asymp").statistic)


def distance_limit(count: int, risk: float) -> float:
    """Return what `gaussian_distance` of `count` Gaussian values does not pass, but with chance `risk`."""
    return float(kstwo.isf(risk, count))


def draws_for_collision(bits: int, risk: float) -> int:
    """Return how many draws of so many bits hold an equal pair but for the chance `risk`: the birthday bound.

    >>> draws_for_collision(8, 1e-7), draws_for_collision(32, 1e-7) < 400_000
    (92, True)
    """
    return math.ceil(math.sqrt(2 * 2**bits * math.log(1 / risk))) + 1


def at_least(found: int, trials: int, share: float) -> float:
    """Return the chance of `found` or more of `trials` at probability `share`."""
    return float(binom.sf(found - 1, trials, share))
