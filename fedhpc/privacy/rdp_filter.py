"""What a patient may still spend when the next run is chosen after the results of the last: a Renyi filter.

**Theorem** (Feldman and Zrnic 2021, "Individual Privacy Accounting via a Renyi Filter", the Renyi filter; filters:
Rogers, Roth, Ullman and Vadhan 2016). Fix an order alpha and a budget B before anything is released. Let mechanisms be
chosen adaptively, each after the outputs of all before it, with RDP rho_1, rho_2, ... at this order that may depend on
those outputs. Stopped before rho_1 + ... + rho_k exceeds B, the whole sequence is (alpha, B)-RDP. At a fixed order this
also covers sequences that run at the same time (Haney, Shoemate, Tian, Vadhan, Vyrros, Xu and Zhang 2023).

**Used here.** ORDERS are fixed, and so is a share w(alpha) of delta for each, the shares adding up to 1. B(alpha) is
the RDP that converts to (cap, w(alpha) delta) (Balle et al. 2020; Canonne, Kamath and Steinke 2020, Proposition 12):

    B(alpha) = cap - log((alpha - 1) / alpha) + (log(w(alpha) delta) + log(alpha)) / (alpha - 1)

A charge is refused if the sum exceeds B(alpha) at every order; then all of them together are (cap, delta)-DP. Proof:
sort the transcripts by the first order whose budget held to the end, into disjoint sets A(alpha). The sequence that
stops when the budget of alpha is exceeded agrees with ours on A(alpha), and is (cap, w(alpha) delta)-DP by the theorem.
So P(E and A(alpha)) <= exp(cap) Q(E and A(alpha)) + w(alpha) delta for every event E; add up over the orders.

Half of delta goes to the order that lets most Gaussian noise through at this cap, the rest equally to the others: about
6 % more epsilon than plain RDP, for a guarantee that holds for adaptive choices.

Skellam releases are accounted by RDP at integer orders only (`fedhpc.privacy.skellam`): at others they cost infinity.
"""

import math
import warnings
from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache

import numpy as np

from fedhpc.privacy.accountant import Charge
from fedhpc.privacy.rdp import gaussian_rdp
from fedhpc.util.arrays import F64

ORDERS = (1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 16.0, 20.0, 24.0, 32.0, 48.0, 64.0, 128.0, 256.0)


@lru_cache(maxsize=256)
def shares(cap: float | None, delta: float) -> tuple[float, ...]:
    """The share of delta of each order; public. Without a cap, the half that a cap chosen for it would give each.

    >>> round(sum(shares(1.0, 1e-5)), 12), ORDERS[shares(1.0, 1e-5).index(0.5)]
    (1.0, 20.0)
    """
    if cap is None:
        return (0.5,) * len(ORDERS)
    best = max(ORDERS, key=lambda order: (cap - _conversion(order, delta / 2)) / order)
    others = 0.5 / (len(ORDERS) - 1)
    return tuple(0.5 if order == best else others for order in ORDERS)


def _conversion(order: float, delta: float) -> float:
    """Epsilon at `delta` less the RDP at `order`."""
    return math.log((order - 1) / order) - (math.log(delta) + math.log(order)) / (order - 1)


@lru_cache(maxsize=4096)
def _curve_of_step(noise_multiplier: float, sample_rate: float, integer_only: bool) -> tuple[float, ...]:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        curve = gaussian_rdp(noise_multiplier, sample_rate, 1, ORDERS)
    # An order at which the bound does not hold, or could not be computed, bounds nothing.
    holds = [not (integer_only and order != int(order)) for order in ORDERS]
    return tuple(
        max(0.0, float(one)) if ok and not math.isnan(one) else math.inf for ok, one in zip(holds, curve, strict=True)
    )


def in_larger_units(charge: Charge, group: int) -> Charge:
    """A charge that costs a unit of up to `group` units of `charge` no less than `charge` does.

    Group privacy of a Poisson-subsampled Gaussian: of `group` units at least one is drawn with probability
    1 - (1 - q)^group, and together they move the sum by at most `group` clip norms. A mechanism that moves it by that
    much with that probability dominates (Ganesh 2024, "Tight Group-Level DP Guarantees for DP-SGD with Sampling via
    Mixture of Gaussians Mechanisms": sensitivities that are stochastically larger give a dominating pair).

    >>> in_larger_units(Charge(0, 2.0, 0.5, 1), 2).sample_rate
    0.75
    """
    if group == 1:
        return charge
    rate = 1 - (1 - charge.sample_rate) ** group
    return replace(charge, noise_multiplier=charge.noise_multiplier / group, sample_rate=rate)


def curve_of(charge: Charge) -> F64:
    """Return the RDP of a charge at each of ORDERS, f64[orders]; infinity for noise from a known seed.

    >>> once, twice = Charge(0, 2.0, 1.0, 1), Charge(0, 2.0, 1.0, 2)
    >>> bool(np.allclose(curve_of(once), [order / 8 for order in ORDERS]))
    True
    >>> bool(np.allclose(2 * curve_of(once), curve_of(twice)))
    True
    >>> bool(np.allclose(4 * curve_of(once), curve_of(in_larger_units(once, 2))))
    True
    """
    if charge.insecure:
        return np.full(len(ORDERS), math.inf)
    if charge.mechanism == "laplace":
        # Pure DP of epsilon is RDP of min(epsilon, order * epsilon^2 / 2): Bun and Steinke 2016, Proposition 3.3.
        epsilon = 1 / charge.noise_multiplier
        return charge.steps * np.minimum(epsilon, np.array(ORDERS) * epsilon**2 / 2)
    step = _curve_of_step(charge.noise_multiplier, charge.sample_rate, charge.mechanism == "skellam")
    return charge.steps * np.array(step)


def total_curve(charges: Iterable[Charge]) -> F64:
    """Return the sum of the curves, f64[orders]."""
    total = np.zeros(len(ORDERS))
    for charge in charges:
        total += curve_of(charge)
    return total


def filter_epsilon(curves: F64, delta: float, cap: float | None) -> F64:
    """The smallest cap under which the filter would have let these curves through, f64[...] from f64[..., orders].

    With the shares of `cap` fixed, it is at most `cap` just where the filter lets them through. Nothing costs nothing.
    Without a cap nothing is limited: then it is what the cap that fits best would count.
    """
    share = shares(cap, delta)
    added = np.array([_conversion(order, part * delta) for order, part in zip(ORDERS, share, strict=True)])
    epsilon = np.maximum(0.0, (curves + added).min(axis=-1))
    spent: F64 = np.where((curves == 0).all(axis=-1), 0.0, epsilon)
    return spent
