"""The exact privacy of Gaussian releases: Balle and Wang 2018, "Improving the Gaussian Mechanism", Theorem 8.

Releases of full batches (sample rate 1) compose exactly: steps of noise multipliers z_i together are one release of
mu = sqrt(sum of 1 / z_i^2), of which

    delta(epsilon) = Phi(mu / 2 - epsilon / mu) - exp(epsilon) Phi(-mu / 2 - epsilon / mu)

A Poisson-subsampled step costs no more than one of the full batch, so that this bounds any history of Gaussian steps.
All of it is public; no function here sees data.
"""

import math
from collections.abc import Iterable

from fedhpc.privacy.rdp import Steps
from fedhpc.util.normal import log_ndtr

BISECTIONS = 100
ROUNDING = 1e-9
"""Bounds are raised by this share: it covers the rounding of float64 where the two terms nearly cancel."""


def composed_mu(history: Iterable[Steps]) -> float:
    """Return the mu of all steps together, each as if of the full batch.

    >>> composed_mu([Steps(2.0, 1.0, 4)]), composed_mu([Steps(0.0, 1.0, 1)])
    (1.0, inf)
    """
    listed = list(history)
    if any(steps.noise_multiplier == 0 and steps.number for steps in listed):
        return math.inf
    return math.sqrt(math.fsum(steps.number / steps.noise_multiplier**2 for steps in listed if steps.number))


def log_delta(mu: float, epsilon: float) -> float:
    """Return the logarithm of the exact delta of one release of `mu` at `epsilon`; -inf where it is below a float64."""
    first = log_ndtr(mu / 2 - epsilon / mu)
    difference = epsilon + log_ndtr(-mu / 2 - epsilon / mu) - first
    return first + math.log(-math.expm1(difference)) if difference < 0 else -math.inf


def exact_epsilon(mu: float, delta: float) -> float:
    """Return the smallest epsilon of one release of `mu` at `delta`, from above.

    A single release of noise multiplier 3.730632 costs 1:

    >>> round(exact_epsilon(1 / 3.730632, 1e-5), 5)
    1.0
    """
    target = math.log(delta)
    if mu == math.inf:
        return math.inf
    if mu == 0 or log_delta(mu, 0.0) <= target:
        return 0.0
    low, high = 0.0, mu * mu / 2 + mu * math.sqrt(-2 * target) + 1
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if log_delta(mu, middle) <= target else (middle, high)
    return high * (1 + ROUNDING)


def exact_mu(epsilon: float, delta: float) -> float:
    """Return the largest mu that costs at most `epsilon` at `delta`, from below.

    >>> round(1 / exact_mu(1.0, 1e-5), 3)
    3.731
    """
    low, high = 0.0, 1.0
    while exact_epsilon(high, delta) <= epsilon:
        low, high = high, 2 * high
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if exact_epsilon(middle, delta) <= epsilon else (low, middle)
    return low
