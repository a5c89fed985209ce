"""The round: Algorithm 1, and nothing else.

    for round t = 0 .. T-1:
        each site i, from the global parameters x_t:                                             (site_round)
            u_i = local training from x_t, minus x_t           private under DP; all below is post-processing
            send the top k of u_i + e_i, rounded; keep the rest as e_i                           (error feedback)
        the aggregator:                                                (mean_update, server_step, server_round)
            u = sum_i w_i sent_i / sum_i w_i             or another `aggregation.rule`; in the order of the sites
            v = the server optimiser's step along u                                             u itself by default
            send the top k of v + e to all, rounded; keep the rest as e
        everybody: x_{t+1} = x_t + what the aggregator sent                  (next_state, check_replicas_equal)

FedAvg is McMahan et al. 2017, Algorithm 1; sparse exchange both ways with memory is Sattler et al. 2019, Algorithm 2.
The sequential and the MPI driver run these same functions; only the `Transport` differs. The same seed gives the same
bits in both at any number of ranks, because payloads are folded in site order by one plain loop.

Another `algorithm` adds to this through `fedhpc.algorithms.base`: to the loss of local training, to what is kept, and
to what is sent beside the updates. FedAvg adds nothing.

With `privacy.trust: sites` the aggregator gets u without any u_i: `RoundConfig.secure` then stands in for
`in_the_open`, and the rest of the round is the same (see `fedhpc.algorithms.secure_fedavg`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from fedhpc.aggregation.base import AggregationRule, Arrays, Flag, RuleRound, ServerStep, UpdateScale
from fedhpc.aggregation.mean import Mean
from fedhpc.aggregation.server_sgd import ServerSgd
from fedhpc.algorithms.base import (
    Algorithm,
    Folded,
    Sender,
    Trained,
    joined,
    of_algorithm,
    parted,
    with_algorithm,
)
from fedhpc.algorithms.local_layers import LocalLayers
from fedhpc.algorithms.rewards import Rewards
from fedhpc.algorithms.run_state import OPTIMIZER, RECEIVED, RESIDUAL, RULE, RunState, of, residual_of, under
from fedhpc.compression.codec import decode, encode
from fedhpc.compression.error_feedback import CompressionConfig, with_feedback
from fedhpc.compression.top_k import Layers, entry_name
from fedhpc.compression.update import AGGREGATOR, LARGEST_ENTRY, Update
from fedhpc.errors import Interrupted, PayloadError, at
from fedhpc.records.rounds import Traffic
from fedhpc.site.training.regularizers import NOTHING, Regularizer
from fedhpc.transport.base import Transport
from fedhpc.transport.collectives import all_agree, check_replicas_equal, require_all_trained, unless_interrupted
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
        """By how much the mean gradient of a round's steps enters its update (public with privacy on)."""

    def can_afford(self, round: int) -> bool:
        """Whether the privacy budget allows one more round."""


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


@dataclass(frozen=True)
class RoundConfig:
    """What all have agreed on (public).

    Attributes:
        rounds: how many in all.
        up, down: how updates are made small, those of the sites and that of the aggregator.
        sites, weights: name and weight of each site, by index.
        rounding_seed: of stochastic rounding; None rounds to nearest.
        secure: how the mean is formed where no update may be seen by itself; None: in the open.
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

    def draws(self, round: int, sender: int, purpose: str = "rounding") -> np.random.Generator | None:
        """What a sender's stochastic rounding of a round draws from."""
        return None if self.rounding_seed is None else generator(self.rounding_seed, round, sender, purpose)

    def sender(self, index: int, round: int) -> Sender:
        """A site, or the aggregator, as the sender of what goes beside an update."""
        coding = self.down if index == AGGREGATOR else self.up
        return Sender(index, round, coding, self.draws(round, index, "rounding beside"))

    def message(self, update: bytes, more: bytes) -> bytes:
        """What is sent of an update's payload and of what the algorithm sends beside it."""
        return joined(update, more) if self.algorithm.sends_more else update

    def parts(self, message: bytes) -> tuple[bytes, bytes]:
        """The payload of the update and what came beside it; raises PayloadError where it is no such message."""
        return parted(message) if self.algorithm.sends_more else (message, b"")


@dataclass(frozen=True)
class RoundResult:
    """One finished round, as its driver hands it on. `traffic` is None where this rank is not the aggregator.

    `dropped` names the sites that are not in the mean, `flags` those that the rule found far out (at the aggregator).
    """

    state: RunState
    traffic: Traffic | None
    watch: Stopwatch
    dropped: tuple[str, ...] = ()
    flags: tuple[Flag, ...] = ()


class Collector(Protocol):
    """How the sites of all ranks train and their updates become one mean: `in_the_open`, or by a secure sum."""

    def __call__(
        self, sites: Sequence[Participant], state: RunState, transport: Transport, watch: Stopwatch
    ) -> Collected:
        """One round of this rank's `sites`, in site order, from the `state` before it."""


