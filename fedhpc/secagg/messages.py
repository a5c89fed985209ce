"""The messages of a secure sum as bytes: framed, checked, numbered. No pickle.

A message is a header (magic, kind, sender, round, CRC-32 of the body) and a body whose length both sides know.
"""

import struct
import zlib
from collections.abc import Mapping, Sequence

from fedhpc.compression.update import AGGREGATOR
from fedhpc.errors import PayloadError

MAGIC = b"FHS2"
HEADER = struct.Struct("<4sBHII")
ENTRY = struct.Struct("<H")
KEYS, SHARES, MASKED, CONFIRMED, REVEALED = range(5)
KIND_NAMES = ("keys", "shares", "masked", "confirmed", "revealed")


def frame(kind: int, sender: int, round: int, body: bytes | memoryview) -> bytes:
    """One message."""
    return HEADER.pack(MAGIC, kind, sender, round, zlib.crc32(body)) + body


def unframe(kind: int, sender: int, round: int, payload: bytes) -> memoryview:
    """The body of the message that `payload` must be, where it lies there.

    Raises:
        PayloadError: naming sender and round, where it is another.
    """
    if len(payload) >= HEADER.size:
        body = memoryview(payload)[HEADER.size :]
        if HEADER.unpack_from(payload) == (MAGIC, kind, sender, round, zlib.crc32(body)):
            return body
    raise PayloadError(
        f"payload of sender {sender} in round {round + 1}: is not its message {kind} of the secure sum", code="secagg"
    )


def bodies_of(kind: int, round: int, payloads: Sequence[bytes], body_bytes: int) -> dict[int, memoryview]:
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
    block, step = bytes(unframe(kind, AGGREGATOR, round, payload)), ENTRY.size + body_bytes
    starts = range(0, len(block), step)
    bodies = {ENTRY.unpack_from(block, at)[0]: block[at + ENTRY.size : at + step] for at in starts}
    if len(block) % step or len(bodies) != len(starts):
        raise PayloadError(
            f"payload of sender {AGGREGATOR} in round {round + 1}: is not a list of {body_bytes} bytes a site",
            code="secagg",
        )
    return dict(sorted(bodies.items()))
