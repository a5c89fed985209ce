"""The keystream of one release after another, made by a thread of the host while a GPU computes the sum."""

from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from fedhpc.privacy.noise import WORD_BYTES, KeyStream

ZEROS = bytes(2**20)
"""What is encrypted at a time: so much that the thread seldom needs Python's lock, which the training holds."""


class KeystreamAhead:
    """Reads a stream ahead of its use: the same bytes in the same order as `gaussian.released` reads without it.

    The stream must be used for nothing else in between, which holds for a site's noise in a round.
    """

    def __init__(self, stream: KeyStream, entries: int, *, pinned: bool) -> None:
        """Begin with the first release.

        Args:
            stream: to read (secret).
            entries: of each released vector.
            pinned: whether the memory is one that a GPU copies from by itself.
        """
        self._stream = stream
        self._memory = torch.empty(WORD_BYTES * (entries + entries % 2), dtype=torch.uint8, pin_memory=pinned)
        self._pool = ThreadPoolExecutor(1, "keystream")
        self._filled: Future[None] = self.begin()

    def begin(self) -> Future[None]:
        """Make the bytes of the next release, over those of the one before, which must have ended."""
        self._filled = self._pool.submit(self._stream.fill, self._memory.numpy(), ZEROS)
        return self._filled

    def bytes(self) -> Tensor:
        """All bytes of the release that was begun last, uint8 [8 entries, an even number]; waits for them."""
        self._filled.result()
        return self._memory

    def close(self) -> None:
        """Wait for the thread, and end it."""
        self._pool.shutdown()
