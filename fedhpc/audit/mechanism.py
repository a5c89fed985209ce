"""The private training itself under test: canaries alone, through `site_round`, at any plan."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedhpc.audit.canaries import Blank, Canaries, CanarySamples, canary_norm, head_canaries, network_canaries
from fedhpc.audit.transmission import WORST_CASE, AuditedSite, released
from fedhpc.config.schema import RunConfig
from fedhpc.models.device import Device
from fedhpc.models.vector import to_vector
from fedhpc.privacy.plan import PrivacyPlan
from fedhpc.util.arrays import F64
from fedhpc.util.rng import generator

# So small that the parameters hardly move, and each canary's gradient stays what it was: the adversary's choice.
LEARNING_RATE = 1e-4
CLASSES = 2


def mechanism_config(config: RunConfig, *, rounds: int, local_epochs: int, sample_rate: float) -> RunConfig:
    """Return the run's clip norm and unit, and SGD whose update is the plain sum of clipped gradients and noise.

    DP bounds what any adversary learns, so the audit may choose all of the training but what the ledger counts.
    """
    return config.replace(
        {
            "training.rounds": rounds,
            "training.local_epochs": local_epochs,
            "training.optimizer": "sgd",
            "training.lr": LEARNING_RATE,
            "training.lr_schedule": "constant",
            "training.momentum": 0.0,
            "training.weight_decay": 0.0,
            "training.random_flip": False,
            "privacy.sample_rate": sample_rate,
            "privacy.noise_seed": None,
            "privacy.max_physical_batch": 1024,
        }
    )


def coins(seed: int, count: int, *where: str | int) -> NDArray[np.bool_]:
    """Return which canaries take part: each with chance 1/2, by itself."""
    return generator(seed, "canary coins", *where).random(count) < 0.5


@dataclass(frozen=True)
class Mechanism:
    """How canaries are trained.

    Attributes:
        config: of `mechanism_config`, perhaps mutilated.
        plan: the noise really added.
        clip_norm: the claimed one, in which canaries and scores are measured.
        head: through the linear head of a frozen backbone, or through a network's layers: the product clips the two
            in ways of their own.
        device: where to compute.
    """

    config: RunConfig
    plan: PrivacyPlan
    clip_norm: float
    head: bool
    device: Device

    def canaries(self, count: int) -> Canaries:
        """Canaries alone."""
        norm = canary_norm(self.clip_norm, self.head)
        if self.head:
            return head_canaries(None, count, CLASSES, norm)
        return network_canaries(Blank(CLASSES), count, CLASSES, norm)

    def in_clip_norms(self, scores: F64, count: int) -> F64:
        """Scores as multiples of one clipped gradient: noise in them has the noise multiplier per step.

        The declared number of units is the number of canaries.
        """
        return scores * (self.plan.sample_rate * count / (self.config.training.lr * self.clip_norm))

    def one_round(self, included: NDArray[np.bool_], name: str = "audited") -> F64:
        """Return the scores f64[canaries] of one round of a hospital of that name which has the `included` canaries."""
        count = len(included)
        canaries = self.canaries(count)
        model = canaries.module.to(self.device.device)
        site = AuditedSite(name, 0, model, CanarySamples(included), self.config, self.plan, count, self.device)
        update = released(site, to_vector(model), 0, WORST_CASE)
        return self.in_clip_norms(canaries.scores(update), count)
