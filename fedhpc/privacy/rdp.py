"""Renyi DP of Gaussian steps, and its conversion to epsilon; all of it is public.

A full batch has a closed form. Opacus computes the others: it is imported for them only.
tests/privacy/test_accountant.py compares both to Opacus, bit for bit.
"""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from fedhpc.privacy.opacus_accountants import opacus_accountants
from fedhpc.util.arrays import F64


class Steps(NamedTuple):
    """Steps of one kind in a history of privacy charges (public)."""

    noise_multiplier: float
    sample_rate: float
    number: int


History = tuple[Steps, ...]
"""All kinds of steps that were charged, the order being of no consequence."""


def gaussian_rdp(noise_multiplier: float, sample_rate: float, steps: int, orders: Sequence[float]) -> F64:
    """Return the RDP of `steps` Poisson-subsampled Gaussian steps at each order, f64[orders].

    Source: Mironov 2017, Proposition 7 (full batches); Mironov, Talwar and Zhang 2019, Section 3.3 (others).

    >>> gaussian_rdp(2.0, 1.0, 4, [2.0, 3.0]).tolist()
    [1.0, 1.5]
    """
    if sample_rate == 1 and noise_multiplier > 0:
        return np.array([order / (2 * noise_multiplier**2) for order in orders]) * steps
    return _subsampled_rdp(noise_multiplier, sample_rate, tuple(orders)) * steps


@lru_cache(maxsize=1024)
def _subsampled_rdp(noise_multiplier: float, sample_rate: float, orders: tuple[float, ...]) -> F64:
    """Return the RDP of one step, read-only: Opacus takes .3 s for it, and the same one is needed at each number of
    steps, and twice by PRV."""
    compute_rdp = opacus_accountants().compute_rdp
    found: F64 = compute_rdp(q=sample_rate, noise_multiplier=noise_multiplier, steps=1, orders=list(orders))
    found.flags.writeable = False
    return found


def composed_rdp(history: Iterable[Steps], orders: Sequence[float]) -> F64:
    """Return the RDP of a history at each order, f64[orders]."""
    total = np.zeros(len(orders))
    for steps in history:
        total = total + gaussian_rdp(*steps, orders)
    return total


def epsilon_from_rdp(rdp: F64, orders: Sequence[float], delta: float) -> float:
    """Return the smallest epsilon at `delta` over all orders, at least 0; infinite where no order gives a number.

    Source: Balle et al. 2020, "Hypothesis testing interpretations and Renyi differential privacy", Theorem 21.

    >>> f"{epsilon_from_rdp(composed_rdp([Steps(1.0, 1.0, 1)], [2.0, 8.0]), [2.0, 8.0], 1e-5):.3f}"
    '5.214'
    """
    alpha = np.asarray(orders, dtype=np.float64)
    epsilon = rdp - (np.log(delta) + np.log(alpha)) / (alpha - 1) + np.log((alpha - 1) / alpha)
    if np.isnan(epsilon).all():
        return math.inf
    return max(0.0, float(np.nanmin(epsilon)))
