"""The values and the protocols of a round: what all have agreed on, and what a round of the sites gives."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from fedhpc.aggregation.base import AggregationRule, Arrays, Flag, ServerStep, UpdateScale
from fedhpc.aggregation.mean import Mean
from fedhpc.aggregation.server_sgd import ServerSgd
from fedhpc.algorithms.base import Algorithm, Folded, Sender, joined, parted
from fedhpc.algorithms.local_layers import LocalLayers
from fedhpc.algorithms.rewards import Rewards
from fedhpc.algorithms.run_state import RunState
from fedhpc.compression.error_feedback import CompressionConfig
from fedhpc.compression.update import AGGREGATOR
from fedhpc.records.rounds import NONE_LATE, Arrivals, Traffic
from fedhpc.site.training.regularizers import NOTHING, Regularizer
from fedhpc.transport.base import Transport
from fedhpc.util.arrays import F32
from fedhpc.util.rng import generator
from fedhpc.util.stopwatch import Stopwatch


class Participant(Protocol):
    """What the round asks of a hospital (see `fedhpc.site.hospital.Hospital`)."""

    name: str
    index: int

    def train(self, params: F32, round: int, regularizer: Regularizer = NOTHING) -> F32:
        """Local - global, f32[d], of a round with a term added to the loss."""

    def gradient_weight(self, round: int) -> float:
        """Return by how much the mean gradient of a round's steps enters its update (public with privacy on)."""

    def can_afford(self, round: int) -> bool:
        """Return whether the privacy budget allows one more round."""


@dataclass(frozen=True)
class Collected:
    """What one round of the sites gave at this rank.

    Attributes:
        mean: the weighted mean of the updates, f32[d]; None where this rank is not the aggregator.
        sites: what each of this rank's sites keeps, by name.
        up_bytes: of each site, by index; empty where this rank is not the aggregator.
        down_bytes: what the aggregator sent to every site before the mean.
        kept: the algorithm's arrays at the aggregator.
        more: what the aggregator sends to all beside the global update.
        dropped: the names of the sites that are not in the mean, in site order (the same at every rank).
        rule: what the aggregation rule keeps.
        flags: the sites that the rule found far out; none where this rank is not the aggregator.
        arrivals: who is late, where a timer ends the rounds; only at the aggregator.
    """

    mean: F32 | None
    sites: Mapping[str, Arrays]
    up_bytes: tuple[int, ...]
    down_bytes: int = 0
    dropped: tuple[str, ...] = ()
    kept: Arrays = field(default_factory=dict)
    more: bytes = b""
    rule: Arrays = field(default_factory=dict)
    flags: tuple[Flag, ...] = ()
    arrivals: Arrivals = NONE_LATE

    @classmethod
    def of(cls, folded: Folded, sites: Mapping[str, Arrays], up_bytes: Sequence[int]) -> "Collected":
        """Return what a round gave at the aggregator whose updates it has seen one by one."""
        return cls(
            mean=folded.mean,
            sites=sites,
            up_bytes=tuple(up_bytes),
            kept=folded.kept,
            more=folded.more,
            rule=folded.rule,
            flags=folded.flags,
        )


@dataclass(frozen=True)
class RoundConfig:
    """What all have agreed on (public).

    Attributes:
        rounds: how many in all.
        up, down: how updates are made small, those of the sites and that of the aggregator.
        sites, weights: name and weight of each site, by index; 0: it is late in this round.
        rounding_seed: of stochastic rounding; None rounds to nearest.
        secure: how the mean is formed where no update may be seen by itself; None: in the open.
        late: how it is formed where a timer ends the rounds; None: all are waited for.
        rows: of each site, by index, its place among the declared sites; None: all of them are present.
        aggregation: the rule that makes one update of the sites' updates.
        server: the optimiser that makes a step of it.
        algorithm: what is added to FedAvg.
        local: the entries that stay at each site.
        stress: what some sites' messages are replaced by, in a stress test.
        scales: of a round, what each site's update may be; None of a round where that is not known.
        store: what keeps the messages as they came; None: nobody.
        rewards: what each site gets of the step, by its contribution; None: all of it.
    """

    rounds: int
    up: CompressionConfig
    down: CompressionConfig
    sites: tuple[str, ...]
    weights: tuple[int, ...]
    rounding_seed: int | None = None
    secure: "Collector | None" = None
    aggregation: AggregationRule = field(default_factory=Mean)
    server: ServerStep = field(default_factory=ServerSgd)
    algorithm: Algorithm = field(default_factory=Algorithm)
    local: LocalLayers = field(default_factory=LocalLayers)
    stress: "Replacement | None" = None
    scales: Callable[[int], tuple[UpdateScale, ...] | None] = lambda round: None
    store: "Store | None" = None
    rewards: Rewards | None = None
    late: "LateCollector | None" = None
    rows: tuple[int, ...] | None = None

    def close(self) -> None:
        """Give up what is under way in threads."""
        if self.late is not None:
            self.late.close()

    def draws(self, round: int, sender: int, purpose: str = "rounding") -> np.random.Generator | None:
        """Return what a sender's stochastic rounding of a round draws from."""
        return None if self.rounding_seed is None else generator(self.rounding_seed, round, sender, purpose)

    def sender(self, index: int, round: int) -> Sender:
        """A site, or the aggregator, as the sender of what goes beside an update."""
        coding = (self.down if index == AGGREGATOR else self.up).of_round(round)
        return Sender(index, round, coding, self.draws(round, index, "rounding beside"))

    def message(self, update: bytes, more: bytes) -> bytes:
        """Return what is sent of an update's payload and of what the algorithm sends beside it."""
        return joined(update, more) if self.algorithm.sends_more else update

    def parts(self, message: bytes) -> tuple[bytes, bytes]:
        """Return the payload of the update and what came beside it; raises PayloadError where it is no such message."""
        return parted(message) if self.algorithm.sends_more else (message, b"")


@dataclass(frozen=True)
class RoundResult:
    """One finished round, as its driver hands it on. `traffic` is None where this rank is not the aggregator.

    `dropped` names the sites that are not in the mean, `flags` those that the rule found far out (at the aggregator),
    `arrivals` those that are late (there, too).
    """

    state: RunState
    traffic: Traffic | None
    watch: Stopwatch
    dropped: tuple[str, ...] = ()
    flags: tuple[Flag, ...] = ()
    arrivals: Arrivals = NONE_LATE


class Collector(Protocol):
    """How the sites of all ranks train and their updates become one mean: `in_the_open`, or by a secure sum."""

    def __call__(
        self, sites: Sequence[Participant], state: RunState, transport: Transport, watch: Stopwatch
    ) -> Collected:
        """One round of this rank's `sites`, in site order, from the `state` before it."""


class LateCollector(Collector, Protocol):
    """A collector with training under way between rounds (see `fedhpc.algorithms.deadline`)."""

    def close(self) -> None:
        """Give up what is under way."""


class Replacement(Protocol):
    """What a stress test makes of all sites' messages (see `fedhpc.algorithms.hostile_sites`)."""

    def __call__(self, messages: Iterable[bytes], state: RunState, terms: RoundConfig) -> Iterator[bytes]:
        """The messages of a round in site order, some of them replaced."""


class Store(Protocol):
    """What keeps all sites' messages (see `fedhpc.run.rounds.stored_updates`)."""

    def __call__(self, messages: Iterable[bytes], state: RunState) -> Iterator[bytes]:
        """The same messages of a round, in site order."""
