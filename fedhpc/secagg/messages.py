"""The messages of a secure sum as bytes: framed, checked, numbered; and integers of any width. No pickle.

A message is a header (magic, kind, sender, round, CRC-32 of the body) and a body whose length both sides know.
"""

import struct
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from fedhpc.compression.update import AGGREGATOR
from fedhpc.errors import PayloadError
from fedhpc.util.arrays import I64, U64

MAGIC = b"FHSS"
HEADER = struct.Struct("<4sBHII")
ENTRY = struct.Struct("<H")
SPARE_BYTES = 16
"""Behind integers that are read as longer ones, or written by whole blocks of AES."""
ADD_BLOCK = 1 << 15
"""Entries of a vector that are added at a time."""
KEYS, SHARES, MASKED, CONFIRMED, REVEALED = range(5)
KIND_NAMES = ("keys", "shares", "masked", "confirmed", "revealed")


def frame(kind: int, sender: int, round: int, body: bytes) -> bytes:
    """One message."""
    return HEADER.pack(MAGIC, kind, sender, round, zlib.crc32(body)) + body


def unframe(kind: int, sender: int, round: int, payload: bytes) -> bytes:
    """The body of the message that `payload` must be; raises PayloadError, naming sender and round, where it is not."""
    if len(payload) >= HEADER.size:
        body = payload[HEADER.size :]
        if HEADER.unpack_from(payload) == (MAGIC, kind, sender, round, zlib.crc32(body)):
            return body
    raise PayloadError(
        f"payload of sender {sender} in round {round + 1}: is not its message {kind} of the secure sum", code="secagg"
    )


def bodies_of(kind: int, round: int, payloads: Sequence[bytes], body_bytes: int) -> dict[int, bytes]:
    """{site: body} of the sites' messages in site order; an empty payload stands for a site that sent none."""
    bodies = {site: unframe(kind, site, round, payload) for site, payload in enumerate(payloads) if payload}
    for site, body in bodies.items():
        if len(body) != body_bytes:
            raise PayloadError(
                f"payload of sender {site} in round {round + 1}: {len(body)} bytes, expected {body_bytes}",
                code="secagg",
            )
    return bodies


def broadcast_of(kind: int, round: int, bodies: Mapping[int, bytes]) -> bytes:
    """The aggregator's answer to all: every site's body, with its number."""
    return frame(kind, AGGREGATOR, round, b"".join(ENTRY.pack(site) + bodies[site] for site in sorted(bodies)))


def split_broadcast(kind: int, round: int, payload: bytes, body_bytes: int) -> dict[int, bytes]:
    """The inverse of `broadcast_of`, in site order."""
    block, step = unframe(kind, AGGREGATOR, round, payload), ENTRY.size + body_bytes
    starts = range(0, len(block), step)
    bodies = {ENTRY.unpack_from(block, at)[0]: block[at + ENTRY.size : at + step] for at in starts}
    if len(block) % step or len(bodies) != len(starts):
        raise PayloadError(
            f"payload of sender {AGGREGATOR} in round {round + 1}: is not a list of {body_bytes} bytes a site",
            code="secagg",
        )
    return dict(sorted(bodies.items()))


def to_bytes(values: U64, width_bytes: int) -> bytes:
    """The low `width_bytes` of each value, little-endian."""
    columns = values.astype("<u8", copy=False).view(np.uint8).reshape(-1, 8)
    out = np.empty((values.size, width_bytes), np.uint8)
    for place in range(width_bytes):
        # Copies of single bytes: some times as fast as of rows of a few.
        out[:, place] = columns[:, place]
    return out.tobytes()


def from_bytes(block: bytes | memoryview, width_bytes: int) -> U64:
    """The inverse of `to_bytes`.

    >>> from_bytes(to_bytes(np.array([1, 2**33 + 5], np.uint64), 3), 3).tolist()
    [1, 5]
    """
    out = np.zeros((len(block) // width_bytes, 8), np.uint8)
    out[:, :width_bytes] = np.frombuffer(block, np.uint8).reshape(-1, width_bytes)
    return out.view("<u8").reshape(-1).astype(np.uint64, copy=False)


def add_bytes(total: U64, block: bytes, width_bytes: int) -> None:
    """Add the values of `to_bytes` to uint64[size] modulo 2^(8 width_bytes), in place; see `low_bytes`."""
    view, part_bytes = memoryview(block), ADD_BLOCK * width_bytes
    copy = bytearray(part_bytes + SPARE_BYTES)
    for start in range(0, total.size, ADD_BLOCK):
        part, piece = total[start : start + ADD_BLOCK], view[start * width_bytes : start * width_bytes + part_bytes]
        copy[: len(piece)] = piece
        part += low_bytes(copy, part.size, width_bytes)


def low_bytes(block: bytearray, count: int, width_bytes: int) -> U64:
    """A view of `count` integers of `width_bytes` as uint64[count], of which only the low `width_bytes` are theirs.

    The bytes above belong to the entries after them. Sums modulo 2^(8 width_bytes) do not depend on them, and nothing
    has to be copied apart. `block` has SPARE_BYTES more than the integers.
    """
    return np.ndarray((count,), "<u8", block, strides=(width_bytes,))


def signed(values: U64, width_bytes: int) -> I64:
    """The number nearest to 0 that is `values` modulo 2^(8 width_bytes).

    >>> signed(np.array([255, 256, 128, 127], np.uint64), 1).tolist()
    [-1, 0, -128, 127]
    """
    unused = np.uint64(64 - 8 * width_bytes)
    return (values << unused).view(np.int64) >> unused.astype(np.int64)
