"""Write a shard: whole or not at all, and the same bytes for the same content."""

import io
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from fedhpc.errors import ShardError
from fedhpc.privacy.hash_chain import sync
from fedhpc.site.data.shard_format import COLUMNS, FINDINGS, FORMAT_VERSION, IMAGE_DTYPES
from fedhpc.util.arrays import Images
from fedhpc.util.files import PRIVATE

# Of a shard that stands for images without labels: every label is 0.
UNLABELLED = ("unlabelled", "not used")


@dataclass(frozen=True, kw_only=True)
class ShardContent:
    """What goes into a shard, private but for site, classes and pixel_range; `fedhpc.site.data.shard` tells the format.

    Attributes:
        site: the hospital's name.
        classes: label names in the order of the labels.
        images: [n, C, H, W], or [n, C, D, H, W] of 3-D patches, of uint8, uint16 or float32, or an iterable of
            blocks of them where memory is short.
        labels: int[n]; of several findings int[n, K] of 0 and 1, one column for each of `classes`.
        patient: pseudonyms, str or bytes of 1 to 16 bytes [n]. split: int[n], 0 train, 1 val, 2 test.
        modality: "MR", "CT" or "OT" [n]. stage: 1 early, 0 otherwise [n], or None.
        pixel_range: the two ends of the pixel scale.
        created_by: the importer and its version; no clock, no user name.
        deidentification: how the images were de-identified; see `fedhpc.site.data.shard`. Empty: not told.
    """

    site: str
    classes: Sequence[str]
    images: Images | Iterable[Images]
    labels: npt.ArrayLike
    patient: npt.ArrayLike
    split: npt.ArrayLike
    modality: npt.ArrayLike
    pixel_range: tuple[float, float]
    created_by: str
    stage: npt.ArrayLike | None = None
    deidentification: str = ""


def write_shard(path: Path, *, mode: int = PRIVATE, **content: Any) -> None:
    """Write a shard of the keywords of `ShardContent` to `path`, making its folders.

    The file appears under its name only when it is complete and on disk. What it says is checked by `Shard.open`; here
    only what HDF5 would bend silently is refused. Its owner alone may read it, unless `mode` says otherwise.

    Raises:
        ShardError: lengths that differ, values that the column's dtype cannot hold, a pseudonym of more than 16 bytes.
    """
    write_content(Path(path), ShardContent(**content), mode=mode)