class Replacement(Protocol):
    """What a stress test makes of all sites' messages (see `fedhpc.algorithms.hostile_sites`)."""

    def __call__(self, messages: Iterable[bytes], state: RunState, terms: RoundConfig) -> Iterator[bytes]:
        """The messages of a round in site order, some of them replaced."""


class Store(Protocol):
    """What keeps all sites' messages (see `fedhpc.run.stored_updates`)."""

    def __call__(self, messages: Iterable[bytes], state: RunState) -> Iterator[bytes]:
        """The same messages of a round, in site order."""


def site_round(site: Participant, state: RunState, kept: Arrays, terms: RoundConfig) -> tuple[bytes, Arrays]:
    """One hospital's part: (message to send, what it keeps)."""
    own, public = of_algorithm(kept), of_algorithm(state.public)
    params = kept.get(RECEIVED, state.params).astype(np.float32, copy=False)
    start = terms.local.at_site(params, kept)
    update = site.train(start, state.round, terms.algorithm.regularizer(own, public))
    update, at_home = terms.local.parted(start, update)
    with at(f"site {site.name}, round {state.round + 1}"):
        sent, residual = with_feedback(update, residual_of(kept), terms.up, terms.draws(state.round, site.index))
        weight, sender = site.gradient_weight(state.round), terms.sender(site.index, state.round)
        own, more = terms.algorithm.after_training(own, public, Trained(update, sent, weight, sender))
    message = terms.message(encode(Update(site.index, state.round, sent)), more)
    return message, with_algorithm({**kept, **at_home, RESIDUAL: residual}, own)


def rule_round(state: RunState, terms: RoundConfig) -> RuleRound:
    """What the aggregation rule knows of a round."""
    return RuleRound(state.params.size, state.round, terms.sites, of(RULE, state.server), terms.scales(state.round))


def mean_update(messages: Iterable[bytes], state: RunState, terms: RoundConfig) -> Folded:
    """The aggregator's view of the sites: one update of all, by the rule.

    Messages come in site order; each is added before the next is taken, so that memory need not grow with the sites.
    """
    aggregator = terms.aggregation.aggregator(rule_round(state, terms))
    fold = terms.algorithm.fold(of_algorithm(state.server), of_algorithm(state.public))
    for index, message in enumerate(messages):
        try:
            with at(f"site {terms.sites[index]}"):
                payload, more = terms.parts(message)
                update = decode(payload, sender=index, round=state.round, size=state.params.size)
                check_plausible(update, terms.up.layers)
                entries = fold.add(update.entries, terms.weights[index], more, terms.sender(index, state.round))
        except PayloadError as error:
            aggregator.refused(index, error)
        else:
            aggregator.add(index, entries, terms.weights[index])
    found = aggregator.aggregated()
    folded = fold.result(found.update, terms.sender(AGGREGATOR, state.round))
    return replace(folded, rule=under(RULE, found.kept), flags=found.flags)


def check_plausible(update: Update, layers: Layers) -> None:
    """Check that no entry is longer than `LARGEST_ENTRY`: folded, it would destroy the model or overflow the mean.

    Raises:
        PayloadError: naming the round, the entry and its layer; nothing of the update has been folded.
    """
    refused = np.flatnonzero(~(np.abs(update.entries.values) <= LARGEST_ENTRY))
    if refused.size:
        index, value = int(update.entries.indices[refused[0]]), update.entries.values[refused[0]]
        raise PayloadError(
            f"round {update.round + 1}: {entry_name(index, layers)} of its update is {value:g}; no step of one round "
            f"is longer than {LARGEST_ENTRY:g}. The round was refused and the model is that of the round before: look "
            "into this site's training, and lower training.lr where it diverges",
            code="payload.not-finite",
        )


def server_step(mean: F32, state: RunState, terms: RoundConfig) -> tuple[F32, Arrays]:
    """The server optimiser's part: (the step of the global parameters f32[d], what it keeps)."""
    step, kept = terms.server.step(mean, of(OPTIMIZER, state.server), state.round)
    return step, under(OPTIMIZER, kept)


def server_round(step: F32, state: RunState, residual: F32, terms: RoundConfig) -> tuple[bytes, F32]:
    """The aggregator's part: (payload for all, new residual)."""
    with at(f"aggregator, round {state.round + 1}"):
        sent, residual = with_feedback(step, residual, terms.down, terms.draws(state.round, AGGREGATOR))
    return encode(Update(AGGREGATOR, state.round, sent)), residual


def next_state(state: RunState, message: bytes, terms: RoundConfig) -> RunState:
    """Everybody's part: the global parameters, and what else all know, after what the aggregator sent."""
    payload, more = terms.parts(message)
    update = decode(payload, sender=AGGREGATOR, round=state.round, size=state.params.size)
    params = state.params.copy()
    params[update.entries.indices] += update.entries.values
    known, sender = of_algorithm(state.public), terms.sender(AGGREGATOR, state.round)
    public = with_algorithm(state.public, terms.algorithm.after_round(known, more, sender, params.size))
    return replace(state, round=state.round + 1, params=params, public=public)


