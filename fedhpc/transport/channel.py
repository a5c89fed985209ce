"""The secure channel: a `Transport` that searches, logs and encrypts all that passes, over one that only carries bytes.

    a site's payload:   searched for pixels of the site -> written into its egress log -> sealed in its TLS session
    rank 0's broadcast: written into rank 0's log -> sealed once, the key in every site's session (`exchange.seal`)

Sites that rank 0 plays itself have a log and no session: nothing of theirs crosses a wire. The payloads that come out
at the other end are the same bytes with and without TLS.
"""

import itertools
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fedhpc.errors import PayloadError, at
from fedhpc.transport.base import Transport
from fedhpc.transport.egress_log import EgressLog, Kind, Via, checked_kind
from fedhpc.transport.pixel_scan import BLOCK_BYTES, ImageSearch
from fedhpc.transport.sealed_broadcast import open_sealed, seal
from fedhpc.transport.tls import TlsSession
from fedhpc.util.arrays import U64

Note = Callable[[str], None]
NOISED: tuple[Kind, ...] = ("update", "features", "metrics")
"""Kinds whose payloads of a private run are functions of private releases and of what is public."""
SENT = (
    "It was sent: all in it carries the noise of privacy.epsilon or comes from the aggregator, and to withhold it "
    "would tell others whose image is here. By chance this does not happen. Ask who runs the aggregator, and look at "
    "the parameters of this round, before any other run"
)


@dataclass(frozen=True)
class Sessions:
    """The TLS sessions of one rank with the sites, or the aggregator, at the other end.

    Attributes:
        names: of all sites at other ranks than 0, in site order: the order of the tickets of a broadcast.
        speakers: of each such rank the first site: control payloads of the rank go through its session.
        by_site: this rank's end of each of its sessions, in site order; at rank 0 one for every name.
    """

    names: tuple[str, ...]
    speakers: tuple[str, ...]
    by_site: Mapping[str, TlsSession]


