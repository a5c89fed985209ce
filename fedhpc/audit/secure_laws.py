"""`privacy.trust: sites`: what a site gives to the secure sum, and what noise is left if only some are honest."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedhpc.audit.canaries import Canaries, CanarySamples
from fedhpc.audit.findings import WITH_DP, Law, worst
from fedhpc.audit.ledger_laws import epsilon_by_google
from fedhpc.audit.mechanism import coins
from fedhpc.audit.noise_laws import CANARIES, canaries_alone
from fedhpc.audit.observation import Claim, Work, hospital_at_work
from fedhpc.audit.statistics import LAW_RISK, correlation_limit, largest_correlation, spread_interval
from fedhpc.audit.unit_laws import DECLARED_SHARE, ROUNDING, UNITS, CanaryPatients, Drawn, sizes_of_units
from fedhpc.models.vector import parameter_count, to_vector
from fedhpc.privacy.rdp import Steps
from fedhpc.privacy.skellam import SMALLEST_VARIANCE
from fedhpc.site.data.samples import Samples
from fedhpc.site.training.secure_contribution import IntegerGrid, plan_grid
from fedhpc.util.arrays import F64

ROUNDS = 24
"""At each site: with it 0.7 of a share's noise is told from the whole."""
FINE_UNITS = 2**30
"""Of a grid on which the smallest noise that Skellam's sampler draws is 10^-5 of a clip norm: none, in effect."""
ACCOUNTING = 0.01


@dataclass(frozen=True)
class Shares:
    """What one site gave, f64[rounds, canaries] along the canaries' directions, in clip norms, before any mask."""

    site: str
    scores: F64
    included: NDArray[np.bool_]

    @property
    def noise(self) -> F64:
        """Of canaries that took no part."""
        return self.scores[:, ~self.included]


@dataclass(frozen=True)
class Contributor:
    """A site, what it trains on, and its declared weight."""

    site: str
    samples: Samples
    weight: int


def _given(claim: Claim, one: Contributor, canaries: Canaries, grid: IntegerGrid, rounds: int) -> F64:
    """Return the scores of a site's vectors over so many rounds, [rounds, canaries]."""
    model = canaries.module.to(claim.device.device)
    start = to_vector(model)
    work = Work(one.site, claim.config, claim.plan, model, one.samples, one.weight, claim.device)
    found = []
    with hospital_at_work(work, lambda done, total: None) as hospital:
        for round in range(rounds):
            hospital.enter(round)
            vector = hospital.contribute(start, round, grid)
            # A contribution is a gradient; scores are of what a step adds to the parameters.
            found.append(canaries.scores((-vector / grid.clip_units).astype(np.float32)))
    return np.stack(found)


def run_grid(claim: Claim, size: int) -> IntegerGrid:
    """Return the grid that the run itself would plan for a model of this size."""
    weights = [site.weight or 1 for site in claim.config.data.sites]
    rounds = claim.config.training.rounds
    return plan_grid(claim.plan.noise_multiplier, size, weights, claim.config.honest_sites, rounds)


def observe_shares(claim: Claim) -> tuple[list[Shares], IntegerGrid]:
    """ROUNDS contributions of every site, half of whose canaries took part."""
    canaries = canaries_alone(claim, CANARIES)
    grid = run_grid(claim, parameter_count(canaries.module))
    # The same at all sites, so that equal noise is in the same places.
    included = coins(claim.seed, CANARIES, "shares")
    found = []
    for site in claim.config.site_names:
        scores = _given(claim, Contributor(site, CanarySamples(included), CANARIES), canaries, grid, ROUNDS)
        found.append(Shares(site, scores, included))
    return found, grid


def share_laws(claim: Claim, shares: Sequence[Shares], grid: IntegerGrid) -> Iterator[Law]:
    """Each site's share, their independence, and the epsilon of the sum with the honest sites' shares alone."""
    planned = math.sqrt(grid.site_variance) / grid.clip_units
    laws, risk = [], LAW_RISK / len(shares)
    for share in shares:
        low, high = (end / planned for end in spread_interval(share.noise, risk))
        measured = float(np.sqrt(np.mean(np.square(share.noise)))) / planned
        place = f"measured / planned, {share.site}:"
        laws.append(Law("share of the noise", WITH_DP, place, measured, low, high, 1.0, 1.0))
    yield worst(laws)
    length = min(share.noise.shape[1] for share in shares)
    rows = np.concatenate([share.noise[:, :length] for share in shares])
    limit, largest = correlation_limit(length, len(rows) ** 2 // 2, LAW_RISK), largest_correlation(rows)
    name = f"largest correlation of {len(rows)} shares:"
    yield Law("shares never repeat", WITH_DP, name, largest, largest, largest, -np.inf, limit)
    yield _honest_law(claim, shares, grid)


def honest_sites(claim: Claim) -> int:
    """From the config, not from the product: those that neither collude nor drop out."""
    p = claim.config.privacy
    return len(claim.config.data.sites) - (p.colluding_sites or 0) - p.tolerated_dropouts


def _honest_law(claim: Claim, shares: Sequence[Shares], grid: IntegerGrid) -> Law:
    """Another accountant's epsilon of the run if no more than the honest sites' shares, as measured, hide a unit."""
    p, honest = claim.config.privacy, honest_sites(claim)
    noise = np.concatenate([share.noise.ravel() for share in shares])
    longest = grid.l2 / grid.clip_units
    rounds = claim.config.training.rounds

    def epsilon(deviation: float) -> float:
        together = Steps(deviation * math.sqrt(honest) / longest, 1.0, rounds)
        return epsilon_by_google([together], p.delta, gaussian=False)

    small, large = spread_interval(noise, LAW_RISK)
    found = epsilon(float(np.sqrt(np.mean(np.square(noise)))))
    name = f"epsilon of {rounds} rounds by {honest} shares as measured:"
    limit = float(p.epsilon or 0.0) * (1 + ACCOUNTING)
    return Law("honest sites alone", WITH_DP, name, found, epsilon(large), epsilon(small), -np.inf, limit)


def observe_secure_units(claim: Claim) -> Drawn:
    """One contribution of patients of several images, on a grid so fine that its noise is none."""
    samples = CanaryPatients(sizes_of_units(claim.config.privacy, UNITS))
    canaries = canaries_alone(claim, len(samples.labels))
    size = parameter_count(canaries.module)
    fine = IntegerGrid(FINE_UNITS, FINE_UNITS * (1 + 2**-40) + math.sqrt(size) / 2, SMALLEST_VARIANCE, 8)
    site = Contributor(claim.config.site_names[0], samples, round(DECLARED_SHARE * UNITS))
    # A hospital gives no share of less noise than its plan is charged for.
    plan = replace(claim.plan, noise_multiplier=math.sqrt(SMALLEST_VARIANCE) / (2 * fine.l2))
    moved = _given(replace(claim, plan=plan), site, canaries, fine, 1)
    return Drawn(moved, samples.owner)


def secure_unit_laws(claim: Claim, drawn: Drawn) -> Iterator[Law]:
    """No unit is longer than the clip norm, every unit is in the sum, and none is there with too many images."""
    p, lengths = claim.config.privacy, drawn.by_unit[0]
    for law, value, least, most in (
        ("longest contribution", float(lengths.max()), -np.inf, 1 + ROUNDING),
        ("shortest contribution", float(lengths.min()), 0.97, np.inf),
        ("images of a unit", float(drawn.images.max()), 1.0, float(p.max_images_per_patient)),
    ):
        yield Law(f"secure sum, {law}", WITH_DP, f"of a {p.unit}:", value, value, value, least, most)
