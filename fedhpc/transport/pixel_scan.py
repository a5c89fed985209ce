"""The last look at a payload before it leaves: does it hold a piece of one of the site's own images?

Each image is known here by up to 256 blocks of 16 bytes, evenly spaced over it (`fedhpc.site.data.pixel_blocks`). A
payload is searched for all of them at every byte, as it is and after whatever is deflated inside it has been inflated.
So a stretch of an image is found as soon as it holds one whole block: from twice the spacing on, always, and for 64 x
64 pixels of 8 bits from 31 bytes on.

What it does not find: pixels that were scaled, re-coded, encrypted or scattered, and blocks of fewer than DISTINCT
different bytes, such as a black border, which any payload may hold. It is a net under the import contracts and the
whitelist of kinds, not a proof by itself.

Whether a payload is refused depends on all images of the site, without noise. So with privacy on it is not, where it
holds noise: `fedhpc.transport.channel.Channel.search_for`.
"""

import io
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fedhpc.compression.codec import MAGIC, deflated_planes
from fedhpc.errors import PayloadError
from fedhpc.util.arrays import U64

BLOCK_BYTES = 16
WORD_BYTES = 8
STRIDE_BYTES = 2**18
"""How much of a payload is looked at in one go: what a processor's second-level cache holds of it and of its keys."""
DISTINCT = 8
MIXERS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], np.uint64)
"""Two odd constants: a block's two words, each times one of them, add up to its key. What has the key of a block is
then compared with the block itself."""
SPARE_BITS, MOST_BITS = 4, 26
"""The table has 16 to 32 places for each block, as far as 2^26 places go: a larger one, at every rank, does not stay in
the cache, and saves fewer second looks than it costs."""


class ImageSearch:
    """The blocks of one site's images, ready to be looked for.

    Attributes:
        count: how many different blocks are looked for.
    """

    def __init__(self, blocks: U64) -> None:
        """`blocks`: uint64[m, 2], private: each row is 16 bytes of an image."""
        kept = blocks[_telling(blocks)]
        self._keys, rows = np.unique(_keys(kept[:, 0], kept[:, 1]), return_index=True)
        self._blocks = kept[rows]
        self.count = len(rows)
        self._shift = np.uint64(64 - min(self.count.bit_length() + SPARE_BITS, MOST_BITS))
        self._table = np.zeros(1 << int(64 - self._shift), np.bool_)
        self._table[self._keys >> self._shift] = True

    def found(self, payload: bytes) -> int | None:
        """Return where the payload, or what is inflated of it, holds a block of an image; None where it holds none."""
        places = map(self._find, parts_of(payload))
        return next((at for at in places if at is not None), None)

    def refuse(self, payload: bytes, place: str) -> None:
        """Raises PayloadError, naming `place`, where the payload holds a block of an image."""
        at = self.found(payload)
        if at is not None:
            raise PayloadError(
                f"{place}: {BLOCK_BYTES} bytes from {at} on are those of an image of this site; the payload was "
                "not sent. Find out how they came to be in it before any other run; exchange.search=off sends "
                "unsearched",
                code="payload.image-found",
            )

    def _find(self, part: bytes) -> int | None:
        for first in range(0, len(part) - BLOCK_BYTES + 1, STRIDE_BYTES):
            window = part[first : first + STRIDE_BYTES + BLOCK_BYTES - 1]
            for start in range(min(WORD_BYTES, len(window) - BLOCK_BYTES + 1)):
                found = self._find_at(window, start)
                if found is not None:
                    return first + found
        return None

    def _find_at(self, window: bytes, start: int) -> int | None:
        """Return the first block in the window at `start` plus a multiple of 8 bytes."""
        words: U64 = np.frombuffer(window, "<u8", (len(window) - start) // WORD_BYTES, start)
        keys = _keys(words[:-1], words[1:])
        # Below 2**63, so that as int64, which indices must be, they are the same numbers; none is outside of the table.
        places = (keys >> self._shift).view(np.int64)
        likely = np.flatnonzero(np.take(self._table, places, mode="clip"))
        if not likely.size:
            return None
        nearest = np.minimum(np.searchsorted(self._keys, keys[likely]), self.count - 1)
        same = (self._blocks[nearest, 0] == words[likely]) & (self._blocks[nearest, 1] == words[likely + 1])
        return start + WORD_BYTES * int(likely[np.argmax(same)]) if same.any() else None


def _keys(first: U64, second: U64) -> U64:
    """One number for each block of two words."""
    keys: U64 = first * MIXERS[0]
    keys += second * MIXERS[1]
    return keys


def _telling(blocks: U64) -> NDArray[np.bool_]:
    """Return which blocks have at least DISTINCT different bytes, bool[m]."""
    ordered = np.sort(np.ascontiguousarray(blocks).view(np.uint8).reshape(-1, BLOCK_BYTES), axis=1)
    distinct: NDArray[np.bool_] = 1 + np.count_nonzero(np.diff(ordered, axis=1), axis=1) >= DISTINCT
    return distinct


def parts_of(payload: bytes) -> Iterator[bytes]:
    """A payload, and all that is deflated in it: the planes of a coded update, the members of packed arrays."""
    yield payload
    if payload.startswith(MAGIC):
        for plane in deflated_planes(payload):
            yield zlib.decompressobj(-zlib.MAX_WBITS).decompress(plane)
    elif zipfile.is_zipfile(io.BytesIO(payload)):
        with zipfile.ZipFile(io.BytesIO(payload)) as archive:
            for name in archive.namelist():
                yield archive.read(name)
