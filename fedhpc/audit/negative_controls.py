"""One step, many trials: the claim must hold, and each way to break it from outside must be caught.

The plan is the audit's own: every unit takes part in one step, calibrated by the product to REFERENCE. What is
mutilated is what the product is given; its code stays what it is. These games are for gross faults, which they notice
without knowing how a fault would look; how much noise there is, and where, is measured in `fedhpc.audit.noise_laws`.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fedhpc.audit.bounds import Scores, claimed_epsilon
from fedhpc.audit.findings import WITH_DP, Finding, Guarantee, confirmed, epsilon_finding
from fedhpc.audit.mechanism import Mechanism, coins, mechanism_config
from fedhpc.audit.target import Subject
from fedhpc.privacy.plan import plan_privacy
from fedhpc.privacy.rdp import Steps
from fedhpc.util.arrays import F64
from fedhpc.util.rng import seed_of

REFERENCE = {"privacy.epsilon": 1.0, "privacy.delta": 1e-5}
NO_NOISE, NO_CLIP = "no noise", "no clipping"
ONE_SEED = "one seed at all sites"
ONE_STEP, TWO_SITES, ONE_ROUND = "canaries, one step", "canaries, two sites", "canaries, one round"
FAR = 1000.0


@dataclass(frozen=True)
class Trials:
    """How many independent rounds, of how many canaries each, by which seed for the coins."""

    runs: int
    canaries: int
    seed: int


@dataclass(frozen=True)
class Game:
    """What is repeated in each trial.

    Attributes:
        attack, setting: their names.
        claim: of one trial.
        noise: what the scores' noise is to be, in clip norms.
        play: from the coins to the scores in clip norms.
    """

    attack: str
    setting: str
    claim: Guarantee
    noise: float
    play: Callable[[NDArray[np.bool_]], F64]

    def finding(self, trials: Trials) -> Finding:
        """Return the bound from all trials."""
        return confirmed(partial(self._attempt, trials))

    def _attempt(self, trials: Trials, attempt: int) -> Finding:
        parts = []
        for run in range(trials.runs):
            included = coins(trials.seed, trials.canaries, self.attack, attempt, run)
            parts.append(Scores(self.play(included), included))
        scores = Scores.pooled(parts)
        found = epsilon_finding(self.attack, self.setting, scores, self.claim)
        return replace(found, details={**found.details, **self._measured(scores)})

    def _measured(self, scores: Scores) -> dict[str, float]:
        """Return the noise and the mean contribution of a canary, in clip norms, as they were sent."""
        without = scores.values[~scores.included]
        contribution = scores.values[scores.included].mean() - without.mean()
        return {"noise_planned": self.noise, "noise": float(without.std()), "contribution": float(contribution)}


def reference(subject: Subject) -> tuple[Mechanism, Guarantee]:
    """Return the private step at the audit's own plan, and its claim by the ledger's accountant."""
    config = subject.config.replace(REFERENCE)
    config = mechanism_config(config, rounds=1, local_epochs=1, sample_rate=1.0)
    with np.errstate(divide="ignore"):  # see claimed_epsilon
        plan = plan_privacy(config)
    mechanism = Mechanism(config, plan, config.privacy.clip_norm, subject.frozen, subject.device)
    return mechanism, _claim(mechanism)


def _claim(mechanism: Mechanism) -> Guarantee:
    plan, delta = mechanism.plan, mechanism.config.privacy.delta
    history = (Steps(plan.noise_multiplier, plan.sample_rate, plan.steps_per_round),)
    return Guarantee(claimed_epsilon(history, delta), delta)


def one_step(subject: Subject, trials: Trials) -> Iterator[Finding]:
    """The step as it is, without noise, and without the clip."""
    sound, claim = reference(subject)
    for setting, mechanism in {WITH_DP: sound, **mutilated(sound)}.items():
        yield Game(ONE_STEP, setting, claim, sound.plan.noise_multiplier, mechanism.one_round).finding(trials)


def mutilated(sound: Mechanism) -> dict[str, Mechanism]:
    """Return what a broken implementation would do, by its name; the noise without a clip is as large as with it."""
    sigma, clip_norm = sound.plan.noise_multiplier, sound.clip_norm
    unbounded = sound.config.replace({"privacy.clip_norm": clip_norm * FAR})
    return {
        NO_NOISE: replace(sound, plan=replace(sound.plan, noise_multiplier=0.0)),
        NO_CLIP: replace(sound, config=unbounded, plan=replace(sound.plan, noise_multiplier=sigma / FAR)),
    }


def two_sites(subject: Subject, trials: Trials) -> Iterator[Finding]:
    """An adversary who subtracts one hospital's update from another's: equal noise would cancel.

    With noise of their own the difference has sqrt(2) times the noise of either.
    """
    sound, claim = reference(subject)
    seeded = replace(sound, config=sound.config.replace({"privacy.noise_seed": seed_of(trials.seed, ONE_SEED) >> 32}))
    for setting, mechanism, names in ((WITH_DP, sound, ("first", "second")), (ONE_SEED, seeded, ("any", "any"))):
        play = partial(_difference, mechanism, *names)
        yield Game(TWO_SITES, setting, claim, math.sqrt(2) * sound.plan.noise_multiplier, play).finding(trials)


def _difference(mechanism: Mechanism, one: str, other: str, included: NDArray[np.bool_]) -> F64:
    """Scores of the first site's canaries. The second site has one canary, of a number that is not scored."""
    first = np.concatenate([[False], included])
    second = np.zeros_like(first)
    second[0] = True
    return (mechanism.one_round(first, one) - mechanism.one_round(second, other))[1:]


def sampling(subject: Subject, trials: Trials) -> Iterator[Finding]:
    """One round at the run's own noise and sample rate."""
    plan = subject.plan
    if plan.sample_rate == 1:
        return
    config = mechanism_config(
        subject.config,
        rounds=subject.config.training.rounds,
        local_epochs=subject.config.training.epochs_begun,
        sample_rate=plan.sample_rate,
    )
    sound = Mechanism(config, plan, config.privacy.clip_norm, subject.frozen, subject.device)
    noise = plan.noise_multiplier * math.sqrt(plan.steps_per_round)
    yield Game(ONE_ROUND, WITH_DP, _claim(sound), noise, sound.one_round).finding(trials)
