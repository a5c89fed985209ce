"""Rounds that a timer ends: `schedule.policy: deadline`.

    a site with nothing under way: begin to train from x_t, in a thread of its own; charged as it begins
    all wait for their own site until `deadline_s` after the round began, and say whether its update is ready
    none is ready -> once more `deadline_s`
    a site that is ready: send the top k of its update and its residual; it begins anew in the next round
    a site that is not: send nothing, and train on
    the aggregator: u = sum_i v_i sent_i / sum_i v_i over those that are ready, v_i = w_i / (1 + staleness_i)

The staleness of an update is the number of rounds between that whose model it was trained from and that whose mean it
enters; a weight that falls with it as 1 / (1 + staleness) is the polynomial discount of Xie et al. 2019 ("Asynchronous
Federated Optimization", section 5.2) with a = 1. So an update enters the mean of one round, once, and as what it is:
the difference from a known model. The aggregator counts staleness itself, from the rounds in which a site sent.

Formal guarantee: with privacy on, a site's update is that of its round as in FedAvg, the same steps and noise, charged
before the first step. When it is sent is post-processing and time. Which rounds a site is late in depends on how long
its steps take, which the size of its Poisson batches is a small part of: that is outside the guarantee, as are all
other times that the aggregator can take.

A run is not repeated by its config alone, but by its config and its record of who was late: `Replay`.
"""

import struct
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from typing import Protocol, cast

from fedhpc.aggregation.base import Arrays
from fedhpc.algorithms.base import of_algorithm
from fedhpc.algorithms.fedavg import Training, mean_update, received, sent_by_site, start_of
from fedhpc.algorithms.round_types import Collected, Participant, RoundConfig
from fedhpc.algorithms.run_state import RunState
from fedhpc.errors import Interrupted, PayloadError, at
from fedhpc.records.rounds import Arrivals
from fedhpc.site.training.regularizers import NOTHING, Regularizer
from fedhpc.transport.base import Transport
from fedhpc.transport.collectives import unless_interrupted
from fedhpc.util.arrays import F32
from fedhpc.util.stopwatch import Stopwatch

Work = Callable[[], F32]
LEFT, LATE, READY = b"\x00", b"\x01", b"\x02"
"""What a rank says of a site of its own: it was told to stop, it trains still, its update is ready."""
ANSWER = struct.Struct("<Hc")
"""What is said of one site, by its index: control payloads come in rank order, which is not that of the sites."""
FINEST = 2520
"""Weights are integers; times this, all staleness up to 9 divides them exactly."""


class LateParticipant(Participant, Protocol):
    """What a round that a timer ends asks of a hospital (see `fedhpc.site.hospital.Hospital`)."""

    def begin(
        self, params: F32, round: int, regularizer: Regularizer = NOTHING, is_given_up: Callable[[], bool] = ...
    ) -> Work:
        """Charge a round; what is returned trains it from params f32[d], in any thread, and gives the update f32[d].

        It raises Interrupted where it is given up.
        """


class Timing(Protocol):
    """When updates are ready: by the clock, or as recorded."""

    def begins(self, site: str, round: int) -> bool:
        """Return whether a site with nothing under way begins to train in a round; the same answer at every rank."""

    def start(self, work: Work) -> "Future[F32]":
        """Begin to train; the future gives the update, f32[d]."""

    def start_timer(self) -> None:
        """Wait for the full time from now on."""

    def is_ready(self, site: str, round: int, update: "Future[F32]") -> bool:
        """Wait for an update until the timer ends; whether it enters the round."""

    def close(self) -> None:
        """Take no more work."""


