"""NRRD files by pynrrd, which opens what a header names and inflates what it finds: checked before it does.

The files of an archive are data, not instructions. A header may name another patient's volume, a device or a pipe, and
a few kilobytes may inflate to all memory.
"""

import bz2
import gzip
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from data_prep.importers.tree import is_inside
from data_prep.importers.volume import ImportFault

MOST_VOXELS = 2**30
"""Of a file: it is read as a whole."""
BYTES_PER_VOXEL = 8
"""At most, of the types of the format."""
CHUNK_BYTES = 2**20
OUTSIDE = "names a data file outside of its own folder, or none"
INFLATES = "its voxels inflate to more bytes than its header claims"
TOO_LARGE = f"an NRRD file, which is read as a whole, of more than {MOST_VOXELS:,} voxels"

_INFLATE: dict[str, Callable[..., Any]] = {"gzip": gzip.open, "gz": gzip.open, "bzip2": bz2.open, "bz2": bz2.open}


def read_header(path: Path) -> Any:
    """Return the fields of the header.

    Raises:
        ImportFault: it names a file elsewhere, or claims more voxels than can be read as a whole.
    """
    with path.open("rb") as file:
        return _header(path, file)


def read_voxels(path: Path) -> Any:
    """Return the voxels as an array, the first axis the fastest.

    Raises:
        ImportFault: see `read_header`; or they inflate to more than the header claims. Memory stays bounded by that.
    """
    import nrrd

    with path.open("rb") as file:
        header = _header(path, file)
        _check_inflated(path, file, header)
    return nrrd.read(str(path))[0]


def _header(path: Path, file: BinaryIO) -> Any:
    import nrrd

    header = nrrd.read_header(file)
    named = _named(path, header)
    if named is not None and not (is_inside(named, path.parent) and named.is_file()):
        raise ImportFault(OUTSIDE)
    if math.prod(map(int, header["sizes"])) > MOST_VOXELS:
        raise ImportFault(TOO_LARGE)
    return header


def _named(path: Path, header: Any) -> Path | None:
    """The file of the voxels, where it is another one."""
    name = header.get("datafile", header.get("data file"))
    return None if name is None else path.parent / str(name)


def _check_inflated(path: Path, file: BinaryIO, header: Any) -> None:
    """Inflate piece by piece and keep none; `file` stands behind the header."""
    inflate = _INFLATE.get(str(header["encoding"]))
    if inflate is None:
        return
    named = _named(path, header)
    lines, skipped = (
        max(0, int(header.get(f"{what}skip", header.get(f"{what} skip", 0)))) for what in ("line", "byte")
    )
    left = BYTES_PER_VOXEL * math.prod(map(int, header["sizes"])) + skipped
    with file if named is None else named.open("rb") as data:
        for _ in range(lines):
            data.readline()
        data.seek(skipped, 1)
        with inflate(data, "rb") as stream:
            while chunk := stream.read(CHUNK_BYTES):
                left -= len(chunk)
                if left < 0:
                    raise ImportFault(INFLATES)
