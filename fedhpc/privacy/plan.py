"""The noise that makes a whole run meet its target epsilon, found before any training. All of it is public."""

import math
from dataclasses import dataclass, replace

from fedhpc.config.schema import RunConfig
from fedhpc.errors import PrivacyError
from fedhpc.privacy.accountant import Bounds, Charge, Mechanism, bounds_of, calibrate_gaussian
from fedhpc.privacy.skellam import LEAST_NOISE, MOST_NOISE, calibrate

SHARE_EXACTNESS = 1 - 2**-24
"""A share has a variance of at least 2^26 (`skellam.SMALLEST_VARIANCE`): the 9 / 4 of `skellam.variance_for`, which
only the full noise has whole, is less than this part of its standard deviation."""


@dataclass(frozen=True)
class PrivacyPlan:
    """The noise that makes a whole run meet its target (public); equal at all sites, as sample rate and steps are."""

    noise_multiplier: float
    sample_rate: float
    steps_per_round: int
    mechanism: Mechanism = "gaussian"

    def charge(self, round: int) -> Charge:
        """What one round costs."""
        return Charge(round, self.noise_multiplier, self.sample_rate, self.steps_per_round, self.mechanism)

    def bounds(self, rounds: int, delta: float) -> Bounds:
        """What so many rounds will have cost."""
        return bounds_of(map(self.charge, range(rounds)), delta)


def plan_privacy(config: RunConfig) -> PrivacyPlan:
    """Calibrate the noise multiplier by PRV for all rounds of the run (Gopi et al. 2021).

    With privacy.trust=sites it is that of the honest sites' Skellam noise together, one release a round, by RDP.

    Raises:
        PrivacyError: where no noise reaches the target.
    """
    p, rounds, plan = config.privacy, config.training.rounds, without_noise(config)
    if p.epsilon is None:
        raise ValueError("privacy.epsilon=null: a run without privacy has no plan")
    if p.trust == "sites":
        return replace(plan, noise_multiplier=calibrate(p.epsilon, p.delta, rounds))
    steps = plan.steps_per_round * rounds
    return replace(plan, noise_multiplier=calibrate_gaussian(p.epsilon, p.delta, p.sample_rate, steps))


def without_noise(config: RunConfig) -> PrivacyPlan:
    """All of a run's plan but the noise multiplier, which takes seconds to find."""
    p = config.privacy
    if p.trust == "sites":
        return PrivacyPlan(0.0, 1.0, 1, "skellam")
    return PrivacyPlan(0.0, p.sample_rate, config.training.local_epochs * max(1, round(1 / p.sample_rate)))


def check_plan(config: RunConfig, plan: PrivacyPlan) -> None:
    """Check a plan that came from the aggregator: it must be of the mechanism that this site's config makes it run.

    The noise multiplier may be any that can be calibrated: it is charged as it is, and the run's epsilon and the site
    ledger are limits.

    Raises:
        PrivacyError: a plan that would be charged as another mechanism, sample rate or number of steps.
    """
    if replace(plan, noise_multiplier=0.0) != without_noise(config) or not (
        LEAST_NOISE <= plan.noise_multiplier <= MOST_NOISE
    ):
        raise PrivacyError(
            f"privacy plan from the aggregator: {plan}; the config asks for {without_noise(config)} with a noise "
            f"multiplier from {LEAST_NOISE:g} to {MOST_NOISE:g}. The aggregator does not keep to the protocol: do not "
            "train with it",
            code="privacy.plan",
        )


def epsilon_if_unmasked(config: RunConfig, plan: PrivacyPlan) -> float:
    """Return the epsilon of one site's own vectors over all rounds, seen without masks (privacy.trust=sites; public).

    That is what is left where the assumption of the secure sum fails: more sites collude than privacy.colluding_sites,
    or an aggregator that may depart from the protocol does. The site's own share of the noise, 1 / honest_sites of the
    variance, is then all that covers its patients. Same mechanism, same accountant, noise multiplier divided by the
    square root of the number of shares.
    """
    alone = plan.noise_multiplier / math.sqrt(config.honest_sites) * SHARE_EXACTNESS
    return replace(plan, noise_multiplier=alone).bounds(config.training.rounds, config.privacy.delta).epsilon
