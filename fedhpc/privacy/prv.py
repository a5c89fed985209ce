"""Epsilon of Poisson-subsampled Gaussian steps by PRV, with Opacus; all of it is public.

Source: Gopi, Lee and Wutschitz 2021, "Numerical composition of differential privacy". What is used of Opacus is
imported where it is called, and alone (`fedhpc.privacy.opacus_accountants`): all of it takes as long as PyTorch.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np

from fedhpc.privacy.opacus_accountants import opacus_accountants
from fedhpc.privacy.rdp import History, Steps, composed_rdp, epsilon_from_rdp

PRV_ERROR = 0.005
"""How far above the truth PRV's epsilon may lie, as a share of RDP's (of 0.1, where that is larger)."""
MOST_PRV_ERROR = 0.1
"""Above this share PRV says no more than RDP does: it is left out."""
MOST_PRV_POINTS = 2**19
"""Of the mesh of PRV over all kinds of steps, a quarter of a second. Where it would have more, the error grows."""
MOST_PRV_EPSILON, LEAST_PRV_DELTA, MOST_PRV_DELTA = 50.0, 1e-9, 0.01
"""Where PRV is used. With a smaller delta, mass that counts is lost in the rounding of its FFT in float64; with a
larger one, or a larger epsilon, nothing is protected that would be worth its time."""
RDP_ORDERS = (*(1 + tenths / 10.0 for tenths in range(1, 100)), *range(12, 64))
"""The orders that Opacus tries."""


def epsilon_by_prv(history: History, delta: float, about: float) -> float:
    """PRV's upper bound; infinite where its mesh would be too large, or its numbers are none.

    Args:
        about: another upper bound, which PRV's error is measured by.
    """
    if about > MOST_PRV_EPSILON or not LEAST_PRV_DELTA <= delta <= MOST_PRV_DELTA:
        return math.inf
    prv = prv_accountant_class()()
    prv.history = list(history)
    error = PRV_ERROR * max(0.1, about)
    with without_warnings_of_opacus():
        try:
            error *= max(1.0, _mesh_points(prv, error, delta) / MOST_PRV_POINTS)
            if not error <= MOST_PRV_ERROR * max(0.1, about):
                return math.inf
            epsilon = float(prv.get_epsilon(delta, eps_error=error))
        except (RuntimeError, ValueError, OverflowError):
            return math.inf
    return max(0.0, epsilon) if math.isfinite(epsilon) else math.inf


@lru_cache(maxsize=1)
def prv_accountant_class() -> Any:
    """Return Opacus's accountant by PRV with its domain computed from memoised RDP.

    Opacus computes the RDP of every kind of step four times an epsilon, which is nine tenths of the time. The domain
    is the same to the last bit: tests/privacy/test_accountant.py compares them.
    """
    opacus = opacus_accountants()
    base: Any = opacus.prv_accountant

    class MemoisedDomain(base):  # type: ignore[misc]  # Opacus ships no types
        def _get_domain(self, prvs: Any, num_self_compositions: list[int], eps_error: float, delta_error: float) -> Any:
            history = [
                Steps(prv.noise_multiplier, prv.sample_rate, steps)
                for prv, steps in zip(prvs, num_self_compositions, strict=True)
            ]
            total = sum(num_self_compositions)
            mesh_size = eps_error / np.sqrt(total * np.log(12 / delta_error) / 2)
            half = _domain_half_width(history, eps_error, delta_error)
            return opacus.domain.create_aligned(-half, half, mesh_size)

    return MemoisedDomain


def _domain_half_width(history: Sequence[Steps], eps_error: float, delta_error: float) -> float:
    """Return how far PRV's domain reaches from 0 (Gopi, Lee and Wutschitz 2021, Remark 5.6, as in Opacus)."""
    total = sum(steps.number for steps in history)
    reach = [epsilon_from_rdp(composed_rdp(history, RDP_ORDERS), RDP_ORDERS, delta_error / 4)]
    for steps in history:
        one = composed_rdp([steps._replace(number=1)], RDP_ORDERS)
        reach.append(epsilon_from_rdp(one, RDP_ORDERS, delta_error / (8 * total)))
    return max(*reach, eps_error) + 3


def _mesh_points(prv: Any, error: float, delta: float) -> float:
    """Return how many points PRV would discretise at this error, over all kinds of steps; computes its domain only."""
    domain = prv._get_domain(
        prvs=[_prv_of(steps) for steps in prv.history],
        num_self_compositions=[steps.number for steps in prv.history],
        eps_error=error,
        delta_error=delta / 1000,
    )
    return float(domain.size) * len(prv.history)


def _prv_of(steps: Steps) -> Any:
    return opacus_accountants().subsampled_prv(steps.sample_rate, steps.noise_multiplier)


@contextmanager
def without_warnings_of_opacus() -> Iterator[None]:
    """Silence two warnings that touch no bound.

    PRV finds its domain by RDP, which warns where its best order is at the edge of its list: that is still a bound. PRV
    takes the log of 1 - sample rate, also at a rate of 1.
    """
    with warnings.catch_warnings(), np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        warnings.filterwarnings("ignore", message="Optimal order is the")
        yield
