"""The state of a federated run on disk: saved after each round, and read back where a run goes on.

`state/round-0007.npz` (rank 0) holds the global parameters and, by name, what every rank and what the aggregator keeps;
`sites/<site>/residual-0007.npz` what that site keeps. Neither file says what the arrays mean: an algorithm or a server
optimiser with more to keep needs no change here.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from fedhpc.aggregation.base import Arrays
from fedhpc.aggregation.iterate_average import IterateAverage
from fedhpc.algorithms.base import of_algorithm
from fedhpc.algorithms.catalogue import algorithm_of
from fedhpc.algorithms.rewards import with_rewards
from fedhpc.algorithms.run_state import RECEIVED, RunState, fresh_state, of, under
from fedhpc.compression.update import pack_arrays, unpack_arrays
from fedhpc.errors import InputError
from fedhpc.models.vector import to_vector
from fedhpc.records.checkpoint import Owner, load_state, save_state, saved_rounds
from fedhpc.run.rounds.resume import Resumed
from fedhpc.run.rounds.round_terms import local_layers
from fedhpc.run.session import Session
from fedhpc.transport.collectives import run_on_all_ranks
from fedhpc.transport.tls import AGGREGATOR_NAME
from fedhpc.util.arrays import Array

LOG = logging.getLogger(__name__)

START_COPIES, SMALL_BYTES = 16, 2**20
"""How many times the parameters' memory what all know at the start of a run may take, and how much beside it."""

PARAMS, PUBLIC, SERVER = "params", "public.", "server."


def save_run_state(session: Session, owners: Mapping[str, Owner], state: RunState) -> None:
    """Write what this rank keeps.

    Raises:
        FileError: a file cannot be written.
    """
    directory, round = session.directory, state.round
    for name, kept in state.sites.items():
        save_state(directory.site(name), "residual", round, kept, owners[name])
    if session.transport.rank == 0:
        directory.refuse_links()
        arrays = {PARAMS: state.params, **under(PUBLIC, state.public), **under(SERVER, state.server)}
        save_state(directory.state, "round", round, arrays, owners[AGGREGATOR_NAME])


def loaded_state(session: Session, resumed: Resumed) -> RunState:
    """Return the state that the run goes on from, or starts from. Rank 0 sends the parameters once, dense.

    Raises:
        InputError: at every rank, where a file is not the state of this run.
    """
    transport = session.transport
    config, names = session.config, [site.name for site in session.sites]
    initial, algorithm = to_vector(session.place.model), algorithm_of(config.algorithm)
    rule = config.aggregation.initial(initial.size, len(session.declared.data.sites))
    local = local_layers(config, session.place.model)
    fresh = local.added_to(fresh_state(initial, names, config.server, algorithm, rule))
    rewards = config.rewards.altruism is not None
    fresh = with_rewards(fresh, len(session.declared.data.sites)) if rewards else fresh
    mine = run_on_all_ranks(transport, lambda: _read(session, resumed, fresh) if resumed.first else fresh)
    if rewards:
        # Only rank 0 has the global model: what a site has is among its own files.
        return replace(mine, round=resumed.first)
    payload = pack_arrays({PARAMS: mine.params, **under(PUBLIC, mine.public)}) if transport.rank == 0 else None
    limit_bytes = START_COPIES * mine.params.nbytes + SMALL_BYTES
    start = unpack_arrays(transport.broadcast(payload, "update"), limit_bytes=limit_bytes)
    params = start[PARAMS].astype(np.float32, copy=False)
    return replace(mine, round=resumed.first, params=params, public=of(PUBLIC, start))


def fresh_average(session: Session) -> IterateAverage:
    """Return the mean of the last global models, before the first of them."""
    training = session.config.training
    return IterateAverage.over_last(training.average_last, training.rounds)


def _read(session: Session, resumed: Resumed, fresh: RunState) -> RunState:
    directory, first, owners = session.directory, resumed.first, resumed.owners
    sites = dict(fresh.sites)
    for name, kept in fresh.sites.items():
        folder, last = directory.site(name), resumed.residuals[name]
        if last and saved_rounds(folder, "residual"):
            found = load_state(folder, "residual", last, owners[name])
            sites[name] = _checked(found, kept, f"{folder}: residual after round {last}")
        elif last and (of_algorithm(kept) or RECEIVED in kept):
            key = "rewards" if RECEIVED in kept else "the section algorithm"
            raise InputError(
                f"{folder}: what site {name} keeps for {key} is missing, and its next rounds count on "
                "it. Restore the folder from a backup, or start in a new --run-dir",
                code="resume.site-state-missing",
            )
        else:
            LOG.warning(
                "site %s: nothing of this run is here; it joins with the full model", name, extra={"site": name}
            )
    if session.transport.rank:
        return replace(fresh, sites=sites)
    saved = load_state(directory.state, "round", first, owners[AGGREGATOR_NAME])
    where = f"{directory.state}: round {first}"
    params = _checked(_only(PARAMS, saved), {PARAMS: fresh.params}, where)[PARAMS].astype(np.float32, copy=False)
    server = _checked(of(SERVER, saved), fresh.server, where)
    return replace(fresh, params=params, public=of(PUBLIC, saved), server=server, sites=sites)


def _checked(found: Arrays, wanted: Arrays, where: str) -> Arrays:
    """`found`, where its names, types and shapes are those of a fresh state."""
    if _shapes(found) != _shapes(wanted):
        raise InputError(
            f"{where}: holds {', '.join(sorted(found)) or 'nothing'}, this run keeps {', '.join(sorted(wanted))}, of "
            "the model's size; another version of fedhpc wrote it. Go on with that version, or start in a new "
            "--run-dir",
            code="resume.other-state",
        )
    return found


def _shapes(arrays: Arrays) -> dict[str, tuple[object, ...]]:
    return {name: (array.dtype, *array.shape) for name, array in arrays.items()}


def _only(name: str, arrays: Arrays) -> dict[str, Array]:
    return {name: arrays[name]} if name in arrays else {}
