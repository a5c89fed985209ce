"""Pieces of a shard's images to know them by, for the search of what leaves (`fedhpc.transport.pixel_scan`)."""

import numpy as np
from numpy.typing import NDArray

from fedhpc.site.data.shard import Shard
from fedhpc.site.data.shard_scan import BLOCK_BYTES as READ_BYTES

BLOCK_BYTES = 16
BLOCKS_AN_IMAGE = 256
BLOCKS_IN_ALL = 2**21
"""The most that are kept of a shard, 32 MiB: with more than 8,192 images, fewer of each."""


def image_blocks(shard: Shard) -> NDArray[np.uint64]:
    """Blocks of 16 bytes, evenly spaced over every image as it is stored, uint64[m, 2] (private)."""
    image_bytes = shard.dtype.itemsize * int(np.prod(shard.image_shape))
    each = min(BLOCKS_AN_IMAGE, max(1, BLOCKS_IN_ALL // shard.n), image_bytes // BLOCK_BYTES)
    starts = np.linspace(0, image_bytes - BLOCK_BYTES, each).astype(np.int64)
    columns = (starts[:, None] + np.arange(BLOCK_BYTES)).ravel()
    step = max(1, READ_BYTES // image_bytes)
    found = [np.empty((0, 2), np.uint64)]
    for first in range(0, shard.n, step):
        rows = np.arange(first, min(first + step, shard.n))
        pixels = np.ascontiguousarray(shard.read(rows)).reshape(len(rows), -1).view(np.uint8)
        found.append(np.ascontiguousarray(pixels[:, columns]).view("<u8").reshape(-1, 2))
    return np.concatenate(found)
