"""Hostile sites of a stress test: their messages are replaced on the way into the aggregator.

Replaced there and not at the site, since an attack may use what only all sites together know: the worst case. From the
bytes on, everything is as in any run: the aggregator decodes, checks and aggregates what comes.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from fedhpc.aggregation.attacks import ATTACKS, Scene
from fedhpc.aggregation.base import RuleRound
from fedhpc.algorithms.fedavg import rule_round
from fedhpc.algorithms.round_types import RoundConfig
from fedhpc.algorithms.run_state import RunState
from fedhpc.compression.codec import decode, encode
from fedhpc.compression.update import SparseVector, Update
from fedhpc.util.arrays import F32
from fedhpc.util.rng import generator

REPLAYED = "replayed"


@dataclass
class HostileSites:
    """What `RoundConfig.stress` is where sites are hostile; it remembers the last round's messages, to replay them.

    Attributes:
        case: the name of the attack.
        indices: of the hostile sites.
        strength: of the attack.
        seed: of random attacks.
        rounds_before: how many rounds they behave.
    """

    case: str
    indices: frozenset[int]
    strength: float
    seed: int
    rounds_before: int = 0
    _last: dict[int, bytes] = field(default_factory=dict)

    def __call__(self, messages: Iterable[bytes], state: RunState, terms: RoundConfig) -> Iterator[bytes]:
        """See `fedhpc.algorithms.fedavg.Replacement`; takes all messages before it gives the first."""
        sent = list(messages)
        before, self._last = self._last, dict(enumerate(sent))
        if state.round < self.rounds_before:
            yield from sent
            return
        if self.case == REPLAYED:
            yield from (before.get(i, one) if i in self.indices else one for i, one in enumerate(sent))
            return
        vectors = [_vector(one, i, state, terms) for i, one in enumerate(sent)]
        honest = np.stack([one for i, one in enumerate(vectors) if i not in self.indices])
        for i, message in enumerate(sent):
            if i not in self.indices:
                yield message
                continue
            rng = generator(self.seed, state.round, i, "attack")
            scene = Scene(vectors[i], honest, self.strength, rng, self._result(vectors, state, terms))
            payload = encode(Update(i, state.round, _whole(ATTACKS[self.case](scene))))
            yield terms.message(payload, terms.parts(message)[1])

    def _result(self, vectors: list[F32], state: RunState, terms: RoundConfig) -> Callable[[F32], F32]:
        """Return what the run's rule makes of an update in the place of each hostile one."""
        about: RuleRound = rule_round(state, terms)

        def result(update: F32) -> F32:
            aggregator = terms.aggregation.aggregator(about)
            for i, vector in enumerate(vectors):
                aggregator.add(i, _whole(update if i in self.indices else vector), terms.weights[i])
            return aggregator.result()

        return result


def _vector(message: bytes, index: int, state: RunState, terms: RoundConfig) -> F32:
    payload, _ = terms.parts(message)
    return decode(payload, sender=index, round=state.round, size=state.params.size).entries.dense()


def _whole(vector: F32) -> SparseVector:
    """All entries of a vector but the zeros, as they are."""
    indices = np.flatnonzero(vector).astype(np.int64)
    return SparseVector(vector.size, indices, vector[indices])
