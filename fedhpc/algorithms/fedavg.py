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

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedhpc.aggregation.base import Arrays, RuleRound
from fedhpc.algorithms.base import Folded, Trained, of_algorithm, with_algorithm
from fedhpc.algorithms.round_types import Collected, Collector, Participant, RoundConfig, RoundResult
from fedhpc.algorithms.run_state import OPTIMIZER, RECEIVED, RESIDUAL, RULE, RunState, of, residual_of, under
from fedhpc.compression.codec import decode, encode
from fedhpc.compression.error_feedback import with_feedback
from fedhpc.compression.float_bits import first_at_least
from fedhpc.compression.top_k import Layers, entry_name
from fedhpc.compression.update import AGGREGATOR, LARGEST_ENTRY, REFUSED_BITS, Update
from fedhpc.errors import Interrupted, PayloadError, at
from fedhpc.records.rounds import Traffic
from fedhpc.transport.base import Transport
from fedhpc.transport.collectives import all_agree, check_replicas_equal, require_all_trained, unless_interrupted
from fedhpc.util.arrays import F32
from fedhpc.util.stopwatch import Stopwatch


def site_round(site: Participant, state: RunState, kept: Arrays, terms: RoundConfig) -> tuple[bytes, Arrays]:
    """Make one hospital's part of a round: train, and send the top k of what it gave.

    Returns:
        (the message for the aggregator, what the site keeps).

    Raises:
        SiteError: training failed.
    """
    own, public = of_algorithm(kept), of_algorithm(state.public)
    start = start_of(state, kept, terms)
    update = site.train(start, state.round, terms.algorithm.regularizer(own, public))
    return sent_by_site(site, Training(start, update, kept, state.round), state, terms)


def start_of(state: RunState, kept: Arrays, terms: RoundConfig) -> F32:
    """Return what a site trains from, f32[d]: the global model, with what is its own."""
    params = kept.get(RECEIVED, state.params).astype(np.float32, copy=False)
    return terms.local.at_site(params, kept)


@dataclass(frozen=True)
class Training:
    """What local training gave.

    Attributes:
        start: the parameters that it began from, f32[d].
        update: local - global, f32[d].
        kept: what the site keeps.
        round: whose training it is; one before the round in which it is sent, where it is late.
    """

    start: F32
    update: F32
    kept: Arrays
    round: int


def sent_by_site(site: Participant, training: Training, state: RunState, terms: RoundConfig) -> tuple[bytes, Arrays]:
    """Return (message for the aggregator, what the site keeps): the top k of the update, and the residual f32[d]."""
    kept = training.kept
    own, public = of_algorithm(kept), of_algorithm(state.public)
    update, at_home = terms.local.parted(training.start, training.update)
    with at(f"site {site.name}, round {state.round + 1}"):
        up, draws = terms.up.of_round(state.round), terms.draws(state.round, site.index)
        sent, residual = with_feedback(update, residual_of(kept), up, draws)
        weight, sender = site.gradient_weight(training.round), terms.sender(site.index, state.round)
        own, more = terms.algorithm.after_training(own, public, Trained(update, sent, weight, sender))
    message = terms.message(encode(Update(site.index, state.round, sent)), more)
    return message, with_algorithm({**kept, **at_home, RESIDUAL: residual}, own)


def rule_round(state: RunState, terms: RoundConfig) -> RuleRound:
    """Return what the aggregation rule knows of a round."""
    kept = of(RULE, state.server)
    if terms.aggregation.keeps_rows and terms.rows is not None:
        kept = {name: array[list(terms.rows)] for name, array in kept.items()}
    return RuleRound(state.params.size, state.round, terms.sites, kept, terms.scales(state.round))


def rule_kept(found: Arrays, state: RunState, terms: RoundConfig) -> Arrays:
    """Return what the rule keeps after a round; of absent sites as it was, so that they are as before when back."""
    if not terms.aggregation.keeps_rows or terms.rows is None:
        return found
    kept = {name: array.copy() for name, array in of(RULE, state.server).items()}
    for name, rows in found.items():
        kept[name][list(terms.rows)] = rows
    return kept


def mean_update(messages: Iterable[bytes], state: RunState, terms: RoundConfig) -> Folded:
    """Fold the sites' messages into one update of all, f32[d], by the aggregation rule.

    Messages come in site order; each is added before the next is taken, so that memory need not grow with the sites. A
    site of weight 0 sends nothing in this round.
    """
    aggregator = terms.aggregation.aggregator(rule_round(state, terms))
    fold = terms.algorithm.fold(of_algorithm(state.server), of_algorithm(state.public))
    for index, message in enumerate(messages):
        if not terms.weights[index]:
            check_nothing_sent(message, terms.sites[index], state.round)
            continue
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
    kept = rule_kept(found.kept, state, terms)
    return replace(folded, rule=under(RULE, kept), flags=found.flags)


