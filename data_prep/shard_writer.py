"""Write a shard: whole or not at all, and the same bytes for the same content."""

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
from fedhpc.site.shard import COLUMNS, FORMAT_VERSION, IMAGE_DTYPES

Images = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class ShardContent:
    """What goes into a shard, private but for site, classes and pixel_range; `fedhpc.site.shard` tells the format.

    Attributes:
        site: the hospital's name.
        classes: label names in the order of the labels.
        images: [n, C, H, W] of uint8, uint16 or float32, or an iterable of blocks [k, C, H, W] where memory is short.
        labels: int[n]. patient: pseudonyms, str or bytes of 1 to 16 bytes [n]. split: int[n], 0 train, 1 val, 2 test.
        modality: "MR", "CT" or "OT" [n]. stage: 1 early, 0 otherwise [n], or None.
        pixel_range: the two ends of the pixel scale.
        created_by: the importer and its version; no clock, no user name.
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


def write_shard(path: Path, **content: Any) -> None:
    """Write a shard of the keywords of `ShardContent` to `path`, making its folders.

    The file appears under its name only when it is complete and on disk. What it says is checked by `Shard.open`; here
    only what HDF5 would bend silently is refused.

    Raises:
        ShardError: lengths that differ, values that the column's dtype cannot hold, a pseudonym of more than 16 bytes.
    """
    write_content(Path(path), ShardContent(**content))


def write_content(path: Path, content: ShardContent) -> None:
    """`write_shard` for a ready `ShardContent`."""
    columns = _columns(path, content)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # A fixed format version and no times: equal content, equal bytes. v110 finds a chunk in constant time.
        with h5py.File(temporary, "w", libver=("v110", "v110"), locking=False, track_order=False) as file:
            _write_images(file, path, content.images, len(columns["labels"]))
            for name, values in columns.items():
                file.create_dataset(name, data=values, track_times=False)
            _write_attributes(file, content)
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _columns(path: Path, content: ShardContent) -> dict[str, Images]:
    given = {name: getattr(content, name) for name in COLUMNS if getattr(content, name) is not None}
    columns = {name: _column(path, name, np.asarray(values)) for name, values in given.items()}
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ShardError(f"{path}: columns of different lengths {lengths}; allowed: one value an image in each")
    return columns


def _column(path: Path, name: str, values: Images) -> Images:
    wanted = COLUMNS[name]
    if values.ndim != 1:
        raise ShardError(f"{path}: {name} has shape {values.shape}; allowed: [n]")
    if wanted.kind == "S" and values.dtype.kind in "OU":
        values = np.array([item if isinstance(item, bytes) else str(item).encode() for item in values], dtype="S")
    # Casting to S16 cuts longer texts off, which would make one patient of two; integers would wrap around.
    stored = values.astype(wanted)
    if (values.dtype.kind in "iub") == (wanted.kind == "S") or not np.array_equal(stored, values):
        raise ShardError(f"{path}: {name} of dtype {values.dtype} does not fit; allowed: values that {wanted} can hold")
    return stored


def _write_images(file: h5py.File, path: Path, images: Images | Iterable[Images], n: int) -> None:
    written = 0
    dataset: h5py.Dataset | None = None
    for block in _blocks(images):
        if dataset is None:
            if block.dtype not in IMAGE_DTYPES or block.ndim != 4:
                raise ShardError(
                    f"{path}: images of dtype {block.dtype} and shape {block.shape}; "
                    f"allowed: [k, C, H, W] of {', '.join(map(str, IMAGE_DTYPES))}"
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
