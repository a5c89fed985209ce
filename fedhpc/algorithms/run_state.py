"""What is carried from round to round, and so saved after each and given back at a resume."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from fedhpc.aggregation.base import Arrays, ServerStep
from fedhpc.algorithms.base import Algorithm, with_algorithm
from fedhpc.util.arrays import F32, Array

RESIDUAL, OPTIMIZER, RULE = "residual", "optimizer.", "rule."
RECEIVED = "received"
"""What a site keeps where each has a model of its own (`fedhpc.algorithms.rewards`): its parameters, f32[d]."""


@dataclass(frozen=True)
class RunState:
    """The state before a round, as one rank has it; saved and resumed by name (`fedhpc.run.rounds.saved_state`).

    Attributes:
        round: the number of rounds done.
        params: the global parameters, f32[d]; public, the same bits at every rank.
        public: what else every rank knows, the same bits at every rank.
        server: what the aggregator keeps (rank 0): `residual` f32[d], and what aggregation rule, server optimiser and
            algorithm keep.
        sites: what each of this rank's sites keeps, by name: `residual` f32[d], and what the algorithm keeps there;
            private where the run is.
    """

    round: int
    params: F32
    public: Arrays = field(default_factory=dict)
    server: Arrays = field(default_factory=dict)
    sites: Mapping[str, Arrays] = field(default_factory=dict)


def residual_of(kept: Arrays) -> F32:
    """Return what error feedback keeps, f32[d]."""
    return kept[RESIDUAL].astype(np.float32, copy=False)


def fresh_state(
    params: F32,
    sites: Sequence[str],
    server: ServerStep,
    algorithm: Algorithm | None = None,
    rule: Arrays = MappingProxyType({}),
) -> RunState:
    """Return the state before the first round, from the initial parameters f32[d], for this rank's `sites`.

    Args:
        params: the initial parameters, f32[d].
        sites: the names of this rank's sites.
        server: the server optimiser.
        algorithm: what is added to FedAvg; None for nothing.
        rule: what the aggregation rule keeps at first.
    """
    nothing = {RESIDUAL: np.zeros(params.size, np.float32)}
    first = (algorithm or Algorithm()).initial(params.size)
    kept = {**under(OPTIMIZER, server.initial(params.size)), **under(RULE, rule)}
    return RunState(
        round=0,
        params=params,
        public=with_algorithm({}, first.public),
        server=with_algorithm({**nothing, **kept}, first.server),
        sites={name: with_algorithm(nothing, first.site) for name in sites},
    )


def rewarded(state: RunState) -> dict[str, F32]:
    """Return the parameters f32[d] of each of this rank's sites that has its own; none without rewards."""
    return {name: own_params(state, name) for name, kept in state.sites.items() if RECEIVED in kept}


def own_params(state: RunState, site: str) -> F32:
    """Return what a site trains from, f32[d]: the global parameters, or its own where it has some."""
    return state.sites[site].get(RECEIVED, state.params).astype(np.float32, copy=False)


def under(prefix: str, arrays: Arrays) -> dict[str, Array]:
    """Return arrays with a prefix before each name."""
    return {prefix + name: array for name, array in arrays.items()}


def of(prefix: str, arrays: Arrays) -> dict[str, Array]:
    """Return the arrays whose names have a prefix, without it."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