@dataclass
class Channel:
    """See the module. It is the `Transport` of a whole run, once its ranks know who they are.

    Attributes:
        wire: what carries the bytes.
        logs: the egress logs of this rank's sites, in site order.
        aggregator: the log of what the aggregator sends; None elsewhere than at rank 0.
        sessions: None: in the clear.
        order: of all sites; empty: this rank's come first.
    """

    wire: Transport
    logs: Mapping[str, EgressLog]
    aggregator: EgressLog | None
    sessions: Sessions | None = None
    order: tuple[str, ...] = ()
    _searches: dict[str, ImageSearch] = field(default_factory=dict)
    _notes: dict[str, Note] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rank, self.size = self.wire.rank, self.wire.size
        self.local_rank, self.local_size = self.wire.local_rank, self.wire.local_size
        if not self.order:
            self.order = (*self.logs, *(self.sessions.names if self.sessions is not None else ()))

    def search_for(self, site: str, blocks: U64, note: Note | None = None) -> None:
        """From now on search all payloads of `site` for these blocks of its images, uint64[m, 2] (private).

        Args:
            site: of this rank.
            blocks: what is searched for.
            note: of a private run: writes a find in what carries noise (NOISED) where the hospital alone reads it. Such
                a payload is sent all the same. Others can steer its bytes: by parameters that they choose, through
                weight decay or a control variate. Were it withheld, they would learn whose image is in the shard, and
                no noise covers that. None: a payload with a find is refused.
        """
        self._searches[site] = ImageSearch(blocks)
        if note is not None:
            self._notes[site] = note

    def limit_waits(self, limit_s: float | None) -> None:
        """See `Transport`."""
        self.wire.limit_waits(limit_s)

    def deliver_by_site(self, ranks: Sequence[int]) -> None:
        """See `Transport`."""
        self.wire.deliver_by_site(ranks)

    def gather(self, payloads: Sequence[bytes], kind: Kind, round: int | None = None) -> list[bytes]:
        """See `Transport`."""
        return list(self.stream(payloads, kind, round))

    def stream(self, payloads: Sequence[bytes], kind: Kind, round: int | None = None) -> Iterator[bytes]:
        """See `Transport`.

        Raises:
            PayloadError: what must not leave (nothing has, then), or at rank 0 what is not what a site has sent.
        """
        self._write_down(payloads, kind, round)
        if self.rank == 0:
            return self._received(payloads, kind, round)
        return self.wire.stream(self._sealed(payloads, kind), kind, round)

    def broadcast(self, payload: bytes | None, kind: Kind, round: int | None = None) -> bytes:
        """See `Transport`.

        Raises:
            PayloadError: naming this rank's sites, where what came is not what rank 0 has sent.
        """
        if self.aggregator is not None:
            if payload is None:
                raise ValueError("payload=None: rank 0 must pass the payload that it broadcasts")
            self.aggregator.write_down(payload, kind, round, via=self._via())
            sealed = payload if self.sessions is None else seal(payload, kind, self.sessions.by_site)
            self.wire.broadcast(sealed, kind, round)
            return payload
        sealed = self.wire.broadcast(None, kind, round)
        if self.sessions is None:
            return sealed
        places = {self.sessions.names.index(name): session for name, session in self.sessions.by_site.items()}
        with at(f"site {', '.join(self.logs)}"):
            return open_sealed(sealed, kind, places)

    def to_each(self, payloads: Sequence[bytes] | None, round: int) -> list[bytes]:
        """Rank 0's update payloads, one a site in site order; at every rank those of its own sites.

        Each goes through its site's TLS session, so that no other hospital can read it. All ranks get all ciphertexts.

        Raises:
            PayloadError: naming this rank's sites, where what came is not what rank 0 has sent.
            ValueError: several ranks without TLS, where all could read all.
        """
        if self.aggregator is not None:
            return self._sent_to_each(payloads or (), round)
        message = self.wire.broadcast(None, "update", round)
        if self.sessions is None:
            raise ValueError("exchange.tls=false: a payload for one site would be read by all")
        names = self.sessions.names
        with at(f"site {', '.join(self.logs)}"):
            parts = _apart(message, len(names))
            return [one.open(parts[names.index(name)], "update") for name, one in self.sessions.by_site.items()]

    def _sent_to_each(self, payloads: Sequence[bytes], round: int) -> list[bytes]:
        """See `to_each`, at rank 0."""
        sessions = self.sessions
        names = () if sessions is None else sessions.names
        if len(payloads) != len(self.logs) + len(names) or (self.size > 1 and sessions is None):
            raise ValueError(f"{len(payloads)} payloads for {len(self.logs)} sites here and {len(names)} behind TLS")
        for payload in payloads:
            if self.aggregator is not None:
                self.aggregator.write_down(payload, "update", round, via=self._via())
        of_site = dict(zip(self.order, payloads, strict=True))
        if sessions is not None:
            others = [sessions.by_site[name].seal(of_site[name], "update") for name in names]
            self.wire.broadcast(_together(others), "update", round)
        return [of_site[name] for name in self.logs]

    def _via(self) -> Via:
        if self.size == 1:
            return "process"
        return "clear" if self.sessions is None else "tls"

    def _write_down(self, payloads: Sequence[bytes], kind: Kind, round: int | None) -> None:
        checked_kind(kind)
        via: Via = "process" if self.rank == 0 else self._via()
        for names, payload in _senders(tuple(self.logs), payloads, kind):
            for name in names:
                searched = self._searched(name, payload, kind)
                self.logs[name].write_down(payload, kind, round, via=via, searched=searched)

    def _searched(self, name: str, payload: bytes, kind: Kind) -> int | None:
        """What the log says of the search: 1 where there was one; no count of blocks, which depends on the images."""
        search, note = self._searches.get(name), self._notes.get(name)
        if search is None:
            return None
        place = f"site {name}, {kind} payload of {len(payload)} bytes"
        if note is None or kind not in NOISED:
            search.refuse(payload, place)
        elif (at := search.found(payload)) is not None:
            note(f"{place}: the {BLOCK_BYTES} bytes from {at} on are also those of an image of this site. {SENT}")
        return 1

    def _sealed(self, payloads: Sequence[bytes], kind: Kind) -> list[bytes]:
        if self.sessions is None:
            return list(payloads)
        mine = list(self.sessions.by_site.values())
        speaking = mine[:1] if kind == "control" else mine
        return [session.seal(payload, kind) for session, payload in zip(speaking, payloads, strict=True)]

    def _received(self, own: Sequence[bytes], kind: Kind, round: int | None) -> Iterator[bytes]:
        others, mine = self._arriving(kind, round), iter(own)
        for name in () if kind == "control" else self.order:
            payload = next(mine if name in self.logs else others, None)
            if payload is not None:
                yield payload
        yield from mine
        yield from others

    def _arriving(self, kind: Kind, round: int | None) -> Iterator[bytes]:
        """What sites at other ranks have sent, opened; nothing is taken from the wire before the first is asked for."""
        arriving = self.wire.stream([], kind, round)
        if self.sessions is None:
            yield from arriving
            return
        expected = self.sessions.speakers if kind == "control" else self.sessions.names
        for name in expected:
            sealed = next(arriving, None)
            if sealed is None:
                raise PayloadError(f"site {name}: its {kind} message did not come", code="payload.missing")
            yield self.sessions.by_site[name].open(sealed, kind)
        if next(arriving, None) is not None:
            raise PayloadError(f"{len(expected)} {kind} messages were expected, and more came", code="payload.missing")


def _together(parts: Sequence[bytes]) -> bytes:
    """Return parts as one message; see `_apart`."""
    return struct.pack(f"<{len(parts)}Q", *map(len, parts)) + b"".join(parts)


def _apart(message: bytes, count: int) -> list[bytes]:
    """Return the parts of a message from `_together`.

    Raises:
        PayloadError: it is not one of so many parts.

    >>> _apart(_together([b"ab", b"", b"c"]), 3)
    [b'ab', b'', b'c']
    """
    head = struct.Struct(f"<{count}Q")
    lengths = head.unpack_from(message) if len(message) >= head.size else ()
    if len(message) != head.size + sum(lengths):
        raise PayloadError(f"the aggregator's message is not one of {count} parts", code="payload.tampered")
    ends = list(itertools.accumulate(lengths, initial=head.size))
    return [message[start:end] for start, end in itertools.pairwise(ends)]


def _senders(names: tuple[str, ...], payloads: Sequence[bytes], kind: Kind) -> Iterator[tuple[tuple[str, ...], bytes]]:
    """(the sites that a payload leaves, the payload): a site's own, or one for all of a rank's.

    >>> list(_senders(("a", "b"), [b"x", b"y"], "update")), list(_senders(("a", "b"), [b"x"], "control"))
    ([(('a',), b'x'), (('b',), b'y')], [(('a', 'b'), b'x')])
    """
    if len(payloads) == 1:
        yield names, payloads[0]
    elif kind != "control" and len(payloads) == len(names):
        yield from (((name,), payload) for name, payload in zip(names, payloads, strict=True))
    elif payloads:
        raise ValueError(f"{len(payloads)} {kind} payloads of {len(names)} sites: one of each, or one of all")
