"""The noise that makes a whole run meet its target epsilon, found before any training. All of it is public."""

from dataclasses import dataclass

from fedhpc.config import RunConfig
from fedhpc.privacy.accountant import Bounds, Charge, Mechanism, bounds_of, calibrate_gaussian
from fedhpc.privacy.skellam import calibrate


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
    p = config.privacy
    if p.epsilon is None:
        raise ValueError("privacy.epsilon=null: a run without privacy has no plan")
    if p.trust == "sites":
        return PrivacyPlan(calibrate(p.epsilon, p.delta, config.training.rounds), 1.0, 1, "skellam")
    steps = config.training.local_epochs * max(1, round(1 / p.sample_rate))
    sigma = calibrate_gaussian(p.epsilon, p.delta, p.sample_rate, steps * config.training.rounds)
    return PrivacyPlan(sigma, p.sample_rate, steps)