def write_content(path: Path, content: ShardContent, *, mode: int = PRIVATE) -> None:
    """`write_shard` for a ready `ShardContent`."""
    columns = _columns(path, content)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with GuardedFile(temporary, mode) as guarded:
            # A fixed format version and no times: equal content, equal bytes. v110 finds a chunk in constant time.
            with h5py.File(guarded, "w", libver=("v110", "v110"), track_order=False) as file:
                _write_images(file, path, guarded.checked(_blocks(content.images)), len(columns["labels"]))
                for name, values in columns.items():
                    file.create_dataset(name, data=values, track_times=False)
                _write_attributes(file, content)
            guarded.check()
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class GuardedFile(io.RawIOBase):
    """The file that HDF5 writes to, so that a full disk is an OSError.

    HDF5 itself ends the process by a segmentation fault when a file cannot be closed for want of room (1.14, ENOSPC).
    So the first error is kept, later writes are dropped, and `check` raises it.
    """

    def __init__(self, path: Path, mode: int) -> None:
        # Never into a file that is there, which a process that was killed has left, nor through a link.
        path.unlink(missing_ok=True)
        self._file = io.FileIO(path, "x+", opener=lambda name, flags: os.open(name, flags, mode))
        self._path = path
        self._error: OSError | None = None

    def check(self) -> None:
        """Raise the first error of a write, with the path.

        Raises:
            OSError: no room, or whatever else the file system refused.
        """
        if self._error is not None:
            raise OSError(self._error.errno, self._error.strerror, str(self._path))

    def checked(self, blocks: Iterable[Images]) -> Iterator[Images]:
        """`blocks`, looking for errors between them."""
        for block in blocks:
            yield block
            self.check()

    def write(self, data: Any) -> int:
        """Write all of `data`, or keep the error."""
        view = memoryview(data).cast("B")
        written = 0
        try:
            while self._error is None and written < len(view):
                written += self._file.write(view[written:])
        except OSError as error:
            self._error = error
        return len(view)

    def readinto(self, buffer: Any) -> int:
        """Read what was written."""
        return self._file.readinto(buffer)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a place in the file."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the place in the file."""
        return self._file.tell()

    def truncate(self, size: int | None = None) -> int:
        """Set the size, or keep the error."""
        try:
            return self._file.truncate(size)
        except OSError as error:
            self._error = self._error or error
            return size or 0

    def flush(self) -> None:
        """Nothing is buffered."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


def _columns(path: Path, content: ShardContent) -> dict[str, Images]:
    given = {name: getattr(content, name) for name in COLUMNS if getattr(content, name) is not None}
    columns = {name: _column(path, name, np.asarray(values)) for name, values in given.items()}
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ShardError(f"{path}: columns of different lengths {lengths}; allowed: one value an image in each")
    return columns


def _column(path: Path, name: str, values: Images) -> Images:
    wanted = COLUMNS[name]
    if name == "labels" and values.ndim == 2:
        wanted = FINDINGS[0]
    elif values.ndim != 1:
        raise ShardError(f"{path}: {name} has shape {values.shape}; allowed: [n]{' or [n, K]' * (name == 'labels')}")
    if wanted.kind == "S" and values.dtype.kind in "OU":
        values = np.array([item if isinstance(item, bytes) else str(item).encode() for item in values], dtype="S")
    # Casting to S16 cuts longer texts off, which would make one patient of two; integers would wrap around.
    stored = values.astype(wanted)
    if (values.dtype.kind in "iub") == (wanted.kind == "S") or not np.array_equal(stored, values):
        raise ShardError(f"{path}: {name} of dtype {values.dtype} does not fit; allowed: values that {wanted} can hold")
    return stored


def _write_images(file: h5py.File, path: Path, blocks: Iterable[Images], n: int) -> None:
    written = 0
    dataset: h5py.Dataset | None = None
    for block in blocks:
        if dataset is None:
            if block.dtype not in IMAGE_DTYPES or block.ndim not in (4, 5):
                raise ShardError(
                    f"{path}: images of dtype {block.dtype} and shape {block.shape}; "
                    f"allowed: [k, C, H, W] or [k, C, D, H, W] of {', '.join(map(str, IMAGE_DTYPES))}"
                )
            shape = block.shape[1:]
            dataset = file.create_dataset(
                "images", (n, *shape), block.dtype, chunks=(1, *shape), track_times=False, fillvalue=None
            )
        if block.dtype != dataset.dtype or block.shape[1:] != dataset.shape[1:] or written + len(block) > n:
            raise ShardError(
                f"{path}: block of {block.shape} {block.dtype} after {written} images; "
                f"allowed: {dataset.shape[1:]} {dataset.dtype}, {n} images in all"
            )
        dataset[written : written + len(block)] = block
        written += len(block)
    if written != n:
        raise ShardError(f"{path}: {written} images for {n} labels; allowed: as many images as labels")


def _blocks(images: Images | Iterable[Images]) -> Iterator[Images]:
    if isinstance(images, np.ndarray):
        yield images
    else:
        yield from (np.asarray(block) for block in images)


def _write_attributes(file: h5py.File, content: ShardContent) -> None:
    file.attrs["format_version"] = np.int64(FORMAT_VERSION)
    file.attrs["site"] = content.site
    file.attrs["classes"] = np.array(list(content.classes), dtype=h5py.string_dtype())
    file.attrs["pixel_range"] = np.array(content.pixel_range, dtype="<f8")
    file.attrs["created_by"] = content.created_by
    if content.deidentification:
        file.attrs["deidentification"] = content.deidentification
