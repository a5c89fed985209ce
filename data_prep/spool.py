"""Decoded images on disk until it is known which shard each belongs to, since a cohort may be larger than memory."""

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from fedhpc.util.arrays import U8

BLOCK = 256
NOT_SUPPORTED = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)


class Spool:
    """A temporary file of equal squares of uint8, `size` pixels a side.

    It is written and read by system calls, never through a memory map: on a full disk the first fails with an error
    that can be caught, the second with SIGBUS.
    """

    def __init__(self, folder: Path, size: int) -> None:
        self._file = (folder / "images.spool").open("w+b", buffering=0)
        self._size, self._item_bytes = size, size * size
        self.images = 0

    def reserve(self, images: int) -> None:
        """Take the room for so many images at once.

        Raises:
            OSError: there is not so much room.
        """
        if images:
            try:
                os.posix_fallocate(self._file.fileno(), 0, images * self._item_bytes)
            except OSError as error:
                if error.errno not in NOT_SUPPORTED:
                    raise

    def append(self, image: U8) -> None:
        """Write one image behind the others.

        Raises:
            OSError: no room.
        """
        data, written = memoryview(image.tobytes()), 0
        while written < self._item_bytes:
            written += os.pwrite(self._file.fileno(), data[written:], self.images * self._item_bytes + written)
        self.images += 1

    def blocks(self, rows: npt.NDArray[np.int64]) -> Iterator[U8]:
        """The images of `rows` in their order, as blocks of uint8 [k, 1, size, size]."""
        for first in range(0, len(rows), BLOCK):
            chosen = rows[first : first + BLOCK].tolist()
            parts = [os.pread(self._file.fileno(), self._item_bytes, row * self._item_bytes) for row in chosen]
            yield np.frombuffer(b"".join(parts), np.uint8).reshape(len(chosen), 1, self._size, self._size)

    def close(self) -> None:
        """Close and remove the file; twice is harmless."""
        self._file.close()
        with suppress(FileNotFoundError):
            os.unlink(self._file.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
