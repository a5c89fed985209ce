"""What one unit can do, without the noise that would hide it: clip norm, unit, denominator, and Poisson sampling.

The observed hospital adds no noise, so that each step shows which units were drawn and how far each one moved it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from fedhpc.audit.canaries import CanarySamples
from fedhpc.audit.findings import WITH_DP, Kind, Law, worst
from fedhpc.audit.mechanism import LEARNING_RATE, mechanism_config
from fedhpc.audit.noise_laws import BIAS_SHARE, canaries_alone
from fedhpc.audit.observation import Claim, Work, observed_config, private_gradients
from fedhpc.audit.statistics import LAW_RISK, dispersion_interval, share_interval
from fedhpc.audit.target import Subject
from fedhpc.config.privacy import Privacy
from fedhpc.models.vector import from_vector
from fedhpc.site.data.samples import Samples
from fedhpc.util.arrays import F64, I64
from fedhpc.util.rng import generator

UNITS, STEPS = 120, 100
"""Of the observed site, more where the sample rate is small: each count is to expect COUNT or more of what is drawn."""
COUNT = 15
DECLARED_SHARE = 1.25
"""Declared units over true ones: a mean over the true count would be so much too large."""
ROUNDING = 1e-3
ALL_UNITS = "all units each step"
DRAWN = 0.05
PATIENTS, COHORT = 6, 24
"""Real patients that are added one by one to a cohort of others; so few that even a large network takes seconds."""


class CanaryPatients(CanarySamples):
    """Canaries as the images of patients: patient p has `sizes[p]` of them."""

    def __init__(self, sizes: I64) -> None:
        super().__init__(np.ones(int(sizes.sum()), np.bool_))
        self.owner: I64 = np.repeat(np.arange(len(sizes)), sizes)
        self.patient = np.array([f"\x01patient{p}" for p in self.owner], "S16")


@dataclass(frozen=True)
class Drawn:
    """What each image moved at each step, f64[steps, images], in clip norms, and the unit of each image."""

    moved: F64
    unit: I64

    @property
    def by_unit(self) -> F64:
        """The length of each unit's contribution, f64[steps, units]."""
        squares = np.zeros((len(self.moved), int(self.unit.max()) + 1))
        np.add.at(squares.T, self.unit, np.square(self.moved).T)
        return np.sqrt(squares)

    @property
    def images(self) -> I64:
        """How many images of each unit took part, int64[steps, units]."""
        counts = np.zeros((len(self.moved), int(self.unit.max()) + 1), np.int64)
        np.add.at(counts.T, self.unit, (np.abs(self.moved) > DRAWN / 4).T)
        return counts


def unit_count(sample_rate: float) -> int:
    """Return how many units are observed."""
    return max(UNITS, math.ceil(COUNT / sample_rate))


