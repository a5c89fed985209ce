"""What the round needs of the ranks, and its one-process twin."""

from collections.abc import Iterator, Sequence
from typing import Protocol

from fedhpc.transport.egress_log import Kind


class Transport(Protocol):
    """What the round needs of the ranks. `rank` 0 is the aggregator's.

    Every payload is of a kind on the whitelist (`fedhpc.transport.egress_log`): of control there is one payload a rank,
    of all other kinds one a site. `round` is numbered as in rounds.jsonl; None outside the rounds.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int

    def stream(self, payloads: Sequence[bytes], kind: Kind, round: int | None = None) -> Iterator[bytes]:
        """All ranks' payloads at rank 0, each as it arrives; nothing elsewhere.

        They come in the order of the sites, those of kind control in that of the ranks.
        Rank 0 must take them all before its next call: the others are held until it does.
        """

    def gather(self, payloads: Sequence[bytes], kind: Kind, round: int | None = None) -> list[bytes]:
        """The same, all at once; an empty list elsewhere."""

    def broadcast(self, payload: bytes | None, kind: Kind, round: int | None = None) -> bytes:
        """Rank 0's payload, at every rank; the others pass None."""

    def limit_waits(self, limit_s: float | None) -> None:
        """From now on take a rank for lost that does not answer for so long; None: wait for ever."""

    def deliver_by_site(self, ranks: Sequence[int]) -> None:
        """From now on `stream` and `gather` bring what sites of other ranks send in site order.

        Before, it comes in rank order, as payloads of kind control always do.

        Args:
            ranks: of each site by index; a rank passes the payloads of its sites in site order.
        """


class Wire(Transport, Protocol):
    """What carries the bytes of a `Transport`."""

    def reordered(self, rank: int) -> "Wire":
        """The same processes with other numbers: this one is `rank` from now on. Every rank must call it."""

    def name_ranks(self, sites: Sequence[str]) -> None:
        """From now on call the ranks by their sites, one text a rank, where a message names them."""


class AloneTransport:
    """The sequential driver's: one process is all there is."""

    rank, size, local_rank, local_size = 0, 1, 0, 1

    def stream(self, payloads: Sequence[bytes], kind: Kind, round: int | None = None) -> Iterator[bytes]:
        """See `Transport`."""
        return iter(payloads)

    def gather(self, payloads: Sequence[bytes], kind: Kind, round: int | None = None) -> list[bytes]:
        """See `Transport`."""
        return list(payloads)

    def broadcast(self, payload: bytes | None, kind: Kind, round: int | None = None) -> bytes:
        """See `Transport`."""
        if payload is None:
            raise ValueError("payload=None: rank 0 must pass the payload that it broadcasts")
        return payload

    def limit_waits(self, limit_s: float | None) -> None:
        """See `Transport`: there is nobody to wait for."""

    def deliver_by_site(self, ranks: Sequence[int]) -> None:
        """See `Transport`: the payloads of one process are in site order."""

    def to_each(self, payloads: Sequence[bytes] | None, round: int) -> list[bytes]:
        """See `fedhpc.algorithms.rewards.SiteChannels`."""
        if payloads is None:
            raise ValueError("payloads=None: rank 0 must pass a payload for each site")
        return list(payloads)

    def reordered(self, rank: int) -> "AloneTransport":
        """See `Wire`."""
        return self

    def name_ranks(self, sites: Sequence[str]) -> None:
        """See `Wire`."""
