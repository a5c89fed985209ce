"""Payloads for the tests and the fuzzer: valid ones of every kind, and changed ones under the right checksum."""

import struct
import zlib

import numpy as np

from fedhpc.compression.codec import CRC, FIXED, MAGIC, VERSION, Header, decode, encode
from fedhpc.compression.error_feedback import CompressionConfig, with_feedback
from fedhpc.compression.update import DenseVector, Update

SENDER, ROUND, SIZE = 2, 7, 1000
KINDS = ((1, 32), (1, 4), (0.5, 16), (0.5, 8), (0.1, 4), (0.1, 3), (0.01, 5), (0.001, 32))
"""(density, value_bits) that between them take every kind of index block and one to four planes of levels."""


def update_of(density: float, value_bits: int, size: int = SIZE, seed: int = 0) -> Update:
    """An update of Gaussian numbers."""
    vector = np.random.default_rng(seed).standard_normal(size, np.float32)
    sent, _ = with_feedback(vector, np.zeros_like(vector), CompressionConfig(density, value_bits))
    return Update(SENDER, ROUND, sent)


def payloads() -> list[bytes]:
    """One of every kind."""
    return [encode(update_of(*kind)) for kind in KINDS]


def sealed(body: bytes) -> bytes:
    """A body (a payload without its checksum) with the checksum that it must have."""
    return body + CRC.pack(zlib.crc32(body))


def with_header(payload: bytes, **fields: int) -> bytes:
    """The payload with some fields of its header replaced, and sealed."""
    _, _, *old = FIXED.unpack_from(payload)
    header = FIXED.pack(MAGIC, VERSION, *Header(*old)._replace(**fields))
    return sealed(header + payload[FIXED.size : -CRC.size])


def assembled(header: Header, planes: list[bytes]) -> bytes:
    """A payload of any header and planes, with their lengths, and sealed."""
    lengths = struct.pack(f"<{len(planes)}Q", *map(len, planes))
    return sealed(b"".join((FIXED.pack(MAGIC, VERSION, *header), lengths, *planes)))


def check_decoded(payload: bytes) -> None:
    """Decode, and raise AssertionError where the result is not an update that the aggregator can fold."""
    entries = decode(payload, sender=SENDER, round=ROUND, size=SIZE).entries
    assert entries.size == SIZE
    assert entries.indices.shape == entries.values.shape
    assert (entries.indices.dtype, entries.values.dtype) == (np.int64, np.float32)
    assert (np.diff(entries.indices, prepend=-1, append=SIZE) > 0).all()
    assert np.isfinite(entries.values).all()
    assert entries.values.all() or isinstance(entries, DenseVector)
