"""The updates of every round as rank 0 received them: written during the run, read to tell who contributed.

`state/updates/round-0007.npz` (mode 0600) holds the messages of the seventh round as they came, and names and weights
of the sites that took part; that of the first round the initial parameters too. With privacy on a message is private
already, so that everything computed of it is post-processing.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedhpc.aggregation.contribution import MOST_SITES, History
from fedhpc.algorithms.base import Algorithm
from fedhpc.algorithms.catalogue import algorithm_of
from fedhpc.algorithms.fedavg import check_plausible
from fedhpc.algorithms.run_state import RunState
from fedhpc.compression.codec import decode
from fedhpc.config.schema import RunConfig
from fedhpc.errors import InputError, PayloadError
from fedhpc.records.checkpoint import State, keep_state, load_state
from fedhpc.records.run_directory import RunDirectory
from fedhpc.util.arrays import F32, Array
from fedhpc.util.files import PRIVATE, make_folder

KIND, START, SITES, WEIGHTS = "round", "start", "sites", "weights"


@dataclass(frozen=True)
class UpdateStore:
    """Passes a round's messages on and keeps them; a round that is done again replaces what was kept of it.

    Attributes:
        folder: of the files.
        sites, weights: of those that take part, in site order.
    """

    folder: Path
    sites: tuple[str, ...]
    weights: tuple[int, ...]

    def __call__(self, messages: Iterable[bytes], state: RunState) -> Iterator[bytes]:
        """Yield the messages in site order; write them when the last has been taken.

        Raises:
            FileError: the file cannot be written.
        """
        kept: dict[str, Array] = {WEIGHTS: np.array(self.weights, np.int64), SITES: np.array(self.sites, "S31")}
        for index, message in enumerate(messages):
            kept[str(index)] = np.frombuffer(message, np.uint8)
            yield message
        if not state.round:
            kept[START] = state.params
        make_folder(self.folder)
        keep_state(self.folder, State(KIND, state.round + 1, kept), mode=PRIVATE)


def refusal(config: RunConfig) -> str:
    """Return why nobody's contribution to a run can be told; empty where it can."""
    sites, rule = len(config.data.sites), config.aggregation
    if not config.contribution.store_updates:
        return (
            "contribution.store_updates=false: the run has kept no update. Set it to true before a run (with "
            "privacy.trust=sites it cannot be: rank 0 never has the update of one site)"
        )
    if sites > MOST_SITES:
        return f"{sites} sites have {2**sites} coalitions; allowed: at most {MOST_SITES} sites"
    if type(algorithm_of(config.algorithm)).fold is not Algorithm.fold:
        return (
            f"algorithm.name={config.algorithm.name}: the aggregator changes updates by what it keeps of all sites, so "
            "that they make no model of a coalition. Allowed: fedavg, fedprox"
        )
    problems = filter(None, (rule.problem(size, 1.0) for size in range(1, sites + 1)))
    alone = next(problems, "")
    return f"{alone}. A coalition may be one site alone: set aggregation.rule=mean" if alone else ""


def read_history(directory: RunDirectory, config: RunConfig) -> History:
    """Return what a run has received, over the rounds that it has recorded.

    Raises:
        InputError: the run did not keep its updates, a file is missing or damaged, or its rule or algorithm makes no
            model of a coalition.
    """
    rounds = len(directory.read_rounds())
    refused = refusal(config) or ("" if rounds else "no round is finished yet")
    if refused:
        raise InputError(f"{directory.path}: {refused}", code="contribution")
    stored = [load_state(directory.updates, KIND, t + 1) for t in range(rounds)]
    start = stored[0][START].astype(np.float32)
    updates = np.zeros((rounds, len(config.data.sites), start.size), np.float32)
    present, weights = np.zeros(updates.shape[:2], bool), dict.fromkeys(config.site_names, 1)
    for t, arrays in enumerate(stored):
        for sender, name in enumerate(arrays[SITES].astype(str)):
            i = config.site_names.index(str(name))
            found = _update(arrays.get(str(sender)), sender, t, start.size)
            weights[str(name)] = int(arrays[WEIGHTS][sender])
            if found is not None:
                updates[t, i], present[t, i] = found, True
    return History(
        start=start,
        updates=updates,
        present=present,
        weights=tuple(weights.values()),
        rule=config.aggregation,
        server=config.server,
        average_last=config.training.average_last,
    )


def _update(message: Array | None, site: int, round: int, size: int) -> F32 | None:
    """Return the update in a stored message; None where there is none, or what the aggregator refused."""
    if message is None:
        return None
    try:
        update = decode(message.tobytes(), sender=site, round=round, size=size)
        check_plausible(update, ())
    except PayloadError:
        return None
    return update.entries.dense()
