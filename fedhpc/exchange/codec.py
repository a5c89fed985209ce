"""`Update` <-> bytes: one binary payload, little-endian, versioned, checked; no pickle.

header   magic "FHPC", version, sender, round, size d, entries k, codec of the index block, CRC-32 of all the rest
indices  nothing (k == d) | a bitmask of ceil(d / 8) bytes | k x uint32, whichever is smallest
values   k x float32
"""

import struct
import zlib

import numpy as np

from fedhpc.errors import PayloadError
from fedhpc.exchange.update import I64, SparseVector, Update

MAGIC = b"FHPC"
VERSION = 1
HEADER = struct.Struct("<4sHHIQQI")
CRC = struct.Struct("<I")
DENSE, BITMASK, UINT32 = range(3)
MAX_SIZE = 2**32


def encode(update: Update) -> bytes:
    """The payload of `update`; its length is what the round is charged."""
    entries = update.entries
    kind, index_block = _encode_indices(entries)
    header = HEADER.pack(MAGIC, VERSION, update.sender, update.round, entries.size, entries.indices.size, kind)
    body = header + index_block + entries.values.astype("<f4", copy=False).tobytes()
    return body + CRC.pack(zlib.crc32(body))


def decode(payload: bytes, *, sender: int, round: int, size: int) -> Update:
    """The update that `payload` claims to be.

    Args:
        payload: bytes of `encode`.
        sender: who must have sent it (index of the site, or AGGREGATOR).
        round: the round that it must belong to.
        size: the number d of parameters that it must speak of.

    Raises:
        PayloadError: naming the sender and the round, where anything is not as it must be.
    """
    try:
        kind, k = _checked_header(payload, (sender, round, size))
        block = memoryview(payload)[HEADER.size : len(payload) - CRC.size]
        index_bytes = _index_bytes(kind, size, k)
        if len(block) != index_bytes + 4 * k:
            raise PayloadError(f"{len(payload)} bytes for {k} entries; expected {index_bytes + 4 * k} in the blocks")
        indices = _decode_indices(kind, block[:index_bytes], size, k)
        values = np.frombuffer(block[index_bytes:], "<f4").astype(np.float32)
        if not np.isfinite(values).all():
            raise PayloadError("holds values that are not finite")
    except PayloadError as error:
        raise PayloadError(f"payload of sender {sender} in round {round}: {error}") from None
    return Update(sender, round, SparseVector(size, indices, values))


def _checked_header(payload: bytes, expected: tuple[int, int, int]) -> tuple[int, int]:
    """(codec of the index block, number of entries) after all that needs no body has been checked."""
    if len(payload) < HEADER.size + CRC.size:
        raise PayloadError(f"{len(payload)} bytes are fewer than a header")
    magic, version, sender, round, size, k, kind = HEADER.unpack_from(payload)
    if magic != MAGIC or version != VERSION:
        raise PayloadError(f"magic {magic!r} version {version}; expected {MAGIC!r} version {VERSION}")
    if CRC.unpack_from(payload, len(payload) - CRC.size)[0] != zlib.crc32(memoryview(payload)[: -CRC.size]):
        raise PayloadError("checksum does not match: bytes were changed on the way")
    if (sender, round, size) != expected:
        raise PayloadError(f"claims (sender, round, size) = {(sender, round, size)}, expected {expected}")
    if not 0 < k <= size <= MAX_SIZE or kind not in (DENSE, BITMASK, UINT32):
        raise PayloadError(f"{k} entries of {size} in index codec {kind} cannot be")
    return kind, k


def _index_bytes(kind: int, size: int, k: int) -> int:
    if kind == DENSE and k != size:
        raise PayloadError(f"dense, but {k} entries of {size}")
    return {DENSE: 0, BITMASK: (size + 7) // 8, UINT32: 4 * k}[kind]


def _encode_indices(entries: SparseVector) -> tuple[int, bytes]:
    size, k = entries.size, entries.indices.size
    if k == size:
        return DENSE, b""
    if 4 * k <= (size + 7) // 8:
        return UINT32, entries.indices.astype("<u4").tobytes()
    mask = np.zeros(size, np.bool_)
    mask[entries.indices] = True
    return BITMASK, np.packbits(mask, bitorder="little").tobytes()


def _decode_indices(kind: int, block: memoryview, size: int, k: int) -> I64:
    if kind == DENSE:
        return np.arange(size, dtype=np.int64)
    if kind == UINT32:
        indices = np.frombuffer(block, "<u4").astype(np.int64)
    else:
        indices = np.flatnonzero(np.unpackbits(np.frombuffer(block, np.uint8), bitorder="little")).astype(np.int64)
    if indices.size != k or indices[-1] >= size or (np.diff(indices) <= 0).any():
        raise PayloadError(f"index block is not {k} ascending indices below {size}")
    return indices
