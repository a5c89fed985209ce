"""The Skellam mechanism: integer noise of many sites that adds up to exactly the noise that is accounted.

A Skellam variable is the difference of two Poisson ones of equal mean; sums of independent ones are Skellam again, the
variances added (Agarwal, Kairouz and Liu 2021, "The Skellam Mechanism for Differentially Private Federated Learning",
NeurIPS). So n sites that each add their share of the variance make the noise that one trusted curator would have added.

Accounting is by Renyi differential privacy at integer orders alpha >= 2, where their Theorem 3.5, entry by entry, gives

    epsilon(alpha) <= alpha D2^2 / (2 v) + min(((2 alpha - 1) D2^2 + 6 D1) / (4 v^2), 3 D1 / (2 v))

for noise of variance v on every entry and integer vectors that differ by at most D1 in L1 and D2 in L2 norm. Integer
vectors have D1 <= D2^2, so this is at most alpha D2^2 / (2 v) (1 + 9 / (4 v)), hence at most alpha / (2 z^2) as soon as
v >= z^2 D2^2 + 9 / 4 (`variance_for`): what a Gaussian of noise multiplier z costs at the same orders. A charge needs
no more than z, then; but it must not be accounted by PRV, nor at orders that are no integers.
"""

import math
from decimal import Context, Decimal
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fedhpc.errors import PrivacyError
from fedhpc.privacy.noise import KeyStream
from fedhpc.privacy.rdp import History, Steps, composed_rdp, epsilon_from_rdp
from fedhpc.util.arrays import I64

ORDERS = (*range(2, 64), *range(64, 128, 4), *range(128, 1025, 32))
SMALLEST_VARIANCE = 2.0**26
"""From here on what `draw` leaves out of its series is below the rounding of a float64."""
LARGEST_VARIANCE = 2.0**100
BISECTIONS = 50
TAILS = np.array([int(2**64 * Decimal(-k).exp(Context(prec=60))) for k in range(44, 0, -1)], np.uint64)
"""2^64 exp(-k), rising; the next one would be 0."""
LEAST_NOISE, MOST_NOISE = 0.01, 1e6
"""Noise multipliers that are tried."""
BESIDE = " (with the release of model.feature_mean=sites, which costs less with a larger privacy.feature_mean_noise)"


def rdp(variance: float, l1: float, l2: float, order: int) -> float:
    """Return the Renyi divergence of one release at an integer order from 2 on, by Theorem 3.5 (all public).

    >>> rdp(variance=100, l1=1, l2=1, order=2)
    0.010225

    Args:
        variance: of the noise, in squared units of the integers.
        l1, l2: sensitivities, in units of the integers.
        order: of the divergence.

    Raises:
        ValueError: another order.
    """
    if order != int(order) or order < 2:
        raise ValueError(f"order={order}: the bound holds at integer orders from 2 on")
    second = min(((2 * order - 1) * l2**2 + 6 * l1) / (4 * variance**2), 3 * l1 / (2 * variance))
    return order * l2**2 / (2 * variance) + second


def variance_for(noise_multiplier: float, l2: float) -> float:
    """Return the variance that costs no more than a Gaussian of this noise multiplier, at every order of ORDERS."""
    return noise_multiplier**2 * l2**2 + 9 / 4


@lru_cache(maxsize=4096)
def epsilon_by_rdp(history: History, delta: float) -> float:
    """Return the epsilon of a history at `delta`, by RDP at integer orders alone.

    It may mix Gaussian charges and Skellam ones, whose sample rate must be 1.

    >>> round(epsilon_by_rdp((Steps(12.7927, 1.0, 10),), 1e-5), 4)
    1.0
    """
    if not history:
        return 0.0
    return epsilon_from_rdp(composed_rdp(history, ORDERS), ORDERS, delta)


