"""Cached features of one shard, read row by row and checked: a file that changed under a run is noticed.

A memory map would end the process by SIGBUS where the file is cut, and give other numbers where it is overwritten. So
the file is hashed once when it is opened, row by row. Where it fills less than a quarter of the available memory its
rows are kept; where it does not, each row that is read is compared with its hash.
"""

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from fedhpc.errors import ShardError
from fedhpc.util.arrays import F32

BLOCK_ROWS = 4096


class FeatureFile:
    """The features of a shard's images (private), f32[n, dim].

    Args:
        path: a `.npy` file.
        rows: n that it must have.
        dim: that it must have.
        site: whose shard it is.
        keep: whether to keep all rows in memory.

    Raises:
        ShardError: where it is not whole, or of another shape.
    """

    def __init__(self, path: Path, rows: int, dim: int, site: str, *, keep: bool) -> None:
        self._path, self._shape, self._site = path, (rows, dim), site
        self._row_bytes = dim * np.dtype(np.float32).itemsize
        try:
            with path.open("rb") as file:
                self._start = self._checked_header(file)
                self._hashes, self._rows = self._scanned(file, keep)
        except (OSError, ValueError) as error:
            raise self._damaged(str(error)) from error

    def _checked_header(self, file: BinaryIO) -> int:
        """Return the offset of the first row."""
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"format {version}")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        start = file.tell()
        size = start + self._shape[0] * self._row_bytes
        if (shape, fortran, dtype) != (self._shape, False, np.dtype(np.float32)) or os.fstat(
            file.fileno()
        ).st_size != size:
            raise ValueError(f"{dtype} {shape}, {os.fstat(file.fileno()).st_size} bytes")
        return start

    def _scanned(self, file: BinaryIO, keep: bool) -> tuple[list[bytes], F32 | None]:
        kept = np.empty(self._shape, np.float32) if keep else None
        hashes: list[bytes] = []
        for first in range(0, self._shape[0], BLOCK_ROWS):
            rows = min(BLOCK_ROWS, self._shape[0] - first)
            block = np.frombuffer(file.read(rows * self._row_bytes), np.float32).reshape(rows, self._shape[1])
            if kept is None:
                hashes += [hashlib.sha256(row.data).digest() for row in block]
            else:
                kept[first : first + rows] = block
        return hashes, kept

    def read(self, rows: NDArray[np.int64]) -> F32:
        """Return the features of `rows` (int[k]), f32[k, dim].

        Raises:
            ShardError: where a row is not the one that was there when the file was opened.
        """
        if self._rows is not None:
            return self._rows[rows]
        out = np.empty((len(rows), self._shape[1]), np.float32)
        try:
            with self._path.open("rb", buffering=0) as file:
                for place, row in enumerate(rows):
                    content = os.pread(file.fileno(), self._row_bytes, self._start + int(row) * self._row_bytes)
                    if hashlib.sha256(content).digest() != self._hashes[row]:
                        raise self._damaged(f"row {row} changed during the run")
                    out[place] = np.frombuffer(content, np.float32)
        except OSError as error:
            raise self._damaged(str(error)) from error
        return out

    def _damaged(self, why: str) -> ShardError:
        return ShardError(
            f"site {self._site!r}: its cached features ({self._path.name}) are damaged, or changed during the run. "
            "Remove the file: it is computed again",
            private=f"{self._path}: {why}; features of shape {self._shape} were expected. Remove the file: it is "
            "computed again",
            code="shard.features",
        )
