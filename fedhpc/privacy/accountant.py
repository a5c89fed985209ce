"""From charges to epsilon: by PRV and by RDP, both upper bounds, of which the tighter valid one counts.

PRV: Gopi, Lee and Wutschitz 2021, "Numerical composition of differential privacy" (tight; Gaussian noise only). RDP:
Mironov 2017, with the conversion of Balle et al. 2020. All of this is public: no function here sees data.

What is used of Opacus is imported where it is called, and alone: see `fedhpc.privacy.opacus_accountants`.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal, NamedTuple

from fedhpc.errors import PrivacyError
from fedhpc.privacy.analytic_gaussian import ROUNDING, composed_mu, exact_epsilon, exact_mu
from fedhpc.privacy.prv import RDP_ORDERS, epsilon_by_prv, without_warnings_of_opacus
from fedhpc.privacy.rdp import History, Steps, composed_rdp, epsilon_from_rdp
from fedhpc.privacy.skellam import epsilon_by_rdp
from fedhpc.util.text import fixed

Mechanism = Literal["gaussian", "skellam", "laplace"]
Unit = Literal["patient", "image"]
Population = Literal["train", "evaluation"]
"""Whom a charge concerns: the units of the training split, or those of the validation and test splits.

The two are disjoint within a run, so one run's epsilon is said for each and never added across them.
"""
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
    """Return what `charges` cost together at `delta`; nothing costs nothing.

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
    """Return the `Total` of charges of any units at `delta`."""
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
    that is smaller or where PRV would need more than `prv.MOST_PRV_POINTS`.

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
    return Bounds(min(full, epsilon_by_prv(history, delta, min(full, by_rdp))), by_rdp)


def _by_rdp(history: History, delta: float) -> float:
    with without_warnings_of_opacus():
        return epsilon_from_rdp(composed_rdp(history, RDP_ORDERS), RDP_ORDERS, delta)


def epsilon_of(history: History, delta: float) -> float:
    """Return the tighter bound of `gaussian_bounds`."""
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
    """Return the noise multiplier by false position on logarithmic scales; `enough` is known to suffice."""
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