class Clock:
    """`Timing` by the clock: each site trains in a thread, while this one waits and exchanges."""

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s, self._until_s = deadline_s, 0.0
        self._threads = ThreadPoolExecutor(thread_name_prefix="train")

    def begins(self, site: str, round: int) -> bool:
        """See `Timing`."""
        return True

    def start(self, work: Work) -> "Future[F32]":
        """See `Timing`."""
        return self._threads.submit(work)

    def start_timer(self) -> None:
        """See `Timing`."""
        self._until_s = time.monotonic() + self._deadline_s

    def is_ready(self, site: str, round: int, update: "Future[F32]") -> bool:
        """See `Timing`."""
        wait([update], max(0.0, self._until_s - time.monotonic()))
        return update.done()

    def close(self) -> None:
        """See `Timing`; the thread ends after the step that it is in."""
        self._threads.shutdown(wait=False, cancel_futures=True)


@dataclass(frozen=True)
class Entered:
    """One update of an earlier run: its site, the rounds (from 0 on) that it entered the mean of and was begun in."""

    site: str
    round: int
    began: int


class Replay:
    """`Timing` of an earlier run: a site trains at once what was under way there, and keeps it until it was ready."""

    def __init__(self, updates: Sequence[Entered]) -> None:
        self._entered = {(one.site, one.round) for one in updates}
        self._begun = {(one.site, one.began) for one in updates}

    def begins(self, site: str, round: int) -> bool:
        """See `Timing`; what was given up there is not begun."""
        return (site, round) in self._begun

    def start(self, work: Work) -> "Future[F32]":
        """See `Timing`."""
        done: Future[F32] = Future()
        done.set_result(work())
        return done

    def start_timer(self) -> None:
        """See `Timing`."""

    def is_ready(self, site: str, round: int, update: "Future[F32]") -> bool:
        """See `Timing`."""
        return (site, round) in self._entered

    def close(self) -> None:
        """See `Timing`."""


@dataclass(frozen=True)
class UnderWay:
    """The training of one site: its round, the parameters that it began from, f32[d], and its update as it will be."""

    round: int
    start: F32
    update: "Future[F32]"


@dataclass
class LateMean:
    """A `fedhpc.algorithms.fedavg.Collector` of rounds that a timer ends.

    Attributes:
        terms: of all rounds.
        timing: when updates are ready.
        _under_way: of this rank's sites.
        _began: at rank 0, of all sites: the rounds that what is under way was begun in.
    """

    terms: RoundConfig
    timing: Timing
    _under_way: dict[str, UnderWay] = field(default_factory=dict)
    _began: dict[str, int] = field(default_factory=dict)
    _given_up: threading.Event = field(default_factory=threading.Event)

    def __call__(
        self, sites: Sequence[Participant], state: RunState, transport: Transport, watch: Stopwatch
    ) -> Collected:
        """See `Collector`.

        Raises:
            Interrupted: at every rank, where one was told to stop.
            SiteError: where training failed.
        """
        with watch.phase("train"):
            self._begin(sites, state)
            updates, answers = self._wait(sites, state.round, transport)
        with watch.phase("exchange"):
            done = [self._sent(site, updates, state) for site in sites]
            payloads = transport.stream([message for message, _ in done], "update", state.round + 1)
        after = {site.name: kept for site, (_, kept) in zip(sites, done, strict=True)}
        if transport.rank:
            return Collected(None, after, ())
        arrivals = self._arrivals(state.round, answers)
        terms = replace(self.terms, weights=lowered(self.terms, arrivals))
        up_bytes: list[int] = []
        with watch.phase("aggregate"):
            folded = mean_update(received(payloads, up_bytes, watch), state, terms)
        return replace(Collected.of(folded, after, up_bytes), arrivals=arrivals)

    def close(self) -> None:
        """Give up what is under way: it ends after its step."""
        self._given_up.set()
        self.timing.close()
        self._under_way.clear()

    def _begin(self, sites: Sequence[Participant], state: RunState) -> None:
        for site in sites:
            if site.name in self._under_way or not self.timing.begins(site.name, state.round):
                continue
            kept, public = state.sites[site.name], of_algorithm(state.public)
            start = start_of(state, kept, self.terms)
            regularizer = self.terms.algorithm.regularizer(of_algorithm(kept), public)
            late = cast(LateParticipant, site)
            work = late.begin(start, state.round, regularizer, self._given_up.is_set)
            self._under_way[site.name] = UnderWay(state.round, start, self.timing.start(work))

    def _wait(
        self, sites: Sequence[Participant], round: int, transport: Transport
    ) -> tuple[Mapping[str, F32 | None], bytes]:
        """(the update of each site of this rank, None of a late one; at rank 0 what was said of each site)."""
        while True:
            self.timing.start_timer()
            updates = unless_interrupted(lambda: {site.name: self._update(site.name, round) for site in sites})
            answer, answers = _agreed(self._said(sites, updates), round, len(self.terms.sites), transport)
            if answer == LEFT or updates is None:
                raise Interrupted(f"round {round + 1}: a site left it")
            if answer == READY:
                return updates, answers

    def _update(self, site: str, round: int) -> F32 | None:
        one = self._under_way.get(site)
        if one is None or not self.timing.is_ready(site, round, one.update):
            return None
        return one.update.result()

    def _said(self, sites: Sequence[Participant], updates: Mapping[str, F32 | None] | None) -> bytes:
        def answer(site: Participant) -> bytes:
            if updates is None:
                return LEFT
            return LATE if updates[site.name] is None else READY

        return b"".join(ANSWER.pack(site.index, answer(site)) for site in sites)

    def _sent(self, site: Participant, updates: Mapping[str, F32 | None], state: RunState) -> tuple[bytes, Arrays]:
        kept, update = state.sites[site.name], updates[site.name]
        if update is None:
            return b"", kept
        one = self._under_way.pop(site.name)
        training = Training(one.start, update, kept, one.round)
        return sent_by_site(site, training, state, self.terms)

    def _arrivals(self, round: int, answers: bytes) -> Arrivals:
        """Whose updates enter a round; rank 0's own count of the rounds since each site began."""
        said = dict(zip(self.terms.sites, (bytes([one]) for one in answers), strict=True))
        ready = [name for name, one in said.items() if one == READY]
        begun = [name for name in said if name not in self._began and self.timing.begins(name, round)]
        self._began |= dict.fromkeys(begun, round)
        return Arrivals(
            late=tuple(name for name in said if name not in ready),
            staleness={name: round - self._began.pop(name) for name in ready},
        )


