"""Rounds that a timer ends: a late update enters one mean, once, as what it is, and a record repeats every bit."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from fedhpc.aggregation.server_sgd import ServerSgd
from fedhpc.algorithms.deadline import (
    ANSWER,
    LATE,
    READY,
    Clock,
    Entered,
    LateMean,
    Replay,
    Timing,
    in_site_order,
    lowered,
)
from fedhpc.algorithms.fedavg import federate
from fedhpc.algorithms.fednova import FedNova
from fedhpc.algorithms.round_types import RoundResult
from fedhpc.algorithms.run_state import RESIDUAL, RunState, fresh_state
from fedhpc.errors import Interrupted, PayloadError, SiteError
from fedhpc.records.rounds import Arrivals
from fedhpc.site.training.regularizers import NOTHING, Regularizer
from fedhpc.transport.base import AloneTransport
from fedhpc.util.arrays import F32
from tests.algorithms.test_fedavg import Puller, terms_of

Wait = Callable[[int, Callable[[], bool]], None]


def at_once(round: int, is_given_up: Callable[[], bool]) -> None:
    """Train in no time."""


@dataclass
class Slow(Puller):
    """A hospital whose training of a round lasts as long as `wait` does; it notes the rounds that it began."""

    wait: Wait = at_once
    begun: list[int] = field(default_factory=list)

    def begin(
        self, params: F32, round: int, regularizer: Regularizer = NOTHING, is_given_up: Callable[[], bool] = bool
    ) -> Callable[[], F32]:
        self.begun.append(round)

        def trained() -> F32:
            self.wait(round, is_given_up)
            return self.train(params, round, regularizer)

        return trained


OnRound = Callable[[int], None]


def run(
    sites: Sequence[Slow], timing: Timing, rounds: int, density: float = 1, on_round: OnRound = lambda round: None
) -> tuple[RunState, str, list[RoundResult]]:
    plain = terms_of(rounds, density, 1, (1, 3))
    terms = replace(plain, late=LateMean(plain, timing))
    results: list[RoundResult] = []

    def note(result: RoundResult) -> bool:
        results.append(result)
        on_round(result.state.round)
        return True

    d = sites[0].target.size
    start = fresh_state(np.zeros(d, np.float32), [site.name for site in sites], ServerSgd())
    try:
        state, stopped = federate(sites, start, terms, AloneTransport(), note)
    finally:
        terms.close()
    return state, stopped, results


def pair(d: int = 3, wait: Wait = at_once) -> list[Slow]:
    return [Slow("a", 0, np.full(d, 4, np.float32)), Slow("b", 1, np.full(d, 8, np.float32), wait=wait)]


def test_late_update_by_hand() -> None:
    """b is late in the first round: 2, then (1 x 1 + 3/2 x 4) / (1 + 3/2) = 2.8 more, from what b trained at 0."""
    sites = pair()
    state, _, results = run(sites, Replay([Entered("a", 0, 0), Entered("a", 1, 1), Entered("b", 1, 0)]), 2)
    assert results[0].state.params.tolist() == [2, 2, 2]
    np.testing.assert_allclose(state.params, 4.8, rtol=1e-6)
    assert sites[1].begun == [0]
    assert [result.arrivals for result in results] == [Arrivals(("b",), {"a": 0}), Arrivals((), {"a": 0, "b": 1})]
    assert results[0].traffic is not None and results[0].traffic.up_bytes[1] == 0


@pytest.mark.parametrize(
    "payloads",
    [
        [ANSWER.pack(0, READY) * 2],
        [ANSWER.pack(0, READY)],
        [ANSWER.pack(0, READY), ANSWER.pack(2, LATE)],
        [ANSWER.pack(0, READY), ANSWER.pack(1, b"\x07")],
        [ANSWER.pack(0, READY), ANSWER.pack(1, READY) + b"\x00"],
        [b"", b"\x01\x02"],
    ],
)
def test_answers_that_are_not_one_of_each_site_are_refused(payloads: list[bytes]) -> None:
    with pytest.raises(PayloadError, match="not every site says"):
        in_site_order(payloads, 2)


def test_nobody_late_is_the_run_that_waits() -> None:
    everybody = [Entered(name, round, round) for name in "ab" for round in range(4)]
    plain = terms_of(4, 0.5, 1, (1, 3))
    start = fresh_state(np.zeros(40, np.float32), ["a", "b"], ServerSgd())
    waited, _ = federate(pair(40), start, plain, AloneTransport(), lambda result: True)
    timed, _, _ = run(pair(40), Replay(everybody), 4, 0.5)
    np.testing.assert_array_equal(waited.params, timed.params)


def recorded(results: Sequence[RoundResult]) -> Replay:
    return Replay(
        [
            Entered(name, number, number - rounds)
            for number, result in enumerate(results)
            for name, rounds in result.arrivals.staleness.items()
        ]
    )


class WaitsForAll(Clock):
    """The clock, but it waits for what `is_due` names: on a busy machine a thread may take longer than any timer."""

    def __init__(self, deadline_s: float, is_due: Callable[[str], bool]) -> None:
        super().__init__(deadline_s)
        self._is_due = is_due

    def is_ready(self, site: str, round: int, update: "Future[F32]") -> bool:
        if self._is_due(site):
            wait([update], 30)
        return super().is_ready(site, round, update)


def test_replay_of_the_recorded_rounds_gives_the_same_bits() -> None:
    """b's first training lasts until the third round is over, by the clock; every update enters once."""
    released = threading.Event()
    clock = WaitsForAll(0.1, lambda site: site == "a" or released.is_set())

    def until_released(round: int, is_given_up: Callable[[], bool]) -> None:
        if round == 0:
            assert released.wait(30)

    sites = pair(40, until_released)
    state, stopped, results = run(sites, clock, 7, 0.3, lambda round: released.set() if round == 3 else None)
    assert stopped == "finished"
    assert [result.arrivals.late for result in results[:3]] == [("b",)] * 3
    staleness = [result.arrivals.staleness["b"] for result in results if "b" in result.arrivals.staleness]
    assert staleness[0] >= 3
    entered = [number for number, result in enumerate(results) if "b" in result.arrivals.staleness]
    assert sites[1].begun[: len(entered)] == [number - late for number, late in zip(entered, staleness, strict=True)]
    again, _, others = run(pair(40), recorded(results), 7, 0.3)
    np.testing.assert_array_equal(state.params, again.params)
    for name in "ab":
        np.testing.assert_array_equal(state.sites[name][RESIDUAL], again.sites[name][RESIDUAL])
    assert [one.arrivals for one in others] == [one.arrivals for one in results]


