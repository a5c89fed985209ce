"""What is exchanged, as values: sparse updates, and named arrays for everything that is not an update."""

import io
import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedhpc.compression.float_bits import blocks
from fedhpc.compression.quantization import EXACT, QuantizationGrid
from fedhpc.errors import PayloadError
from fedhpc.util.arrays import F32, I64, Array

AGGREGATOR = 0xFFFF
"""The sender number of the aggregator; a site's is its place in the config's list of sites."""
LARGEST_ENTRY = 1e6
"""No plausible step of one parameter in one round is longer. A float32 mean of such updates over any number of sites,
and the parameters after 10,000 rounds, are finite."""
REFUSED_BITS = int(np.float32(LARGEST_ENTRY).view(np.uint32)) + 1
"""The bits of the smallest magnitude that is too long."""


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
    grid: QuantizationGrid = EXACT

    def dense(self) -> F32:
        """Return the vector with its zeros, f32[size]."""
        out = np.zeros(self.size, np.float32)
        out[self.indices] = self.values
        return out

    def add_to(self, vector: F32, weight: float = 1.0) -> None:
        """Add the entries, each times a float32 `weight`, to f32[size] in place."""
        # The indices are unique, so that this is `vector[indices] += ...` in one pass over the entries instead of two.
        np.add.at(vector, self.indices, np.float32(weight) * self.values)


class DenseVector(SparseVector):
    """A vector f32[size] that is sent whole and as it is, its zeros too: no place of an entry has to be kept."""

    def __init__(self, values: F32) -> None:
        """`values`: f32[size], finite; kept, not copied."""
        for name, value in (("size", values.size), ("values", values), ("grid", EXACT)):
            object.__setattr__(self, name, value)

    @property
    def indices(self) -> I64:
        """Every index, int64[size]; made anew at each call, twice as large as the values."""
        return np.arange(self.size, dtype=np.int64)

    def dense(self) -> F32:
        """See `SparseVector`."""
        return self.values.copy()

    def add_to(self, vector: F32, weight: float = 1.0) -> None:
        """See `SparseVector`; a block at a time, so that a product is read again while it is in the cache."""
        factor = np.float32(weight)
        for block in blocks(self.size):
            vector[block] += factor * self.values[block]


@dataclass(frozen=True)
class Update:
    """What a sender offers to the federation in one round. Under DP its values are already private."""

    sender: int
    round: int
    entries: SparseVector


LIMIT_BYTES = 2**31
COMPRESSED_BYTES = 2**20
HEADER_BYTES = 10_000
"""The most that the header of one packed array may take."""


@dataclass(frozen=True)
class ArraySpec:
    """What an array from another rank must be: its dtype, as numpy writes it, and its shape; None stands for any size.

    >>> ArraySpec("<f4", (3, None)).fits(np.dtype("<f4"), (3, 7))
    True
    """

    dtype: str
    shape: tuple[int | None, ...]

    def fits(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bool:
        """Return whether an array is such a one."""
        same = len(shape) == len(self.shape) and all(
            want in (None, is_) for want, is_ in zip(self.shape, shape, strict=True)
        )
        return same and dtype.str == self.dtype


Layout = Mapping[str, ArraySpec]


def pack_arrays(arrays: Mapping[str, Array]) -> bytes:
    """Pack named numeric arrays into bytes (an .npz; no pickle), compressed up to COMPRESSED_BYTES.

    Small arrays are counts, of which most are zero; large ones are parameters, of which deflate saves 8 % at 70 times
    the price of a copy, while every other rank waits for it.

    >>> unpack_arrays(pack_arrays({"a": np.arange(3)}))["a"].tolist()
    [0, 1, 2]
    """
    buffer = io.BytesIO()
    in_order = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    large = sum(array.nbytes for array in in_order.values()) > COMPRESSED_BYTES
    (np.savez if large else np.savez_compressed)(buffer, allow_pickle=False, **in_order)
    return buffer.getvalue()


def unpack_arrays(payload: bytes, expected: Layout | None = None, limit_bytes: int = LIMIT_BYTES) -> dict[str, Array]:
    """Return the arrays that `pack_arrays` has packed; check names, types and sizes before any memory is taken.

    A payload of some kilobytes can claim to hold terabytes, or inflate to them. So the sizes in the archive's directory
    and the shape in each array's header are read and compared first, and no more than was declared is inflated.

    Args:
        payload: from another rank; trusted in nothing.
        expected: exactly these names, each with its type and shape; None: any.
        limit_bytes: the most that all arrays may take together.

    Raises:
        PayloadError: bytes that are no such arrays, other arrays than expected, or more than the limit.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(payload)) as archive:
            entries = archive.infolist()
            _check_entries(entries, expected, limit_bytes)
            return {entry.filename.removesuffix(".npy"): _array(archive, entry, expected) for entry in entries}
    except (ValueError, OSError, EOFError, NotImplementedError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        raise PayloadError(f"{len(payload)} bytes are not packed arrays: {error}") from None


def _check_entries(entries: Sequence[zipfile.ZipInfo], expected: Layout | None, limit_bytes: int) -> None:
    names = [entry.filename.removesuffix(".npy") for entry in entries]
    if len(set(names)) < len(names) or any(name == entry.filename for name, entry in zip(names, entries, strict=True)):
        raise PayloadError(f"packed arrays: {len(names)} entries with repeated names, or names without .npy")
    if expected is not None and set(names) != set(expected):
        raise PayloadError(f"packed arrays: expected {sorted(expected)}, {len(names)} others came")
    size = sum(entry.file_size for entry in entries)
    if size > limit_bytes + HEADER_BYTES * len(entries):
        raise PayloadError(f"packed arrays: {size} bytes declared, at most {limit_bytes} allowed; refused")


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, expected: Layout | None) -> Array:
    """One array; its header must agree with the archive's directory and with what is expected."""
    name = entry.filename.removesuffix(".npy")
    with archive.open(entry) as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise PayloadError(f"packed arrays: {name[:40]!r} is not in version 1.0 of the npy format")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file, max_header_size=HEADER_BYTES)
        if fortran or dtype.hasobject or dtype.names:
            raise PayloadError(f"packed arrays: {name[:40]!r} has order or type that is not allowed")
        wanted = ArraySpec(dtype.str, shape) if expected is None else expected[name]
        if not wanted.fits(dtype, shape):
            raise PayloadError(f"packed arrays: {name} is {dtype.str}{list(shape)}, expected {wanted}")
        size = math.prod(shape) * dtype.itemsize
        if any(side < 0 for side in shape) or not size <= entry.file_size <= size + HEADER_BYTES:
            raise PayloadError(f"packed arrays: {name[:40]!r} declares {size} bytes in an entry of {entry.file_size}")
        block = file.read(size + 1)
    if len(block) != size:
        raise PayloadError(f"packed arrays: {name[:40]!r} has {len(block)} bytes, {size} were declared")
    return np.frombuffer(block, dtype).reshape(shape).copy()
