"""Small whole numbers <-> bytes near their entropy: byte planes, each deflated by zlib.

The n-th plane holds the n-th byte of every number, so that bytes of one kind share a Huffman code. Deflate starts a new
code every 16,384 symbols, so it follows what changes along the vector, as the density of an update does from layer to
layer. Where there is nothing to gain it stores the bytes as they are.
"""

import zlib

import numpy as np
from numpy.typing import NDArray

from fedhpc.errors import PayloadError
from fedhpc.util.arrays import U8

Whole = NDArray[np.unsignedinteger]

RAW_DEFLATE = -15
STRATEGIES = ((zlib.Z_DEFAULT_STRATEGY, 0), (zlib.Z_HUFFMAN_ONLY, 1), (zlib.Z_RLE, 1), (zlib.Z_FILTERED, 4))
"""(strategy, level) to choose from: stored, Huffman alone, runs of one byte, long repetitions. All decode alike."""
SAMPLE_SLICES, SLICE_BYTES = 16, 1 << 12
MAX_PLANES = 4


def width_of(largest: int) -> int:
    """Return how many planes numbers up to `largest` need.

    >>> [width_of(n) for n in (0, 255, 256, 2**32 - 1)]
    [1, 1, 2, 4]
    """
    return max(1, (largest.bit_length() + 7) // 8)


def container(width: int) -> np.dtype[np.unsignedinteger]:
    """Return the smallest little-endian type of at least `width` bytes."""
    return np.dtype({1: "<u1", 2: "<u2", 3: "<u4", 4: "<u4"}[width])


def split(numbers: Whole, width: int) -> list[bytes]:
    """Return the deflated planes of numbers[n] of type `container(width)`."""
    columns = numbers.view(np.uint8).reshape(numbers.size, numbers.itemsize)
    return [deflated(np.ascontiguousarray(columns[:, plane])) for plane in range(width)]


def join(planes: list[memoryview], count: int) -> Whole:
    """Return numbers[count], the inverse of `split`; of one plane they are its bytes, which cannot be written to.

    Raises:
        PayloadError: where a plane is not `count` bytes, deflated.
    """
    if len(planes) == 1:
        return inflated(planes[0], count)
    numbers = np.zeros(count, container(len(planes)))
    columns = numbers.view(np.uint8).reshape(count, numbers.itemsize)
    for plane, block in enumerate(planes):
        columns[:, plane] = inflated(block, count)
    return numbers


def deflated(plane: U8) -> bytes:
    """The plane by the strategy that makes a sample of it smallest; a plane of up to 64 KiB is its own sample."""
    if plane.size <= SAMPLE_SLICES * SLICE_BYTES:
        return min((_deflate(plane, *strategy) for strategy in STRATEGIES), key=len)
    starts = np.linspace(0, plane.size - SLICE_BYTES, SAMPLE_SLICES).astype(np.int64)
    sample = np.concatenate([plane[start : start + SLICE_BYTES] for start in starts])
    best = min(STRATEGIES, key=lambda strategy: len(_deflate(sample, *strategy)))
    return _deflate(plane, *best)


def _deflate(plane: U8, strategy: int, level: int) -> bytes:
    stream = zlib.compressobj(level, zlib.DEFLATED, RAW_DEFLATE, zlib.DEF_MEM_LEVEL, strategy)
    return stream.compress(plane.data) + stream.flush()


def inflated(block: memoryview, size: int) -> U8:
    """Return the plane of exactly `size` bytes; never more memory than that is asked for, whatever the block says.

    Raises:
        PayloadError: where the block is anything else.
    """
    stream = zlib.decompressobj(RAW_DEFLATE)
    try:
        plane = stream.decompress(block, size + 1)
    except zlib.error as error:
        raise PayloadError(f"a plane cannot be inflated: {error}") from None
    if len(plane) != size or not stream.eof or stream.unused_data:
        raise PayloadError(f"a plane is not {size} bytes deflated")
    return np.frombuffer(plane, np.uint8)
