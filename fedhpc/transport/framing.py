"""How payloads of all ranks make one stream of bytes, and how they are read from it."""

import struct
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from fedhpc.errors import PayloadError
from fedhpc.transport.egress_log import Kind
from fedhpc.util.arrays import I64
from fedhpc.util.memory import available_bytes

COUNT = struct.Struct("<Q")
SMALL_BROADCAST_BYTES = 2**28
"""The most that a broadcast of another kind than `update` may take: the problems of 1,024 ranks are 64 MiB."""
Bytes = bytes | memoryview


def check_announced(size_bytes: int, kind: Kind) -> None:
    """Refuse the size of a broadcast for which no memory must be taken; an honest one is far below.

    Raises:
        PayloadError: it is negative, beyond SMALL_BROADCAST_BYTES, or of an update, whose size depends on the network,
            beyond what this process may still take.
    """
    most = available_bytes() if kind == "update" else SMALL_BROADCAST_BYTES
    if not 0 <= size_bytes <= most:
        raise PayloadError(
            f"aggregator, {kind}: it announces {size_bytes} bytes, at most {most} are accepted; refused unread"
        )


class Pieces:
    """Several byte strings as one long one that is never put together.

    >>> pieces = Pieces([b"ab", b"", b"cde"])
    >>> pieces.size, bytes(pieces.between(1, 4)), bytes(pieces.between(3, 5)), bytes(pieces.between(5, 5))
    (5, b'bcd', b'de', b'')
    """

    def __init__(self, parts: Sequence[bytes]) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        self.size = int(self._ends[-1])

    def between(self, low: int, high: int) -> Bytes:
        """Return the bytes from `low` to before `high`; of one part, without a copy."""
        inside = []
        for part, end in zip(self._parts, self._ends.tolist(), strict=True):
            start = end - len(part)
            if low < end and start < high:
                inside.append(memoryview(part)[max(low - start, 0) : high - start])
        return inside[0] if len(inside) == 1 else b"".join(inside)


def frame_header(payloads: Sequence[bytes]) -> bytes:
    """Return what goes before a rank's payloads in the stream: how many there are, and the length of each."""
    return COUNT.pack(len(payloads)) + struct.pack(f"<{len(payloads)}Q", *map(len, payloads))


def carved(waves: Iterable[Bytes], ranks: int) -> Iterator[bytes]:
    """The payloads of `ranks` ranks from the waves of their stream, each as soon as its last byte is there.

    >>> stream = frame_header([b"ab", b""]) + b"ab" + frame_header([]) + frame_header([b"c"]) + b"c"
    >>> list(carved([stream[:30], stream[30:]], 3))
    [b'ab', b'', b'c']
    """
    stream = _Stream(waves)
    for _ in range(ranks):
        (count,) = COUNT.unpack(stream.read(COUNT.size))
        for length in struct.unpack(f"<{count}Q", stream.read(COUNT.size * count)):
            yield stream.read(length)
    stream.end()


def divided(waves: Iterable[Bytes], sizes: Sequence[int], excess: int, what: str) -> Iterator[bytes]:
    """The payloads of these sizes from the waves of their stream; of a size below 0 there is none.

    Args:
        waves: the stream.
        sizes: of the payloads that are expected.
        excess: how many more the ranks would have sent.
        what: the kind of the payloads, for the error.

    Raises:
        PayloadError: at the end, where there is an excess.

    >>> list(divided([b"ab", b"c"], [1, 0, -1, 2], 0, "update"))
    [b'a', b'', b'bc']
    """
    stream = _Stream(waves)
    came = [size for size in sizes if size >= 0]
    for size in came:
        yield stream.read(size)
    stream.end()
    if excess:
        raise PayloadError(f"{len(came)} {what} messages were expected, and more came", code="payload.missing")


def interleaved(wave: Bytes, ranks: I64, lengths: I64) -> Iterator[Bytes]:
    """The pieces of a wave in the order of the parts that they belong to; in the wave they are in rank order.

    >>> [bytes(piece) for piece in interleaved(b"acb", np.array([0, 1, 0]), np.array([1, 1, 1]))]
    [b'a', b'b', b'c']
    """
    order = np.argsort(ranks, kind="stable")
    ends = np.empty_like(lengths)
    ends[order] = np.cumsum(lengths[order])
    view = memoryview(wave)
    for part in np.flatnonzero(lengths).tolist():
        yield view[ends[part] - lengths[part] : ends[part]]


class _Stream:
    """Reads a given number of bytes at a time from waves of any length."""

    def __init__(self, waves: Iterable[Bytes]) -> None:
        self._waves = iter(waves)
        self._rest = memoryview(b"")

    def read(self, size: int) -> bytes:
        parts, missing = [], size
        while missing:
            if not self._rest:
                self._rest = memoryview(self._next())
            parts.append(self._rest[:missing])
            self._rest = self._rest[len(parts[-1]) :]
            missing -= len(parts[-1])
        return b"".join(parts)

    def end(self) -> None:
        """Raises PayloadError where bytes are left over."""
        if self._rest or next(self._waves, None) is not None:
            raise PayloadError("the ranks sent more bytes than their lengths add up to")

    def _next(self) -> Bytes:
        wave = next(self._waves, None)
        if wave is None:
            raise PayloadError("the ranks sent fewer bytes than their lengths add up to")
        return wave
