"""The sites' part of a round when the aggregator may see only their sum: `privacy.trust: sites`.

    each site: charge the ledger, make keys, share their secrets among all          a site that cannot is absent
    each site: sum the clipped gradients of its units, add its share of the noise,  a site that fails here drops out;
               mask the integers, send them                                         the others' shares free its masks
    the aggregator: too few sites left -> refuse the round, before any mask is removed
    each site: sign the list of those that are left, check that at least `threshold` have signed the same one,
               reveal its shares of the survivors' self-masks and of the mask keys of those that dropped out
    the aggregator: sum -> mean gradient -> one step of the optimiser = the mean update

Protocol and guarantee: `fedhpc.secagg.protocol`; integers and noise: `fedhpc.site.training.secure_contribution`. The
masks cancel exactly, so with a `noise_seed` the result is the same, bit for bit, at any number of ranks, though every
key is fresh.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, cast

from fedhpc.algorithms.round_types import Collected, Participant
from fedhpc.algorithms.run_state import RunState
from fedhpc.config.privacy import Privacy
from fedhpc.errors import SiteError
from fedhpc.secagg.masks import SumTerms
from fedhpc.secagg.messages import CONFIRMED, KEYS, MASKED, REVEALED, SHARES, split_broadcast
from fedhpc.secagg.protocol import MaskedSite, SumAggregator
from fedhpc.secagg.signatures import SigningSite
from fedhpc.site.training.secure_contribution import IntegerGrid
from fedhpc.transport.base import Transport
from fedhpc.util.arrays import F32, I64
from fedhpc.util.stopwatch import Stopwatch

T = TypeVar("T")


class SecureParticipant(Participant, Protocol):
    """What a secure round asks of a hospital (see `fedhpc.site.hospital.Hospital`)."""

    def enter(self, round: int) -> None:
        """Charge the ledger for the round; raises SiteError where it cannot."""

    def contribute(self, params: F32, round: int, grid: IntegerGrid) -> I64:
        """Return the clipped sum with the share of the noise, int64[d]; raises SiteError where training fails."""


@dataclass(frozen=True)
class SecureMean:
    """A `fedhpc.algorithms.fedavg.Collector` by secure sums.

    Attributes:
        terms: of the protocol; its threshold is the number of sites less the dropouts that are tolerated.
        grid: of the integers.
        sites: (name, declared weight) of all sites, by index.
        privacy: what has been agreed on.
        step: (global state, private mean gradient f32[d]) -> the mean update f32[d].
        tell: told of a failure of a site at this rank that the round survives.
        identities: of this rank's sites by index: what they sign with, and whose signatures they accept.
        threads: of this rank, which mask and add up.
    """

    terms: SumTerms
    grid: IntegerGrid
    sites: tuple[tuple[str, int], ...]
    privacy: Privacy
    step: Callable[[RunState, F32], F32]
    tell: Callable[[str], None]
    identities: Mapping[int, SigningSite]
    threads: int = 1

    def __call__(
        self, sites: Sequence[Participant], state: RunState, transport: Transport, watch: Stopwatch
    ) -> Collected:
        """See `Collector`. All of the sum is sent, so residuals stay as they are.

        Raises:
            SiteError: one site failed and none may, or (at rank 0) more dropped out than are tolerated.
        """
        participants = {site.index: _Masked(cast(SecureParticipant, site), self, state) for site in sites}
        aggregator = SumAggregator(self.terms, state.round, self.threads) if transport.rank == 0 else None
        relay = _Relay(transport, state.round + 1, aggregator, [name for name, _ in self.sites], tuple(participants))
        with watch.phase("exchange"):
            keys = self._attempt(participants, _Masked.enter)
            roster = relay(KEYS, keys)
            shares = relay(SHARES, {index: participants[index].masks.share(roster) for index in keys})
        with watch.phase("train"):
            masked = self._attempt({index: participants[index] for index in keys}, lambda one: one.train(shares))
        with watch.phase("exchange"):
            survivors = relay(MASKED, masked)
            confirmed = relay(CONFIRMED, {index: participants[index].masks.confirm(survivors) for index in masked})
            relay(REVEALED, {index: participants[index].masks.reveal(confirmed) for index in masked})
        stayed = split_broadcast(MASKED, state.round, survivors, 0)
        dropped = tuple(name for index, (name, _) in enumerate(self.sites) if index not in stayed)
        if aggregator is None:
            return Collected(None, state.sites, (), dropped=dropped)
        with watch.phase("aggregate"):
            weight = sum(self.sites[index][1] for index in stayed)
            mean = self.step(state, self.grid.mean_gradient(aggregator.total(), weight, self.privacy))
        return Collected(mean, state.sites, tuple(relay.up_bytes), relay.down_bytes, dropped)

    def _attempt(self, participants: Mapping[int, "_Masked"], work: Callable[["_Masked"], T]) -> dict[int, T]:
        """Return what `work` gives for each site; where dropouts are tolerated, without the sites that fail."""
        done = {}
        for index, one in participants.items():
            try:
                done[index] = work(one)
            except SiteError as error:
                if not self.privacy.tolerated_dropouts:
                    raise
                self.tell(str(error))
        return done


class _Masked:
    """One site of this rank in one round, with its secrets."""

    def __init__(self, site: SecureParticipant, mean: SecureMean, state: RunState) -> None:
        self._site, self._grid, self._state = site, mean.grid, state
        self.masks = MaskedSite(mean.terms, mean.identities[site.index], state.round, mean.threads)

    def enter(self) -> bytes:
        self._site.enter(self._state.round)
        return self.masks.advertise()

    def train(self, shares: bytes) -> bytes:
        return self.masks.mask(shares, self._site.contribute(self._state.params, self._state.round, self._grid))


@dataclass
class _Relay:
    """Messages of one kind from all ranks' sites to the aggregator, and its answer to all. Counts every byte."""

    transport: Transport
    round: int | None
    aggregator: SumAggregator | None
    names: Sequence[str]
    mine: tuple[int, ...]
    down_bytes: int = 0
    up_bytes: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.up_bytes = [0] * len(self.names)

    def __call__(self, kind: int, messages: Mapping[int, bytes]) -> bytes:
        sent = [messages.get(index, b"") for index in self.mine]
        payloads = self.transport.gather(sent, "update", self.round)
        answer = None
        if self.aggregator is not None:
            self.up_bytes = [sent + len(more) for sent, more in zip(self.up_bytes, payloads, strict=True)]
            answer = self._answered(self.aggregator, kind, payloads)
            self.down_bytes += len(answer)
        return self.transport.broadcast(answer, "update", self.round)

    def _answered(self, aggregator: SumAggregator, kind: int, payloads: Sequence[bytes]) -> bytes:
        missing = [name for name, payload in zip(self.names, payloads, strict=True) if not payload]
        if len(payloads) - len(missing) < aggregator.terms.threshold:
            allowed = len(self.names) - aggregator.terms.threshold
            raise SiteError(
                f"round {aggregator.round + 1}: {', '.join(missing)} dropped out, {len(missing)} of {len(self.names)} "
                f"sites; privacy.tolerated_dropouts={allowed}. The round was refused before any mask was removed",
                code="secagg.too-few-sites",
            )
        answer = aggregator.answer(kind, payloads)
        # Nobody waits for what was revealed: it is the aggregator's own.
        return b"" if kind == REVEALED else answer