def check_nothing_sent(message: bytes, site: str, round: int) -> None:
    """Raises PayloadError where a site that is late has sent something."""
    if message:
        raise PayloadError(f"site {site}, round {round + 1}: sent an update that it had said is not ready")


def check_plausible(update: Update, layers: Layers) -> None:
    """Check that no entry is longer than `LARGEST_ENTRY`: folded, it would destroy the model or overflow the mean.

    Raises:
        PayloadError: naming the round, the entry and its layer; nothing of the update has been folded.
    """
    found = first_at_least(update.entries.values, REFUSED_BITS)
    if found is not None:
        index, value = int(update.entries.indices[found]), update.entries.values[found]
        raise PayloadError(
            f"round {update.round + 1}: {entry_name(index, layers)} of its update is {value:g}; no step of one round "
            f"is longer than {LARGEST_ENTRY:g}. The round was refused and the model is that of the round before: look "
            "into this site's training, and lower training.lr where it diverges",
            code="payload.not-finite",
        )


def server_step(mean: F32, state: RunState, terms: RoundConfig) -> tuple[F32, Arrays]:
    """Return (the server optimiser's step of the parameters f32[d], what it keeps), from the mean update f32[d]."""
    step, kept = terms.server.step(mean, of(OPTIMIZER, state.server), state.round)
    return step, under(OPTIMIZER, kept)


def server_round(step: F32, state: RunState, residual: F32, terms: RoundConfig) -> tuple[bytes, F32]:
    """Return (payload for all, new residual f32[d]): the top k of step f32[d] + residual f32[d]."""
    with at(f"aggregator, round {state.round + 1}"):
        draws = terms.draws(state.round, AGGREGATOR)
        sent, residual = with_feedback(step, residual, terms.down.of_round(state.round), draws)
    return encode(Update(AGGREGATOR, state.round, sent)), residual


def next_state(state: RunState, message: bytes, terms: RoundConfig) -> RunState:
    """Return the state after the round: the global parameters, and what else all know, with what the aggregator sent.

    Raises:
        PayloadError: the message is none of this round.
    """
    payload, more = terms.parts(message)
    update = decode(payload, sender=AGGREGATOR, round=state.round, size=state.params.size)
    params = state.params.copy()
    update.entries.add_to(params)
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
    """Run Algorithm 1 from `start` to its end, for the sites that this rank plays.

    Args:
        sites: this rank's hospitals, in site order; those of a rank need not follow each other.
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
    collect = terms.secure or terms.late or in_the_open(terms)
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
    return RoundResult(after, traffic, watch, got.dropped, got.flags, got.arrivals)


def in_the_open(terms: RoundConfig) -> "Collector":
    """Return the collector by which every site's update comes to the aggregator as it is."""

    def collect(sites: Sequence[Participant], state: RunState, transport: Transport, watch: Stopwatch) -> Collected:
        kept = state.sites
        with watch.phase("train"):
            trained = unless_interrupted(lambda: [site_round(s, state, kept[s.name], terms) for s in sites])
        with watch.phase("exchange"):
            done = require_all_trained(transport, trained, state.round + 1)
            payloads = transport.stream([message for message, _ in done], "update", state.round + 1)
        after = {site.name: after for site, (_, after) in zip(sites, done, strict=True)}
        if transport.rank:
            return Collected(None, after, ())
        up_bytes: list[int] = []
        with watch.phase("aggregate"):
            messages = received(payloads, up_bytes, watch)
            messages = terms.stress(messages, state, terms) if terms.stress else messages
            messages = terms.store(messages, state) if terms.store else messages
            messages = terms.rewards.observed(messages) if terms.rewards else messages
            folded = mean_update(messages, state, terms)
        return Collected.of(folded, after, up_bytes)

    return collect


def received(payloads: Iterator[bytes], up_bytes: list[int], watch: Stopwatch) -> Iterator[bytes]:
    """Yield the payloads as they come, and note their sizes.

    Waiting for one is exchange, whatever is done with it in between.
    """
    while True:
        with watch.phase("exchange"):
            payload = next(payloads, None)
        if payload is None:
            return
        up_bytes.append(len(payload))
        yield payload