def test_round_without_any_update_goes_on_until_one_is_ready() -> None:
    def slow(round: int, is_given_up: Callable[[], bool]) -> None:
        time.sleep(0.1)

    sites = [replace(site, wait=slow) for site in pair()]
    _, stopped, results = run(sites, Clock(0.01), 2)
    assert stopped == "finished" and all(result.arrivals.staleness for result in results)


def test_failure_and_stop_in_a_thread_reach_the_round() -> None:
    def fails(round: int, is_given_up: Callable[[], bool]) -> None:
        raise SiteError("site b: training failed")

    def stops(round: int, is_given_up: Callable[[], bool]) -> None:
        if round == 1:
            raise Interrupted("SIGUSR1 came")

    with pytest.raises(SiteError, match="site b"):
        run(pair(wait=fails), Clock(30), 2)
    _, stopped, results = run(pair(wait=stops), Clock(30), 3)
    assert (stopped, len(results)) == ("preempted", 1)


def test_what_is_under_way_at_the_end_is_given_up() -> None:
    given_up = threading.Event()

    def until_given_up(round: int, is_given_up: Callable[[], bool]) -> None:
        while not is_given_up():
            time.sleep(0.001)
        given_up.set()
        raise Interrupted("given up")

    run(pair(wait=until_given_up), Clock(0.01), 2)
    assert given_up.wait(30)


def test_late_update_is_normalised_by_the_steps_of_its_own_round() -> None:
    """FedNova: b made two steps of rate 1 in the round that it began, and a one of rate 1/2 in that which it enters."""
    a, b = Puller("a", 0, np.full(3, 4, np.float32)), Rated("b", 1, np.full(3, 8, np.float32))
    plain = replace(terms_of(2, 1, 1, (1, 1)), algorithm=FedNova())
    timing = Replay([Entered("a", 0, 0), Entered("a", 1, 1), Entered("b", 1, 0)])
    start = fresh_state(np.zeros(3, np.float32), ["a", "b"], ServerSgd())
    sites = [Slow(a.name, 0, a.target), b]
    state, _ = federate(sites, start, replace(plain, late=LateMean(plain, timing)), AloneTransport(), lambda r: True)
    # First round: 2. Then a's update is 1 with a weight of 0.5, b's is 4 with one of 2: in steps of a 1 and 1.
    shares = np.array([2 / 3, 1 / 3])
    expected = 2 + (shares * [1, 4 / 4]).sum() * (shares * [1, 4]).sum()
    np.testing.assert_allclose(state.params, expected, rtol=1e-6)


@dataclass
class Rated(Slow):
    """A hospital with a rate of its own in its first round."""

    def gradient_weight(self, round: int) -> float:
        return 2.0 if round == 0 else 100.0


def test_weights_fall_with_staleness_and_stay_integers() -> None:
    terms = terms_of(1, 1, 1, (20, 10))
    assert lowered(terms, Arrivals((), {"a": 0, "b": 0})) == (20, 10)
    assert lowered(terms, Arrivals(("a",), {"b": 0})) == (0, 10)
    fresh, stale = lowered(terms, Arrivals((), {"a": 0, "b": 4}))
    assert fresh == 10 * stale
    assert lowered(terms, Arrivals((), {"a": 0, "b": 10**6}))[1] == 1
