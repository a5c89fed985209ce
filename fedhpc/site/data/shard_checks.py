"""Bounds on what reading a column of a shard may take, checked before the first byte of it is read.

HDF5 stores a column in chunks, and a chunk may be compressed and larger than the column itself: a file of 0.9 MB can
ask for 800 MB when a few hundred labels are read. So a column is neither compressed nor chunked beyond its length, and
is on disk as large as it claims to be.
"""

from math import prod
from typing import Any

CHUNK_BYTES = 2**20


def storage_problems(column: Any, name: str) -> list[str]:
    """Return what is wrong with the way in which an HDF5 dataset is stored; nothing of it is read.

    Args:
        column: an h5py.Dataset of a column, of any shape.
        name: as it is called in messages.
    """
    if column.shape is None or column.dtype.hasobject:
        return []
    filters = [column.id.get_create_plist().get_filter(k) for k in range(column.id.get_create_plist().get_nfilters())]
    if filters:
        names = ", ".join(str(found[3].decode(errors="replace") or found[0]) for found in filters)
        return [f"/{name} is compressed or filtered ({names}); allowed: stored as it is"]
    size_bytes = prod(column.shape) * column.dtype.itemsize
    chunk_bytes = 0 if column.chunks is None else prod(column.chunks) * column.dtype.itemsize
    if chunk_bytes > max(size_bytes, CHUNK_BYTES):
        return [f"/{name} has chunks of {chunk_bytes:,} bytes for {size_bytes:,}; allowed: {CHUNK_BYTES:,} at most"]
    if column.id.get_storage_size() < size_bytes:
        stored = column.id.get_storage_size()
        return [f"/{name} claims {size_bytes:,} bytes and has {stored:,} on disk; allowed: all written"]
    return []