def calibrate(epsilon: float, delta: float, releases: int, beside: History = ()) -> float:
    """The smallest noise multiplier (to 1 part in 10^9) of `releases` Skellam releases that cost at most `epsilon`.

    Args:
        epsilon, delta: of all releases together, with those of `beside`.
        releases: how many have the noise multiplier that is sought.
        beside: releases of other noise multipliers, which are part of the same guarantee.

    Raises:
        PrivacyError: where no noise multiplier up to 10^6 does.
    """
    low, high = LEAST_NOISE, MOST_NOISE

    def cost(noise: float) -> float:
        return epsilon_by_rdp((*beside, Steps(noise, 1.0, releases)), delta)

    largest, smallest = cost(low), cost(high)
    if not smallest <= epsilon <= largest:
        raise PrivacyError(
            f"privacy.epsilon={epsilon:g}, delta={delta:g}: out of reach in {releases} secure sums: noise multipliers "
            f"from {low:g} to {high:g} give an epsilon from {smallest:.2g} to {largest:.3g} by RDP at integer orders"
            f"{BESIDE if beside else ''}. Choose one between",
            code="privacy.out-of-reach",
        )
    for _ in range(BISECTIONS):
        middle = math.sqrt(low * high)
        enough = cost(middle) <= epsilon
        low, high = (low, middle) if enough else (middle, high)
    return high


def draw(variance: float, size: int, stream: KeyStream) -> I64:
    """Draw `size` independent Skellam variables of mean 0, int64[size].

    The difference of two numpy Poissons would do for small variances only: their sampler accepts a proposal by a
    difference of numbers near m log(m), so at a mean m of 2^40 its density is wrong by some 0.3 %, and from 2^50 on the
    shape is another. Here a discrete Laplace variable whose scale is a power of two, made of uniform integers (Canonne,
    Kamath and Steinke 2020, "The Discrete Gaussian for Differential Privacy", Algorithm 2), is accepted with the
    density of the Skellam distribution, P(k) = exp(-v) I_k(v), from the expansion of I_k for large v (DLMF 10.41.3),
    where nothing cancels:

        log P(k) - log P(0) = -x^2 / 2 + (x^4 - 6 x^2) / (24 v) + O(x^6 / (80 v^2)),  x = k / sqrt(v)

    What is left is the rounding of the acceptance probability to 53 bits, and of the geometric distribution's tail
    probabilities to 64: an entry is within 2^-48 of its distribution
    in total variation, so that the 10^8 entries of a long run together add less than 10^-6 to delta.

    Args:
        variance: v, SMALLEST_VARIANCE to LARGEST_VARIANCE (public).
        size: how many.
        stream: the source; see `fedhpc.privacy.noise.source`.
    """
    if not SMALLEST_VARIANCE <= variance <= LARGEST_VARIANCE:
        raise ValueError(f"variance={variance}; allowed: {SMALLEST_VARIANCE} to {LARGEST_VARIANCE}")
    out = np.empty(0, np.int64)
    while out.size < size:
        # Near half of the proposals are accepted.
        out = np.concatenate((out, _accepted(variance, 2 * (size - out.size) + 16, stream)))
    return out[:size]


def _accepted(variance: float, proposals: int, stream: KeyStream) -> I64:
    scale = scale_of(variance)
    words = stream.words(proposals)
    low = (words & np.uint64(scale - 1)).astype(np.int64)
    negative = words >> np.uint64(63) == 1
    magnitude = low + scale * _geometric(stream.words(proposals))
    chance = _log_acceptance(magnitude, variance, scale) - low / scale
    kept = (stream.uniform(proposals) < np.exp(chance)) & ~(negative & (magnitude == 0))
    accepted: I64 = np.where(negative, -magnitude, magnitude)[kept]
    return accepted


def scale_of(variance: float) -> int:
    """Return the scale of the proposals: the power of two next to a standard deviation."""
    return 1 << round(math.log2(variance) / 2)


def _geometric(words: NDArray[np.uint64]) -> I64:
    """P(k or more) = exp(-k), to within 2^-64, from uniform words."""
    return len(TAILS) - np.searchsorted(TAILS, words, side="right")


def _log_acceptance(magnitude: I64, variance: float, scale: int) -> NDArray[np.float64]:
    """log of P(k) / (c exp(-k / scale)), with c such that it is never above 0; see `draw`."""
    x = magnitude / math.sqrt(variance)
    tilt = math.sqrt(variance) / scale
    log_acceptance: NDArray[np.float64] = -0.5 * (x - tilt) ** 2 + (x**4 - 6 * x**2) / (24 * variance)
    return log_acceptance