def federate(
    sites: Sequence[Participant],
    start: RunState,
    terms: RoundConfig,
    transport: Transport,
    on_round: Callable[[RoundResult], bool],
) -> tuple[RunState, str]:
    """Algorithm 1, from `start` to its end, for the sites that this rank plays.

    Args:
        sites: this rank's hospitals, in site order; ranks hold consecutive ones.
        start: the state of this rank.
        terms: what all have agreed on.
        transport: the way to the other ranks.
        on_round: told of each finished round; returns whether to go on (the same answer at every rank).

    Returns:
        (the last state, why it ended: "finished", "budget" or "preempted"; a round that was left is not in it).
    """
    state = start
    while state.round < terms.rounds:
        if not all_agree(transport, all(site.can_afford(state.round) for site in sites), state.round + 1):
            return state, "budget"
        try:
            result = _one_round(sites, state, terms, transport)
        except Interrupted:
            return state, "preempted"
        state = result.state
        if not on_round(result) and state.round < terms.rounds:
            return state, "preempted"
    return state, "finished"


def _one_round(sites: Sequence[Participant], state: RunState, terms: RoundConfig, transport: Transport) -> RoundResult:
    watch = Stopwatch()
    collect = terms.secure or in_the_open(terms)
    got = collect(sites, state, transport, watch)
    down, traffic, server = None, None, state.server
    if got.mean is not None:
        with watch.phase("aggregate"):
            step, kept = server_step(got.mean, state, terms)
            payload, residual = server_round(step, state, residual_of(server), terms)
            down = terms.message(payload, got.more)
            server = with_algorithm({RESIDUAL: residual, **got.rule, **kept}, got.kept)
            traffic = Traffic(got.up_bytes, got.down_bytes + len(down))
    with watch.phase("exchange"):
        done = replace(state, server=server, sites=got.sites)
        if terms.rewards is not None:
            rewarded = terms.rewards.deliver(down, state, done, transport)
            after = rewarded.state
            traffic = traffic and replace(traffic, down_by_site=rewarded.down_bytes)
        else:
            after = next_state(done, transport.broadcast(down, "update", state.round + 1), terms)
            check_replicas_equal(transport, after.params, after.round, [site.name for site in sites])
    return RoundResult(after, traffic, watch, got.dropped, got.flags)


def in_the_open(terms: RoundConfig) -> "Collector":
    """Every site's update comes to the aggregator as it is."""

    def collect(sites: Sequence[Participant], state: RunState, transport: Transport, watch: Stopwatch) -> Collected:
        kept = state.sites
        with watch.phase("train"):
            trained = unless_interrupted(lambda: [site_round(s, state, kept[s.name], terms) for s in sites])
        with watch.phase("exchange"):
            done = require_all_trained(transport, trained, state.round + 1)
            received = transport.stream([message for message, _ in done], "update", state.round + 1)
        after = {site.name: after for site, (_, after) in zip(sites, done, strict=True)}
        if transport.rank:
            return Collected(None, after, ())
        up_bytes: list[int] = []
        with watch.phase("aggregate"):
            messages = _weighed(received, up_bytes, watch)
            messages = terms.stress(messages, state, terms) if terms.stress else messages
            messages = terms.store(messages, state) if terms.store else messages
            messages = terms.rewards.observed(messages) if terms.rewards else messages
            folded = mean_update(messages, state, terms)
        return Collected(
            mean=folded.mean,
            sites=after,
            up_bytes=tuple(up_bytes),
            kept=folded.kept,
            more=folded.more,
            rule=folded.rule,
            flags=folded.flags,
        )

    return collect


def _weighed(received: Iterator[bytes], up_bytes: list[int], watch: Stopwatch) -> Iterator[bytes]:
    """The payloads as they come; waiting for one is exchange, whatever is done with it in between."""
    while True:
        with watch.phase("exchange"):
            payload = next(received, None)
        if payload is None:
            return
        up_bytes.append(len(payload))
        yield payload


def placement(sites: int, ranks: int, dedicated: bool) -> list[range]:
    """Which sites each rank plays, by index: consecutive blocks, as equal as can be; none for a dedicated aggregator.

    >>> placement(5, 2, dedicated=False)
    [range(0, 3), range(3, 5)]
    >>> placement(2, 3, dedicated=True)
    [range(0, 0), range(0, 1), range(1, 2)]
    """
    if dedicated and ranks > 1:
        return [range(0), *placement(sites, ranks - 1, dedicated=False)]
    share, more = divmod(sites, ranks)
    starts = [rank * share + min(rank, more) for rank in range(ranks + 1)]
    return [range(starts[rank], starts[rank + 1]) for rank in range(ranks)]
