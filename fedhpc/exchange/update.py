"""What crosses the wall, as values: sparse updates, and named arrays for everything that is not an update."""

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedhpc.errors import PayloadError
from fedhpc.exchange.grid import EXACT, Grid

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
Array = NDArray[np.generic]

AGGREGATOR = 0xFFFF
"""The sender number of the aggregator; a site's is its place in the config's list of sites."""
LARGEST_ENTRY = 1e6
"""No plausible step of one parameter in one round is longer. A float32 mean of such updates over any number of sites,
and the parameters after 10,000 rounds, are finite."""


@dataclass(frozen=True)
class SparseVector:
    """A vector f32[size] that is zero outside `indices`.

    Attributes:
        size: the length of the dense vector.
        indices: int64[k], strictly ascending, in [0, size).
        values: f32[k], not zero.
        grid: where the magnitudes of the values are; with EXACT they are any.
    """

    size: int
    indices: I64
    values: F32
    grid: Grid = EXACT

    def dense(self) -> F32:
        """The vector with its zeros, f32[size]."""
        out = np.zeros(self.size, np.float32)
        out[self.indices] = self.values
        return out


@dataclass(frozen=True)
class Update:
    """What a sender offers to the federation in one round. Under DP its values are already private."""

    sender: int
    round: int
    entries: SparseVector


def pack_arrays(arrays: Mapping[str, Array]) -> bytes:
    """Named numeric arrays -> bytes (a compressed .npz; no pickle).

    >>> unpack_arrays(pack_arrays({"a": np.arange(3)}))["a"].tolist()
    [0, 1, 2]
    """
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **dict(arrays))
    return buffer.getvalue()


def unpack_arrays(payload: bytes) -> dict[str, Array]:
    """The inverse of `pack_arrays`; raises PayloadError where the bytes are not such arrays."""
    try:
        with np.load(io.BytesIO(payload), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise PayloadError(f"{len(payload)} bytes are not packed arrays: {error}") from None