def _agreed(mine: bytes, round: int, sites: int, transport: Transport) -> tuple[bytes, bytes]:
    """(what follows: LEFT, LATE for none is ready, or READY; at rank 0 what was said of each site, in site order)."""
    payloads = transport.gather([mine], "control", round + 1)
    told, answer = b"", None
    if transport.rank == 0:
        with at(f"round {round + 1}"):
            told = in_site_order(payloads, sites)
        answer = LEFT if LEFT in told else READY if READY in told else LATE
    return transport.broadcast(answer, "control", round + 1), told


def in_site_order(payloads: Sequence[bytes], sites: int) -> bytes:
    """Return what was said of each of so many sites, a byte each, from the ranks' payloads: a rank may play several.

    Raises:
        PayloadError: not one answer of each site.

    >>> in_site_order([ANSWER.pack(0, READY) + ANSWER.pack(2, LATE), ANSWER.pack(1, READY)], 3) == READY + READY + LATE
    True
    """
    joined = b"".join(payloads)
    found = dict(ANSWER.iter_unpack(joined)) if len(joined) == sites * ANSWER.size else {}
    if found.keys() != set(range(sites)) or set(found.values()) - {LEFT, LATE, READY}:
        raise PayloadError("not every site says whether its update is ready")
    return b"".join(found[index] for index in range(sites))


def lowered(terms: RoundConfig, arrivals: Arrivals) -> tuple[int, ...]:
    """Return the weight of each site's update in a round, by index: 0 of a late site, else w / (1 + staleness).

    They are multiplied by a common factor so that they stay integers; where all are fresh they are as declared.
    """
    factor = FINEST if any(arrivals.staleness.values()) else 1
    found = []
    for name, weight in zip(terms.sites, terms.weights, strict=True):
        rounds = arrivals.staleness.get(name)
        found.append(0 if rounds is None else max(1, weight * factor // (1 + rounds)))
    return tuple(found)
