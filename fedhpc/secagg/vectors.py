"""Vectors of a secure sum: integers modulo 2^(8 width_bytes), packed, masked and added. No keys, no messages.

A mask is PRG(seed): the keystream of AES-256 in counter mode under the seed, read as little-endian words of 1, 2, 4 or
8 bytes, the smallest that hold `width_bytes`. What counts of a word is its value modulo 2^(8 width_bytes), which is
uniform; the bytes above are dropped when it is packed.

All that happens to an entry happens a block at a time, while the block is in a core's cache, and no vector is copied.
Blocks are divided among threads: numpy and, from version 50 on, `cryptography` release Python's lock meanwhile. Entry k
of a result depends on entries k alone, so its bits are the same with any number of threads.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

from fedhpc.secagg.masks import SumTerms
from fedhpc.util.arrays import I64, U64

BLOCK = 1 << 16
"""Entries of a vector that are computed at a time: with the keystream 0.8 MB of 4-byte words."""
AES_BYTES = 16
Words = NDArray[Any]
"""Unsigned integers of `word_of`."""


@dataclass(frozen=True)
class Mask:
    """PRG(seed) of 32 bytes, which is added to a vector or subtracted from it (secret)."""

    seed: bytes = field(repr=False)
    added: bool


def word_of(width_bytes: int) -> np.dtype[Any]:
    """Return the smallest unsigned integer of numpy that holds `width_bytes`, little-endian.

    >>> [word_of(width).itemsize for width in range(1, 9)]
    [1, 2, 4, 4, 8, 8, 8, 8]
    """
    return np.dtype(f"<u{1 << (width_bytes - 1).bit_length()}")


def packed(vector: I64 | U64, masks: Sequence[Mask], terms: SumTerms, threads: int = 1) -> memoryview:
    """Return vector + masks modulo 2^(8 width_bytes): of each entry the low `width_bytes` bytes, little-endian.

    Args:
        vector: int64[size] or uint64[size] (private).
        masks: to add and to subtract (secret); without any this is the vector itself.
        terms: size and width.
        threads: that compute.
    """
    out = np.empty(terms.size * terms.width_bytes, np.uint8)

    def work(span: range) -> None:
        streams = _Streams(masks, terms, span.start)
        words = np.empty(BLOCK, streams.word)
        for start in span:
            entries = vector[start : start + BLOCK]
            block = words[: entries.size]
            np.copyto(block, entries, casting="unsafe")
            streams.apply(block)
            _pack(block, out[start * terms.width_bytes :], terms.width_bytes)

    _by_threads(work, terms.size, threads)
    return out.data


def summed(bodies: Sequence[bytes | memoryview], masks: Sequence[Mask], terms: SumTerms, threads: int = 1) -> I64:
    """Return the sum of packed vectors and masks: int64[size], modulo 2^(8 width_bytes) the number nearest to 0.

    Args:
        bodies: each as `packed` makes them, size * width_bytes bytes.
        masks: to add and to subtract (secret).
        terms: size and width.
        threads: that compute.
    """
    out = np.empty(terms.size, np.int64)

    def work(span: range) -> None:
        streams = _Streams(masks, terms, span.start)
        words = np.empty(BLOCK, streams.word)
        for start in span:
            entries = out[start : start + BLOCK]
            block = words[: entries.size]
            block.fill(0)
            for body in bodies:
                _add_packed(block, body, start, terms.width_bytes)
            streams.apply(block)
            _to_signed(block, terms.width_bytes, entries)

    _by_threads(work, terms.size, threads)
    return out


def signed(values: U64, width_bytes: int) -> I64:
    """The number nearest to 0 that is `values` modulo 2^(8 width_bytes).

    >>> signed(np.array([255, 256, 128, 127], np.uint64), 1).tolist()
    [-1, 0, -128, 127]
    """
    out = np.empty(values.size, np.int64)
    _to_signed(values.copy(), width_bytes, out)
    return out


def _by_threads(work: Callable[[range], None], size: int, threads: int) -> None:
    """Do the work of all blocks: each thread's are a range of their first entries."""
    blocks = -(-size // BLOCK)
    count = min(threads, blocks)
    ends = [BLOCK * (blocks * k // count) for k in range(count + 1)]
    spans = [range(start, end, BLOCK) for start, end in pairwise(ends)]
    if count == 1:
        work(spans[0])
        return
    with ThreadPoolExecutor(count, "secure sum") as pool:
        list(pool.map(work, spans))


class _Streams:
    """The keystreams of all masks of one thread, from entry `start` on, a multiple of BLOCK."""

    def __init__(self, masks: Sequence[Mask], terms: SumTerms, start: int) -> None:
        self.word = word_of(terms.width_bytes)
        first = (start * self.word.itemsize // AES_BYTES).to_bytes(AES_BYTES, "big")
        self._masks = [
            (Cipher(AES(mask.seed), CTR(first)).encryptor(), np.add if mask.added else np.subtract) for mask in masks
        ]
        self._drawn = np.empty(BLOCK, self.word)

    def apply(self, block: Words) -> None:
        """Add and subtract the next words of all masks, in place."""
        drawn = self._drawn[: block.size]
        zeros, out = memoryview(ZEROS)[: block.nbytes], drawn.view(np.uint8).data
        for stream, ufunc in self._masks:
            stream.update_into(zeros, out)
            ufunc(block, drawn, out=block)


ZEROS = bytes(8 * BLOCK)


def _pack(block: Words, out: NDArray[np.uint8], width_bytes: int) -> None:
    """Write the low `width_bytes` of each word to the beginning of `out`, and nothing behind them.

    Whole words are written, whose bytes above lie where the next entry's lowest are: these are written once more. So
    the order in which numpy writes does not count.
    """
    columns, count = block.view(np.uint8).reshape(-1, block.itemsize), block.size
    np.ndarray((count - 1,), block.dtype, out.data, strides=(width_bytes,))[...] = block[:-1]
    for place in range(block.itemsize - width_bytes):
        out[place : count * width_bytes : width_bytes] = columns[:, place]
    out[(count - 1) * width_bytes : count * width_bytes] = columns[-1, :width_bytes]


def _add_packed(block: Words, body: bytes | memoryview, start: int, width_bytes: int) -> None:
    """Add the entries of a packed vector from `start` on, read as whole words where they lie, but the last one."""
    at = start * width_bytes
    whole = min(block.size, (len(body) - at - block.itemsize) // width_bytes + 1)
    if whole > 0:
        part = block[:whole]
        part += np.ndarray((whole,), block.dtype, body, at, (width_bytes,))
    for place in range(max(whole, 0), block.size):
        entry = body[at + place * width_bytes : at + (place + 1) * width_bytes]
        block[place : place + 1] += block.dtype.type(int.from_bytes(entry, "little"))


def _to_signed(block: Words, width_bytes: int, out: I64) -> None:
    """Write the number nearest to 0 that each word is modulo 2^(8 width_bytes); the words are lost."""
    unused = 8 * (block.itemsize - width_bytes)
    numbers = block.view(f"<i{block.itemsize}")
    np.left_shift(block, unused, out=block)
    np.right_shift(numbers, unused, out=numbers)
    out[...] = numbers
