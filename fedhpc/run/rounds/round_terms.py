"""How the rounds of a session are formed: what `federate` needs of the config, in the open or by secure sums."""

import logging
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import nn

from fedhpc.aggregation.mean import Mean
from fedhpc.aggregation.norm_bound import longest_norm, shortened
from fedhpc.algorithms.catalogue import algorithm_of
from fedhpc.algorithms.deadline import LateMean, Timing
from fedhpc.algorithms.hostile_sites import HostileSites
from fedhpc.algorithms.local_layers import LocalLayers
from fedhpc.algorithms.rewards import Rewards
from fedhpc.algorithms.round_types import RoundConfig
from fedhpc.algorithms.run_state import RunState
from fedhpc.algorithms.secure_fedavg import SecureMean
from fedhpc.compression.error_feedback import CompressionConfig
from fedhpc.config.schema import RunConfig
from fedhpc.models.vector import layers_of, local_entries, parameter_count
from fedhpc.run.rounds.stored_updates import UpdateStore
from fedhpc.run.session import Session
from fedhpc.secagg.masks import SumTerms
from fedhpc.site.training.local_sgd import one_step
from fedhpc.site.training.update_scale import sum_scale, update_scales
from fedhpc.util.arrays import F32

LOG = logging.getLogger(__name__)


def round_terms(session: Session, timing: Timing | None = None) -> RoundConfig:
    """Return the terms of all rounds of a session; `timing`: when updates are ready, where a timer ends the rounds."""
    config = session.config
    exchange, layers = config.exchange, layers_of(session.place.model)
    up, down = (
        CompressionConfig(
            density, exchange.value_bits, layers, exchange.selection == "per_tensor", exchange.warm_up_rounds
        )
        for density in (exchange.density, exchange.down)
    )
    seed = config.seed if exchange.rounding == "stochastic" else None
    terms = RoundConfig(
        rounds=config.training.rounds,
        up=up,
        down=down,
        sites=config.site_names,
        weights=session.weights,
        rounding_seed=seed,
        secure=secure_mean(session),
        aggregation=config.aggregation,
        server=config.server,
        algorithm=algorithm_of(config.algorithm),
        local=local_layers(config, session.place.model),
        stress=_hostile_sites(config),
        scales=partial(update_scales, config, list(session.plans.values()), session.weights),
        rewards=_rewards(session),
        store=_store(session),
        rows=_rows(session),
    )
    return terms if timing is None else replace(terms, late=LateMean(terms, timing))


def _rows(session: Session) -> tuple[int, ...] | None:
    declared = session.declared.site_names
    return tuple(declared.index(name) for name in session.config.site_names) if session.absent else None


def _store(session: Session) -> UpdateStore | None:
    config = session.config
    if not config.contribution.store_updates:
        return None
    return UpdateStore(session.directory.updates, config.site_names, session.weights)


def _rewards(session: Session) -> Rewards | None:
    wanted = session.config.rewards
    own = tuple(site.name for site in session.sites)
    if wanted.altruism is None:
        return None
    return Rewards(wanted.altruism, wanted.memory, own, session.config.site_names, session.declared.site_names)


def _hostile_sites(config: RunConfig) -> HostileSites | None:
    """Return the hostile sites of a stress test; None where updates are not replaced."""
    stress = config.stress
    if stress is None or not stress.of_updates:
        return None
    indices = frozenset(map(config.site_names.index, stress.sites))
    return HostileSites(stress.case, indices, stress.amount, config.seed, stress.from_round - 1)


def local_layers(config: RunConfig, model: nn.Module) -> LocalLayers:
    """Return which entries of the parameters stay at each site."""
    if config.algorithm.local_layers == "none":
        return LocalLayers()
    return LocalLayers(local_entries(model, config.algorithm.local_layers))


def secure_mean(session: Session) -> SecureMean | None:
    """How a session forms the mean with `privacy.trust: sites`; None where it does so in the open."""
    config, place, weights = session.config, session.place, session.weights
    if session.grid is None:
        return None
    n, d = len(weights), parameter_count(place.model)
    return SecureMean(
        terms=SumTerms(
            sites=n,
            threshold=n - config.privacy.tolerated_dropouts,
            size=d,
            width_bytes=session.grid.width_bytes,
            colluding=config.privacy.colluding_sites or 0,
        ),
        grid=session.grid,
        sites=tuple(zip(config.site_names, weights, strict=True)),
        privacy=config.privacy,
        step=partial(_step_of_sum, session),
        tell=LOG.warning,
        identities=session.identities,
        threads=torch.get_num_threads(),
    )


def _step_of_sum(session: Session, state: RunState, gradient: F32) -> F32:
    """Return the mean update f32[d] of a private mean gradient f32[d]; bounded where the config asks for that."""
    config, place = session.config, session.place
    update = one_step(place.model, config.training, state.round, state.params, gradient)
    if not isinstance(config.aggregation, Mean) or not config.aggregation.bounded or place.plan is None:
        return update
    longest = longest_norm(sum_scale(config, place.plan, session.weights, state.round), update.size)
    bounded = shortened(update, longest)
    if bounded is not update:
        length = float(np.linalg.norm(update))
        LOG.warning(
            "round %d: the mean update has norm %.3g; noise and clipping of honest sites give %.3g at most. It was "
            "shortened to that. A site does not keep to the protocol; which one, a secure sum cannot tell",
            state.round + 1,
            length,
            longest,
        )
    return bounded
