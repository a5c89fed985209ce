"""Finished series on disk until all are: an import that is stopped goes on where it was (private)."""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_prep.importers.example import examples
from data_prep.importers.recipe import Recipe
from data_prep.importers.volume import Series
from fedhpc.util.arrays import Images


@dataclass(frozen=True)
class Finished:
    """What one series gave, beside its images (private).

    Attributes:
        path: of the images.
        frames, labels, early: see `Examples`.
        hashes: sha256 of each image.
        rejects: (frame, why).
        shape, dtype: of the images.
    """

    path: Path
    frames: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    early: npt.NDArray[np.uint8]
    hashes: tuple[bytes, ...]
    rejects: tuple[tuple[int, str], ...]
    shape: tuple[int, ...]
    dtype: str

    def images(self) -> Images:
        """Return the images [n, C, H, W] (private)."""
        found: Images = np.load(self.path, allow_pickle=False)
        return found


class Task(NamedTuple):
    """One series to convert, and its code."""

    code: str
    series: Series


@dataclass(frozen=True)
class Convert:
    """Turns one series into images on disk, or finds that this was done; it goes to other processes.

    Attributes:
        root: the source.
        folder: where finished series lie.
        recipe: how.
    """

    root: Path
    folder: Path
    recipe: Recipe

    def __call__(self, task: Task) -> Finished:
        """Return what the series of a task gave."""
        images, record = self.folder / f"{task.code}.npy", self.folder / f"{task.code}.json"
        if not record.exists():
            _write(images, record, task.series, self)
        return _read(images, record)


def _write(images: Path, record: Path, series: Series, convert: Convert) -> None:
    found = examples(series, series.open(convert.root), convert.recipe)
    hashes = [hashlib.sha256(image.tobytes()).hexdigest() for image in found.images]
    temporary = images.with_name(f".{images.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.save(file, found.images, allow_pickle=False)
        temporary.replace(images)
        columns = {name: getattr(found, name).tolist() for name in ("frames", "labels", "early")}
        temporary.write_text(json.dumps({**columns, "hashes": hashes, "rejects": found.rejects}), encoding="ascii")
        # Last: a record says that the images are whole.
        temporary.replace(record)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _read(images: Path, record: Path) -> Finished:
    told = json.loads(record.read_text(encoding="ascii"))
    head = np.load(images, mmap_mode="r", allow_pickle=False)
    return Finished(
        images,
        np.array(told["frames"], np.int64),
        np.array(told["labels"], np.int64),
        np.array(told["early"], np.uint8),
        tuple(bytes.fromhex(one) for one in told["hashes"]),
        tuple((row, why) for row, why in told["rejects"]),
        head.shape[1:],
        head.dtype.str,
    )


def work_folder(out: Path, digest: str) -> Path:
    """Return the folder of one import's finished series, made where there is none: others are removed."""
    folder = out / f".resume-{digest}"
    for other in out.glob(".resume-*"):
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder
