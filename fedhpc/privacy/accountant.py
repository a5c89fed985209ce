"""From charges to epsilon: by PRV and by RDP, both upper bounds, of which the tighter valid one counts.

PRV: Gopi, Lee and Wutschitz 2021, "Numerical composition of differential privacy" (tight; Gaussian noise only). RDP:
Mironov 2017, with the conversion of Balle et al. 2020. All of this is public: no function here sees data.

Opacus is imported where it is called: it takes a second of every rank, which a run without privacy need not wait for.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import numpy as np

from fedhpc.errors import PrivacyError
from fedhpc.privacy.skellam import epsilon_by_rdp

Mechanism = Literal["gaussian", "skellam"]
Unit = Literal["patient", "image"]
Population = Literal["train", "evaluation"]
"""Whom a charge concerns: the units of the training split, or those of the validation and test splits.

The two are disjoint within a run, so one run's epsilon is said for each and never added across them.
"""
History = tuple[tuple[float, float, int], ...]
"""(noise multiplier, sample rate, steps) of each kind of step, the order being of no consequence."""
PRV_ERROR = 0.005
"""How far above the truth PRV's epsilon may lie, as a share of it (of 1, where that is larger); less takes longer."""
CALIBRATION_SLACK = 0.002


@dataclass(frozen=True)
class Charge:
    """`steps` Poisson-subsampled Gaussian steps, or Skellam releases of sample rate 1, on one kind of unit (public).

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
    """
    merged: dict[tuple[float, float], int] = {}
    mechanisms = set()
    for c in charges:
        key = (c.noise_multiplier, c.sample_rate)
        merged[key] = merged.get(key, 0) + c.steps
        mechanisms.add(c.mechanism)
    history = tuple(sorted((*key, steps) for key, steps in merged.items()))
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
        parts = [f"epsilon {bounds.epsilon:.3f} per {unit}" for unit, bounds in self.by_unit.items()]
        parts += [f"epsilon {bounds.epsilon:.3f} per evaluated {unit}" for unit, bounds in self.evaluation.items()]
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
    """Both bounds of a history of Poisson-subsampled Gaussian steps at `delta`.

    60 epochs of MNIST in batches of 256 at noise 1.1, as in the tutorial of TensorFlow Privacy:

    >>> bounds = gaussian_bounds(((1.1, 256 / 60000, 14062),), 1e-5)
    >>> f"{bounds.prv:.2f} {bounds.rdp:.2f}"
    '2.39 2.60'
    """
    if not history:
        return Bounds(0.0, 0.0)
    from opacus.accountants import PRVAccountant, RDPAccountant

    prv, rdp = PRVAccountant(), RDPAccountant()
    prv.history, rdp.history = list(history), list(history)
    with _without_noise_of_opacus():
        by_rdp = float(rdp.get_epsilon(delta))
        return Bounds(float(prv.get_epsilon(delta, eps_error=PRV_ERROR * max(1.0, by_rdp))), by_rdp)


def epsilon_of(history: History, delta: float) -> float:
    """The tighter bound of `gaussian_bounds`."""
    return gaussian_bounds(history, delta).epsilon


@lru_cache(maxsize=256)
def calibrate_gaussian(epsilon: float, delta: float, sample_rate: float, steps: int) -> float:
    """The noise multiplier with which so many steps cost at most `epsilon`, and no less than 0.2 % below it.

    Raises:
        PrivacyError: where no noise reaches the target.

    One release of a sum; the exact value is 3.730 (Balle and Wang 2018, "Improving the Gaussian Mechanism"):

    >>> round(calibrate_gaussian(1.0, 1e-5, 1.0, 1), 2)
    3.75
    """
    from opacus.accountants.utils import get_noise_multiplier

    target = {"target_epsilon": epsilon, "target_delta": delta, "sample_rate": sample_rate, "steps": steps}
    try:
        with _without_noise_of_opacus():
            enough = float(get_noise_multiplier(**target, accountant="rdp"))
    except ValueError as error:
        raise PrivacyError(f"privacy.epsilon={epsilon}, delta={delta}: {error}; raise epsilon or delta") from None

    def spent(noise_multiplier: float) -> float:
        return epsilon_of(((noise_multiplier, sample_rate, steps),), delta)

    too_little = 0.8 * enough
    while spent(too_little) <= epsilon:
        enough, too_little = too_little, 0.8 * too_little
    while epsilon - spent(enough) > CALIBRATION_SLACK * epsilon:
        middle = (too_little + enough) / 2
        too_little, enough = (too_little, middle) if spent(middle) <= epsilon else (middle, enough)
    return enough


@contextmanager
def _without_noise_of_opacus() -> Iterator[None]:
    """Silence two warnings that touch no bound.

    RDP tells where its best order is at the edge of its list: its bound is then loose, but still a bound. PRV takes the
    log of 1 - sample rate, which is of no consequence at a rate of 1.
    """
    with warnings.catch_warnings(), np.errstate(divide="ignore"):
        warnings.filterwarnings("ignore", message="Optimal order is the")
        yield
