"""The noise that makes a whole run meet its target epsilon, found before any training. All of it is public."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from fedhpc.config.schema import RunConfig
from fedhpc.errors import PrivacyError
from fedhpc.privacy.accountant import Bounds, Charge, Mechanism, bounds_of, calibrate_beside, calibrate_gaussian
from fedhpc.privacy.rdp import Steps
from fedhpc.privacy.skellam import LEAST_NOISE, MOST_NOISE, calibrate

SHARE_EXACTNESS = 1 - 2**-24
"""A share has a variance of at least 2^26 (`skellam.SMALLEST_VARIANCE`): the 9 / 4 of `skellam.variance_for`, which
only the full noise has whole, is less than this part of its standard deviation."""


BEFORE_ROUNDS = -1
"""The round of a charge for what is released before the first round, which is 0."""


@dataclass(frozen=True)
class PrivacyPlan:
    """The noise that makes a whole run meet its target at one site (public); steps are equal at all sites.

    Attributes:
        noise_multiplier, sample_rate, steps_per_round, mechanism: of the rounds.
        feature_mean_noise: the noise multiplier of the one release before them, by the same mechanism; None: none.
    """

    noise_multiplier: float
    sample_rate: float
    steps_per_round: int
    mechanism: Mechanism = "gaussian"
    feature_mean_noise: float | None = None

    def charge(self, round: int) -> Charge:
        """Return what one round costs."""
        return Charge(round, self.noise_multiplier, self.sample_rate, self.steps_per_round, self.mechanism)

    @property
    def before_rounds(self) -> tuple[Charge, ...]:
        """What is released before the first round: the mean of the features, with model.feature_mean=sites."""
        if self.feature_mean_noise is None:
            return ()
        return (Charge(BEFORE_ROUNDS, self.feature_mean_noise, 1.0, 1, self.mechanism),)

    def charges(self, rounds: int) -> tuple[Charge, ...]:
        """All charges of so many rounds, and of what comes before them."""
        return (*self.before_rounds, *map(self.charge, range(rounds)))

    def bounds(self, rounds: int, delta: float) -> Bounds:
        """Return what so many rounds will have cost, with what comes before them."""
        return bounds_of(self.charges(rounds), delta)


def plan_privacy(config: RunConfig, site: str | None = None) -> PrivacyPlan:
    """Calibrate the noise multiplier by PRV for all rounds of the run (Gopi et al. 2021).

    With schedule.policy=plan a slow `site` has a smaller sample rate, and the noise that costs the same with it; None
    is a site of normal speed.

    With privacy.trust=sites it is that of the honest sites' Skellam noise together, one release a round, by RDP.

    Raises:
        PrivacyError: where no noise reaches the target.
    """
    p, rounds, plan = config.privacy, config.training.rounds, without_noise(config, site)
    if p.epsilon is None:
        raise ValueError("privacy.epsilon=null: a run without privacy has no plan")
    before = tuple(Steps(charge.noise_multiplier, 1.0, charge.steps) for charge in plan.before_rounds)
    if p.trust == "sites":
        return replace(plan, noise_multiplier=calibrate(p.epsilon, p.delta, rounds, before))
    steps = plan.steps_per_round * rounds
    if before:
        return replace(plan, noise_multiplier=calibrate_beside(p.epsilon, p.delta, steps, before))
    return replace(plan, noise_multiplier=calibrate_gaussian(p.epsilon, p.delta, plan.sample_rate, steps))


def site_plans(config: RunConfig) -> dict[str, PrivacyPlan]:
    """Return the plan of each site, by name. Sites of one effort have the same."""
    return {name: plan_privacy(config, name) for name in config.site_names}


def without_noise(config: RunConfig, site: str | None = None) -> PrivacyPlan:
    """All of the plan of a site but the noise multiplier, which takes seconds to find; see `plan_privacy`."""
    p = config.privacy
    mean = p.feature_mean_noise if config.model.feature_mean == "sites" else None
    if p.trust == "sites":
        return PrivacyPlan(0.0, 1.0, 1, "skellam", mean)
    steps = config.training.epochs_begun * max(1, round(1 / p.sample_rate))
    effort = 1.0 if site is None else config.effort(site)
    return PrivacyPlan(0.0, p.sample_rate * effort, steps, feature_mean_noise=mean)


def check_plan(config: RunConfig, plan: PrivacyPlan, site: str | None = None) -> None:
    """Check a plan that came from the aggregator: it must be of the mechanism that this site's config makes it run.

    The noise multiplier may be any that can be calibrated: it is charged as it is, and the run's epsilon and the site
    ledger are limits.

    Raises:
        PrivacyError: a plan that would be charged as another mechanism, sample rate or number of steps.
    """
    wanted = without_noise(config, site)
    if replace(plan, noise_multiplier=0.0) != wanted or not (LEAST_NOISE <= plan.noise_multiplier <= MOST_NOISE):
        raise PrivacyError(
            f"privacy plan from the aggregator: {plan}; the config asks for {wanted} with a noise "
            f"multiplier from {LEAST_NOISE:g} to {MOST_NOISE:g}. The aggregator does not keep to the protocol: do not "
            "train with it",
            code="privacy.plan",
        )


def check_plans(config: RunConfig, plans: Mapping[str, PrivacyPlan]) -> None:
    """Check the plans of all sites that came from the aggregator.

    With privacy.trust=sites a site adds a share of the run's noise, and is charged for its own plan: they must be one.

    Raises:
        PrivacyError: as `check_plan`; or plans that differ where all sites share the noise.
    """
    for name in config.site_names:
        check_plan(config, plans[name], name)
    if config.privacy.trust == "sites" and len({plans[name] for name in config.site_names}) > 1:
        raise PrivacyError(
            "privacy plan from the aggregator: sites that share the noise were given different noise multipliers, so "
            "that less noise would be added than some are charged for. The aggregator does not keep to the protocol: "
            "do not train with it",
            code="privacy.plan",
        )


def bound_note(config: RunConfig) -> str | None:
    """Return what the bound on one unit of a private run rests on beyond arithmetic (public); None where on nothing.

    It is proven for a linear head on a frozen backbone, and for units that are computed one by one. For a network in
    batches it is measured; see `fedhpc.site.per_example.clipped_sum`.
    """
    p = config.privacy
    if not config.private or config.model.backbone is not None or p.max_physical_batch == 1:
        return None
    coarse = "" if config.runtime.precision == "fp32" else f", and is wider by 1 % with {config.runtime.precision}"
    return (
        f"the bound on one {p.unit} is measured, not proven, for a network in batches: it holds for an aggregator that "
        f"keeps to the protocol{coarse}. privacy.max_physical_batch: 1 proves it for any, and is slower"
    )


def epsilon_if_unmasked(config: RunConfig, plan: PrivacyPlan) -> float:
    """Return the epsilon of all of one site's own vectors, seen without masks (privacy.trust=sites; public).

    That is what is left where the assumption of the secure sum fails: more sites collude than privacy.colluding_sites,
    or an aggregator that may depart from the protocol does. The site's own share of the noise, 1 / honest_sites of the
    variance, is then all that covers its patients. Same mechanism, same accountant, noise multiplier divided by the
    square root of the number of shares.
    """
    share = SHARE_EXACTNESS / math.sqrt(config.honest_sites)
    mean = None if plan.feature_mean_noise is None else plan.feature_mean_noise * share
    alone = replace(plan, noise_multiplier=plan.noise_multiplier * share, feature_mean_noise=mean)
    return alone.bounds(config.training.rounds, config.privacy.delta).epsilon
