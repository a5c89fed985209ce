"""What a hospital sends that trains as the audit says: the payload of `site_round`, decoded."""

from dataclasses import dataclass

import numpy as np
from torch import nn

from fedhpc.algorithms.fedavg import site_round
from fedhpc.algorithms.round_types import Participant, RoundConfig
from fedhpc.algorithms.run_state import RESIDUAL, RunState, residual_of
from fedhpc.compression.codec import decode
from fedhpc.compression.error_feedback import CompressionConfig
from fedhpc.config.exchange import Exchange
from fedhpc.config.schema import RunConfig
from fedhpc.models.device import Device
from fedhpc.models.vector import from_vector, to_vector
from fedhpc.privacy.plan import PrivacyPlan
from fedhpc.site.data.samples import Samples
from fedhpc.site.training.dp_sgd import Units, entropy
from fedhpc.site.training.local_sgd import (
    LocalRound,
    PrivateWork,
    gradient_weight,
    local_steps,
    train_plain,
    train_private,
)
from fedhpc.site.training.regularizers import NOTHING, Regularizer
from fedhpc.util.arrays import F32

WORST_CASE = Exchange(density=1.0, value_bits=32)
"""All entries are sent as they are: nothing is hidden from the adversary but by privacy."""


@dataclass
class AuditedSite:
    """A hospital without a ledger, which trains by the product's code at whatever plan it is given.

    Attributes:
        name, index: as of a `Hospital` (public).
        model: set to the global parameters at each round.
        samples: what it trains on (private).
        config: how it trains; `privacy.noise_seed` is for the control of one seed at all sites.
        plan: the noise really added, in a control less than the plan that is claimed; None trains without privacy.
        weight: the declared number of units.
        device: where to compute.
    """

    name: str
    index: int
    model: nn.Module
    samples: Samples
    config: RunConfig
    plan: PrivacyPlan | None
    weight: int
    device: Device

    def train(self, params: F32, round: int, regularizer: Regularizer = NOTHING) -> F32:
        """Local - global, f32[d], as `Hospital.train` makes it."""
        from_vector(self.model, params)
        local = LocalRound(self.model, self.samples, self.config, self.name, round, self.device, _ignore, regularizer)
        if self.plan is None:
            train_plain(local)
        else:
            p = self.config.privacy
            units = Units.of(self.samples, p.unit, p.max_images_per_patient)
            fresh = entropy(p.noise_seed, self.name, round)
            work = PrivateWork(units, self.plan, fresh, self.weight)
            train_private(local, work)
        return to_vector(self.model) - params

    def gradient_weight(self, round: int) -> float:
        """As of `Hospital`."""
        training, images = self.config.training, len(self.samples.indices("train"))
        plain = local_steps(images, training)
        return gradient_weight(training, round, plain if self.plan is None else self.plan.steps_per_round)

    def can_afford(self, round: int) -> bool:
        """Always: nothing that an audit trains is released."""
        return True


def _ignore(done: int, total: int) -> None:
    """Steps of the audit's own trainings are not shown."""


def released(site: Participant, params: F32, round: int, exchange: Exchange) -> F32:
    """The aggregator's view of one round of `site` from the global `params`, with no residual yet: f32[d]."""
    return with_memory(site, RunState(round, params), np.zeros_like(params), exchange)[0]


def with_memory(site: Participant, state: RunState, residual: F32, exchange: Exchange) -> tuple[F32, F32]:
    """(the aggregator's view, what error feedback keeps) of one round, each f32[d]."""
    coding = CompressionConfig(exchange.density, exchange.value_bits)
    terms = RoundConfig(state.round + 1, coding, coding, (site.name,), (1,))
    payload, kept = site_round(site, state, {RESIDUAL: residual}, terms)
    update = decode(payload, sender=site.index, round=state.round, size=state.params.size)
    return update.entries.dense(), residual_of(kept)
