"""Rewards: the downlink carries accuracy in proportion to contribution (CGSV, Xu et al. 2021, Algorithm 1).

    rank 0, from the sites' updates u_i and the step v that it would send to all:
        r_i = alpha r_i + (1 - alpha) cos(u_i, v)                          0 where it is negative; kept by rank 0
        q_i = tanh(beta r_i) / max_j tanh(beta r_j)
        site i gets the share q_i of v's entries, the largest first
    site i: x_i = x_i + what it got, and trains on from there
    rank 0: x = x + v; no other rank has x

(X. Xu, L. Lyu, X. Ma, C. Miao, C. S. Foo, B. K. H. Low, "Gradient driven rewards to guarantee fairness in collaborative
machine learning", NeurIPS 2021.) The sites' states differ by design, so that digests of them are not compared. Each
site's payload goes through its own TLS session (`SiteChannels.to_each`): another hospital cannot read it.

A copy of somebody's update is rewarded like the original, and so is anybody who sends what points along the step:
`run.py contribution` tells copies, rewards do not.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, cast

import numpy as np

from fedhpc.algorithms.run_state import RECEIVED, RunState, own_params
from fedhpc.compression.codec import decode, encode
from fedhpc.compression.error_feedback import count_to_send
from fedhpc.compression.top_k import top_k
from fedhpc.compression.update import AGGREGATOR, SparseVector, Update
from fedhpc.errors import PayloadError
from fedhpc.transport.base import Transport
from fedhpc.util.arrays import F32, F64

CONTRIBUTIONS = "contributions"
"""What rank 0 keeps: r, f64[n]."""


class SiteChannels(Transport, Protocol):
    """A transport that also has a channel to each site by itself."""

    def to_each(self, payloads: Sequence[bytes] | None, round: int) -> list[bytes]:
        """Rank 0's payloads, one a site in site order; at every rank those of its own sites."""


@dataclass(frozen=True)
class Rewarded:
    """The state after a round, and how many bytes each site was sent (at rank 0)."""

    state: RunState
    down_bytes: tuple[int, ...]


@dataclass
class Rewards:
    """One run's rewards at one rank. Within a round it holds what rank 0 has received.

    Attributes:
        altruism: beta of the paper.
        memory: alpha of the paper.
        own: the names of this rank's sites, in site order.
        sites: of all sites that take part, in site order.
        declared: of all sites of the config; one that is away keeps its contribution.
    """

    altruism: float
    memory: float
    own: tuple[str, ...]
    sites: tuple[str, ...]
    declared: tuple[str, ...]
    _seen: list[bytes] = field(default_factory=list)

    def observed(self, messages: Iterable[bytes]) -> Iterator[bytes]:
        """Yield a round's messages, and keep them until it is rewarded."""
        self._seen = []
        for message in messages:
            self._seen.append(message)
            yield message

    def deliver(self, down: bytes | None, before: RunState, done: RunState, transport: Transport) -> Rewarded:
        """Send each site its share of the step, and return the state after the round.

        Args:
            down: what rank 0 would send to all; None elsewhere.
            before: the state before the round.
            done: the same, with what server and sites keep after it.
            transport: the way to the other ranks; it has a channel to each site.
        """
        server, payloads, params = done.server, None, before.params
        if down is not None:
            step = decode(down, sender=AGGREGATOR, round=before.round, size=params.size).entries
            found = self._contributions(step, before)
            here = found[[self.declared.index(name) for name in self.sites]]
            payloads = [_payload(step, share, before.round) for share in shares(here, self.altruism)]
            server, params = {**server, CONTRIBUTIONS: found}, _plus(params, step)
        mine = cast(SiteChannels, transport).to_each(payloads, before.round + 1)
        sites = dict(done.sites)
        for name, payload in zip(self.own, mine, strict=True):
            got = decode(payload, sender=AGGREGATOR, round=before.round, size=params.size).entries
            sites[name] = {**sites[name], RECEIVED: _plus(own_params(done, name), got)}
        after = replace(done, round=before.round + 1, params=params, server=server, sites=sites)
        return Rewarded(after, tuple(map(len, payloads or ())))

    def _contributions(self, step: SparseVector, before: RunState) -> F64:
        found = before.server[CONTRIBUTIONS].astype(np.float64)
        for i, (name, message) in enumerate(zip(self.sites, self._seen, strict=True)):
            cosine, k = _cosine(Update(i, before.round, step), message), self.declared.index(name)
            found[k] = max(self.memory * found[k] + (1 - self.memory) * cosine, 0.0)
        self._seen = []
        return found


def _cosine(step: Update, message: bytes) -> float:
    """The cosine of a site's update and the step, which says of which site and round; 0 where the message is none."""
    try:
        update = decode(message, sender=step.sender, round=step.round, size=step.entries.size).entries
    except PayloadError:
        return 0.0
    one, other = (entries.dense().astype(np.float64) for entries in (update, step.entries))
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / lengths if lengths > 0 else 0.0


def with_rewards(fresh: RunState, sites: int) -> RunState:
    """Return the state before the first round of so many sites, each with a model of its own: the initial one."""
    own = {name: {**kept, RECEIVED: fresh.params} for name, kept in fresh.sites.items()}
    return replace(fresh, sites=own, server={**fresh.server, CONTRIBUTIONS: np.zeros(sites)})


def shares(contributions: F64, altruism: float) -> F64:
    """Return the share of the step's entries that each site gets, f64[n], 1 for the largest contributor.

    >>> shares(np.array([0.6, 0.3, 0.0]), altruism=1.0).round(2).tolist()
    [1.0, 0.54, 0.0]
    >>> shares(np.array([0.6, 0.3, 0.0]), altruism=20.0).round(2).tolist()
    [1.0, 1.0, 0.0]
    >>> shares(np.zeros(2), altruism=1.0).tolist()
    [1.0, 1.0]
    """
    worth = np.tanh(altruism * contributions)
    most = worth.max(initial=0.0)
    return np.asarray(worth / most if most > 0 else np.ones_like(worth))


def _payload(step: SparseVector, share: float, round: int) -> bytes:
    """Return the largest entries of a step, so many as the share is; none of them for a share of 0."""
    if share >= 1:
        return encode(Update(AGGREGATOR, round, step))
    kept = count_to_send(step.indices.size, share) if share > 0 and step.indices.size else 0
    chosen = top_k(step.values, kept).indices if kept else np.empty(0, np.int64)
    part = SparseVector(step.size, step.indices[chosen], step.values[chosen], step.grid)
    return encode(Update(AGGREGATOR, round, part))


def _plus(params: F32, step: SparseVector) -> F32:
    after = params.copy()
    after[step.indices] += step.values
    return after
