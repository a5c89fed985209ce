"""From charges to epsilon: by PRV and by RDP, both upper bounds, of which the tighter valid one counts.

PRV: Gopi, Lee and Wutschitz 2021, "Numerical composition of differential privacy" (tight; Gaussian noise only). RDP:
Mironov 2017, with the conversion of Balle et al. 2020. All of this is public: no function here sees data.

Opacus is imported where it is called: it takes as long as PyTorch, and a run without subsampling does not need it.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np

from fedhpc.errors import PrivacyError
from fedhpc.privacy.analytic_gaussian import ROUNDING, composed_mu, exact_epsilon, exact_mu
from fedhpc.privacy.rdp import History, Steps, composed_rdp, epsilon_from_rdp
from fedhpc.privacy.skellam import epsilon_by_rdp
from fedhpc.util.text import fixed

Mechanism = Literal["gaussian", "skellam", "laplace"]
Unit = Literal["patient", "image"]
Population = Literal["train", "evaluation"]
"""Whom a charge concerns: the units of the training split, or those of the validation and test splits.

The two are disjoint within a run, so one run's epsilon is said for each and never added across them.
"""
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
LEAST_NOISE, MOST_NOISE = 0.02, 1e6
"""Noise multipliers that are tried: with less than the first nobody is protected, with more nothing is learned."""
CALIBRATION_SLACK, NOISE_SLACK, MOST_TRIALS, JUMP = 0.002, 1e-3, 24, 1.02


@dataclass(frozen=True)
class Charge:
    """`steps` Poisson-subsampled Gaussian steps, or Skellam or Laplace releases of sample rate 1, on one kind of unit.

    All of it is public. The noise multiplier is the noise's standard deviation over the L2 sensitivity; of a Laplace
    release its scale over the L1 sensitivity, so that one costs epsilon = 1 / noise_multiplier and no delta.

    `insecure` marks noise from a fixed seed: whoever knows the seed can take it off, so nothing is guaranteed.
    """

    round: int
    noise_multiplier: float
    sample_rate: float
    steps: int
    mechanism: Mechanism = "gaussian"
    unit: Unit = "patient"
    insecure: bool = False
    population: Population = "train"


@dataclass(frozen=True)
class Bounds:
    """Two upper bounds of the same epsilon. `prv` is None where a charge is no Gaussian."""

    prv: float | None
    rdp: float

    @property
    def epsilon(self) -> float:
        """The tighter of those that hold."""
        return self.rdp if self.prv is None else min(self.prv, self.rdp)


def bounds_of(charges: Iterable[Charge], delta: float) -> Bounds:
    """What `charges` cost together at `delta`; nothing costs nothing.

    >>> bounds_of([], 1e-5).epsilon
    0.0
    >>> bounds_of([Charge(1, 4.0, 1.0, 1, "laplace")] * 3, 1e-5).epsilon
    0.75
    """
    listed = list(charges)
    pure = sum(c.steps / c.noise_multiplier for c in listed if c.mechanism == "laplace")
    if pure:
        # Basic composition: (epsilon, delta) of the others and (pure, 0) together are (epsilon + pure, delta).
        return Bounds(None, pure + bounds_of([c for c in listed if c.mechanism != "laplace"], delta).epsilon)
    merged: dict[tuple[float, float], int] = {}
    mechanisms = set()
    for c in listed:
        key = (c.noise_multiplier, c.sample_rate)
        merged[key] = merged.get(key, 0) + c.steps
        mechanisms.add(c.mechanism)
    history = tuple(sorted(Steps(*key, count) for key, count in merged.items()))
    if "skellam" in mechanisms:
        return Bounds(None, epsilon_by_rdp(history, delta))
    return gaussian_bounds(history, delta)


@dataclass(frozen=True)
class Total:
    """What charges of several runs cost together, by their unit; nothing is guaranteed where one was `insecure`.

    What was spent per patient and what per image do not add up: a patient has more than one image.

    Attributes:
        by_unit: of the charges to the training population.
        insecure: whether a charge was made with noise from a fixed seed.
        evaluation: of the charges to the evaluation population, by unit.
    """

    by_unit: Mapping[Unit, Bounds]
    insecure: bool
    evaluation: Mapping[Unit, Bounds] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """For the user.

        >>> Total({"patient": Bounds(1.0, 1.1)}, False).text
        'epsilon 1.000 per patient'
        """
        if self.insecure:
            return "more than can be said: a run with privacy.noise_seed is among them, and guarantees nothing"
        parts = [f"epsilon {fixed(bounds.epsilon)} per {unit}" for unit, bounds in self.by_unit.items()]
        parts += [f"epsilon {fixed(bounds.epsilon)} per evaluated {unit}" for unit, bounds in self.evaluation.items()]
        return " and ".join(parts) or "nothing"


def total_of(charges: Iterable[Charge], delta: float) -> Total:
    """The `Total` of charges of any units at `delta`."""
    listed = list(charges)
    return Total(
        _by_unit([c for c in listed if c.population == "train"], delta),
        any(charge.insecure for charge in listed),
        _by_unit([c for c in listed if c.population == "evaluation"], delta),
    )


def _by_unit(charges: Sequence[Charge], delta: float) -> dict[Unit, Bounds]:
    units = sorted({charge.unit for charge in charges})
    return {unit: bounds_of([c for c in charges if c.unit == unit], delta) for unit in units}


@lru_cache(maxsize=4096)
def gaussian_bounds(history: History, delta: float) -> Bounds:
    """Return both bounds of a history of Poisson-subsampled Gaussian steps at `delta`.

    The first is exact for full batches (`analytic_gaussian`). For others it is PRV's, or that of full batches where
    that is smaller or where PRV would need more than MOST_PRV_POINTS.

    60 epochs of MNIST in batches of 256 at noise 1.1, as in the tutorial of TensorFlow Privacy:

    >>> bounds = gaussian_bounds((Steps(1.1, 256 / 60000, 14062),), 1e-5)
    >>> f"{bounds.prv:.2f} {bounds.rdp:.2f}"
    '2.39 2.60'
    """
    if not history:
        return Bounds(0.0, 0.0)
    full = exact_epsilon(composed_mu(history), delta)
    by_rdp = _by_rdp(history, delta)
    if all(steps.sample_rate == 1 for steps in history):
        return Bounds(full, by_rdp)
    return Bounds(min(full, _by_prv(history, delta, min(full, by_rdp))), by_rdp)


def _by_rdp(history: History, delta: float) -> float:
    with _without_noise_of_opacus():
        return epsilon_from_rdp(composed_rdp(history, RDP_ORDERS), RDP_ORDERS, delta)


def _by_prv(history: History, delta: float, about: float) -> float:
    """PRV's upper bound; infinite where its mesh would be too large, or its numbers are none.

    Args:
        about: another upper bound, which PRV's error is measured by.
    """
    if about > MOST_PRV_EPSILON or not LEAST_PRV_DELTA <= delta <= MOST_PRV_DELTA:
        return math.inf
    prv = _prv_accountant_class()()
    prv.history = list(history)
    error = PRV_ERROR * max(0.1, about)
    with _without_noise_of_opacus():
        try:
            error *= max(1.0, _mesh_points(prv, error, delta) / MOST_PRV_POINTS)
            if not error <= MOST_PRV_ERROR * max(0.1, about):
                return math.inf
            epsilon = float(prv.get_epsilon(delta, eps_error=error))
        except (RuntimeError, ValueError, OverflowError):
            return math.inf
    return max(0.0, epsilon) if math.isfinite(epsilon) else math.inf


@lru_cache(maxsize=1)
def _prv_accountant_class() -> Any:
    """Return Opacus's accountant by PRV with its domain computed from memoised RDP.

    Opacus computes the RDP of every kind of step four times an epsilon, which is nine tenths of the time. The domain
    is the same to the last bit: tests/privacy/test_accountant.py compares them.
    """
    from opacus.accountants import PRVAccountant
    from opacus.accountants.analysis.prv import Domain

    class MemoisedDomain(PRVAccountant):  # type: ignore[misc]  # Opacus ships no types
        def _get_domain(self, prvs: Any, num_self_compositions: list[int], eps_error: float, delta_error: float) -> Any:
            history = [
                Steps(prv.noise_multiplier, prv.sample_rate, steps)
                for prv, steps in zip(prvs, num_self_compositions, strict=True)
            ]
            total = sum(num_self_compositions)
            mesh_size = eps_error / np.sqrt(total * np.log(12 / delta_error) / 2)
            half = _domain_half_width(history, eps_error, delta_error)
            return Domain.create_aligned(-half, half, mesh_size)

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
    """How many points PRV would discretise at this error, over all kinds of steps; computes its domain only."""
    domain = prv._get_domain(
        prvs=[_prv_of(steps) for steps in prv.history],
        num_self_compositions=[steps.number for steps in prv.history],
        eps_error=error,
        delta_error=delta / 1000,
    )
    return float(domain.size) * len(prv.history)


def _prv_of(steps: Steps) -> Any:
    from opacus.accountants.analysis.prv import PoissonSubsampledGaussianPRV

    return PoissonSubsampledGaussianPRV(steps.sample_rate, steps.noise_multiplier)


def epsilon_of(history: History, delta: float) -> float:
    """The tighter bound of `gaussian_bounds`."""
    return gaussian_bounds(history, delta).epsilon


@lru_cache(maxsize=256)
def calibrate_gaussian(epsilon: float, delta: float, sample_rate: float, steps: int) -> float:
    """Return the noise multiplier with which so many steps cost at most `epsilon`, and no less than 0.2 % below it.

    Raises:
        PrivacyError: where the noise multiplier would be outside of LEAST_NOISE to MOST_NOISE; it names the epsilons
            that can be reached.

    One release of a sum (Balle and Wang 2018):

    >>> round(calibrate_gaussian(1.0, 1e-5, 1.0, 1), 4)
    3.7306
    """

    def spent(noise_multiplier: float) -> float:
        return epsilon_of((Steps(noise_multiplier, sample_rate, steps),), delta)

    if not 0 < epsilon < math.inf:
        raise PrivacyError(
            f"privacy.epsilon={epsilon}: is not a positive number. Set one, or write `privacy: off`", code="config"
        )
    # As if of full batches: that is always enough, and exact where batches are full. A little more, so that no
    # rounding of the charges' sum passes the target: it would cost the run its last round.
    enough = math.sqrt(steps) / exact_mu(epsilon, delta) * (1 + ROUNDING)
    if sample_rate < 1 and enough > LEAST_NOISE:
        enough = _subsampled_noise(epsilon, spent, _guess(epsilon, delta, sample_rate, steps), enough)
    if not LEAST_NOISE <= enough <= MOST_NOISE:
        raise PrivacyError(
            _out_of_reach(f"privacy.epsilon={epsilon:g}, delta={delta:g}", spent, steps), code="privacy.out-of-reach"
        )
    return enough


@lru_cache(maxsize=256)
def calibrate_beside(epsilon: float, delta: float, steps: int, beside: History) -> float:
    """Return the noise multiplier with which so many full-batch steps, and those of `beside`, cost at most `epsilon`.

    Full batches compose exactly, so the noise is exact too.

    Raises:
        PrivacyError: where those of `beside` alone cost as much, or the noise multiplier would be out of range.

    >>> round(calibrate_beside(1.0, 1e-5, 1, (Steps(8.0, 1.0, 1),)), 4)
    4.2173
    """
    left = exact_mu(epsilon, delta) ** 2 / (1 + ROUNDING) ** 2 - composed_mu(beside) ** 2
    enough = math.sqrt(steps / left) if left > 0 else math.inf
    if not LEAST_NOISE <= enough <= MOST_NOISE:
        alone = gaussian_bounds(beside, delta).epsilon
        raise PrivacyError(
            f"privacy.epsilon={epsilon:g}, delta={delta:g}: out of reach: the release of model.feature_mean=sites "
            f"alone costs {alone:.3g}. Set a larger privacy.feature_mean_noise, or another epsilon",
            code="privacy.out-of-reach",
        )
    return enough


def _guess(epsilon: float, delta: float, sample_rate: float, steps: int) -> float:
    """About the noise that is needed: by the central limit of Bu et al. 2020, mu = q sqrt(T (exp(1 / z^2) - 1))."""
    ratio = exact_mu(epsilon, delta) / sample_rate
    return 1 / math.sqrt(math.log1p(ratio * ratio / steps))


def _subsampled_noise(epsilon: float, spent: Callable[[float], float], guess: float, enough: float) -> float:
    """The noise multiplier by false position on logarithmic scales; `enough` is known to suffice."""
    low, high = Tried(0.0, math.inf), Tried(enough, epsilon)
    trial = min(max(guess, LEAST_NOISE), enough)
    for _ in range(MOST_TRIALS):
        cost = spent(trial)
        if cost > epsilon:
            low = Tried(trial, cost)
        else:
            high = Tried(trial, cost)
            if epsilon - cost <= CALIBRATION_SLACK * epsilon or trial <= LEAST_NOISE:
                break
        if low.noise and high.noise <= low.noise * (1 + NOISE_SLACK):
            break
        trial = _next_noise(low, high, epsilon * (1 - CALIBRATION_SLACK / 2))
    return high.noise


class Tried(NamedTuple):
    """A noise multiplier that was tried, and what it costs."""

    noise: float
    epsilon: float


def _next_noise(low: Tried, high: Tried, target: float) -> float:
    """Between too little noise and enough of it, each with its epsilon, on the straight line through both in logs."""
    if not low.noise:
        return max(LEAST_NOISE, high.noise * max(0.25, min(0.98, high.epsilon / target)))
    if math.isinf(low.epsilon) or high.noise > 4 * low.noise:
        return min(low.noise * min(4.0, max(1.02, low.epsilon / target)), math.sqrt(low.noise * high.noise))
    # Where a bound gives way to another, epsilon jumps or stays, and the line would creep: halve the interval.
    creeps = high.noise / low.noise < JUMP or high.epsilon >= target or low.epsilon > 2 * target
    share = 0.5 if creeps else math.log(low.epsilon / target) / math.log(low.epsilon / max(high.epsilon, target / 4))
    return float(low.noise * (high.noise / low.noise) ** min(0.95, max(0.05, share)))


def _out_of_reach(told: str, spent: Callable[[float], float], steps: int) -> str:
    smallest, largest = spent(MOST_NOISE), spent(LEAST_NOISE)
    return (
        f"{told}: out of reach in {steps} private steps: noise multipliers from {LEAST_NOISE:g} to {MOST_NOISE:g} give "
        f"an epsilon from {smallest:.2g} to {largest:.3g}. Choose one between (0.1 to 10 is usual), or `privacy: off`"
    )


@contextmanager
def _without_noise_of_opacus() -> Iterator[None]:
    """Silence two warnings that touch no bound.

    PRV finds its domain by RDP, which warns where its best order is at the edge of its list: that is still a bound. PRV
    takes the log of 1 - sample rate, also at a rate of 1.
    """
    with warnings.catch_warnings(), np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        warnings.filterwarnings("ignore", message="Optimal order is the")
        yield