def observe_units(claim: Claim) -> Drawn:
    """Rounds without noise; with privacy.unit=patient, of units of 1 to max_images_per_patient + 2 images."""
    p, quiet = claim.config.privacy, replace(claim.plan, noise_multiplier=0.0)
    units = unit_count(quiet.sample_rate)
    samples = CanaryPatients(sizes_of_units(p, units))
    canaries = canaries_alone(claim, len(samples.labels))
    wanted = max(STEPS, math.ceil(COUNT / quiet.sample_rate)) if quiet.sample_rate < 1 else 2
    rounds = -(-wanted // quiet.steps_per_round)
    config = observed_config(claim, rounds, LEARNING_RATE)
    model, declared = canaries.module.to(claim.device.device), round(DECLARED_SHARE * units)
    work = Work(claim.config.site_names[0], config, quiet, model, samples, declared, claim.device)
    steps = private_gradients(work, rounds).reshape(rounds * quiet.steps_per_round, -1)
    return Drawn(np.stack([canaries.scores(step) for step in steps]), samples.owner)


def sizes_of_units(privacy: Privacy, units: int) -> I64:
    """Return how many images each of so many observed units has."""
    most = min(privacy.max_images_per_patient, 8) + 2 if privacy.unit == "patient" else 1
    sizes: I64 = 1 + np.arange(units) % most
    return sizes


def unit_laws(claim: Claim, drawn: Drawn) -> Iterator[Law]:
    """Clip norm, denominator and unit, exactly; then the sampling, where not all units take part in each step."""
    p, by_unit = claim.config.privacy, drawn.by_unit
    largest = float(by_unit.max())
    name = f"longest contribution of a {p.unit}, in clip norms:"
    yield Law("clip norm", WITH_DP, name, largest, largest, largest, -np.inf, 1 + ROUNDING)
    yield worst(list(_contributions(by_unit)))
    if p.unit == "patient":
        most = float(drawn.images.max())
        limit = float(p.max_images_per_patient)
        yield Law("images of a patient", WITH_DP, "in one step, at most:", most, most, most, 1.0, limit)
    yield from sampling_laws(by_unit > DRAWN, claim.plan.sample_rate)


def _contributions(by_unit: F64) -> Iterator[Law]:
    """The mean over drawn units at each step: 1 with the declared denominator, whatever the true count is."""
    for step, lengths in enumerate(by_unit):
        present = lengths[lengths > DRAWN]
        mean = float(present.mean()) if len(present) else 1.0
        place = f"mean of drawn units, step {step + 1}:"
        yield Law("declared denominator", WITH_DP, place, mean, mean, mean, 1 - BIAS_SHARE, 1 + ROUNDING)


def sampling_laws(drawn: NDArray[np.bool_], sample_rate: float) -> Iterator[Law]:
    """Poisson sampling: `drawn` bool[steps, units] are independent draws of probability `sample_rate`.

    Fixed batches have no spread over steps, shuffled epochs none over units; units that come in groups too much.
    """
    steps, units = drawn.shape
    yield rate_law(drawn, sample_rate, WITH_DP, "claim")
    if sample_rate == 1:
        return
    by_step, by_unit = drawn.sum(1).astype(np.float64), drawn.sum(0).astype(np.float64)
    for law, counts, of in (("batch sizes vary", by_step, units), ("units vary", by_unit, steps)):
        low, high = dispersion_interval(counts, of, sample_rate, LAW_RISK)
        ratio = float(np.mean(np.square(counts - of * sample_rate)) / (of * sample_rate * (1 - sample_rate)))
        yield Law(f"Poisson sampling, {law}", WITH_DP, "variance / binomial's:", ratio, low, high, 1.0, 1.0)
    again = int((drawn[1:] & drawn[:-1]).sum())
    pairs = units * (steps - 1)
    low, high = share_interval(again, pairs, LAW_RISK)
    limit = sample_rate**2
    yield Law("Poisson sampling, steps", WITH_DP, "drawn twice in a row:", again / pairs, low, high, limit, limit)


def rate_law(drawn: NDArray[np.bool_], sample_rate: float, setting: str, kind: Kind) -> Law:
    """Return the share of units that take part in a step."""
    found, trials = int(drawn.sum()), drawn.size
    rate = found / trials
    low, high = share_interval(found, trials, LAW_RISK) if sample_rate < 1 else (rate, rate)
    return Law("sample rate", setting, f"share of {trials:,} draws:", rate, low, high, sample_rate, sample_rate, kind)


def all_units_control(claim: Claim) -> Iterator[Law]:
    """Every unit at every step, where a share of them was claimed: must be noticed by the same measurement."""
    q = claim.plan.sample_rate
    if q < 1:
        every = observe_units(replace(claim, plan=replace(claim.plan, sample_rate=1.0, steps_per_round=1)))
        yield rate_law(every.by_unit > DRAWN, q, ALL_UNITS, "control")


class Cohort:
    """Some patients of a site with at most `most` images each, as a whole training split (private)."""

    def __init__(self, samples: Samples, rows: I64) -> None:
        self._samples, self._rows = samples, rows
        self.labels, self.patient, self.early = samples.labels, samples.patient, samples.early

    def indices(self, split: str) -> I64:
        """See `Samples`."""
        return self._rows if split == "train" else self._rows[:0]

    def inputs(self, rows: I64) -> Tensor:
        """See `Samples`."""
        return self._samples.inputs(rows)


def real_patients(subject: Subject, seed: int) -> Law:
    """Add real patients one by one to a cohort of others, in one step without noise: how far does the sum move?"""
    p, rows = subject.config.privacy, subject.samples.indices("train")
    owner = subject.samples.patient[rows]
    people = generator(seed, "cohort").permutation(np.unique(owner))[: COHORT + PATIENTS]
    mine = {who: rows[owner == who][: p.max_images_per_patient] for who in people}
    cohort, added = people[PATIENTS:], people[:PATIENTS]
    base = _one_sum(subject, np.concatenate([mine[who] for who in (*cohort, added[0])]))
    moved = []
    for who in added[1:]:
        rows_with = np.concatenate([mine[who], *(mine[other] for other in (*cohort, added[0]))])
        moved.append(float(np.linalg.norm(_one_sum(subject, rows_with) - base)))
    largest = max(moved, default=0.0)
    images = p.max_images_per_patient if p.unit == "image" else 1
    name = f"longest move of the sum by {len(moved)} patients, in clip norms:"
    moved_most = Law("real patients", WITH_DP, name, largest, largest, largest, -np.inf, images + 10 * ROUNDING)
    return replace(moved_most, unnoised=True)


def _one_sum(subject: Subject, rows: I64) -> NDArray[np.float64]:
    """Return the clipped sum of one step on these rows, in clip norms, f64[d] (private)."""
    config = mechanism_config(subject.config, rounds=1, local_epochs=1, sample_rate=1.0)
    # A rate so large that what the parameters were does not round the difference.
    config = config.replace({"training.lr": 1000.0})
    plan = replace(subject.plan, noise_multiplier=0.0, sample_rate=1.0, steps_per_round=1)
    model: nn.Module = subject.model
    from_vector(model, subject.params)
    work = Work(subject.site, config, plan, model, Cohort(subject.samples, rows), len(rows), subject.device)
    found: F64 = private_gradients(replace(work, weight=COHORT), 1)[0, 0].astype(np.float64)
    from_vector(model, subject.params)
    return found