@dataclass(frozen=True)
class SumGroup:
    """Who takes part in a secure sum: the names of all sites, and this rank's sites by index with what they sign by."""

    transport: Transport
    names: tuple[str, ...]
    identities: Mapping[int, SigningSite]


def masked_sum(group: SumGroup, terms: SumTerms, number: int, vectors: Mapping[int, I64]) -> I64 | None:
    """Return the sum over all sites of one int64[terms.size] each, by one secure sum: at rank 0, None elsewhere.

    Args:
        group: the sites, as seen from this rank.
        terms: of the protocol.
        number: of the sum, in the place of a round: used once in a run and unlike any round.
        vectors: of this rank's sites, by index (private until they are masked).

    Raises:
        SiteError: at rank 0, where a site is missing.
    """
    masks = {index: MaskedSite(terms, group.identities[index], number) for index in vectors}
    aggregator = SumAggregator(terms, number) if group.transport.rank == 0 else None
    relay = _Relay(group.transport, None, aggregator, group.names, tuple(masks))
    roster = relay(KEYS, {index: one.advertise() for index, one in masks.items()})
    shares = relay(SHARES, {index: one.share(roster) for index, one in masks.items()})
    survivors = relay(MASKED, {index: one.mask(shares, vectors[index]) for index, one in masks.items()})
    confirmed = relay(CONFIRMED, {index: one.confirm(survivors) for index, one in masks.items()})
    relay(REVEALED, {index: one.reveal(confirmed) for index, one in masks.items()})
    return None if aggregator is None else aggregator.total()
