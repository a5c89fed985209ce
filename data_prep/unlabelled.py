"""Images to predict, read as the importers read them: files and folders of pictures, DICOM, NIfTI and NRRD, or a shard.

No secret, label, split or patient is needed, and nothing is written. How a series was cut when the shards were made is
not in a model: window, spacing, stack and plane are given again.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_prep.decoding import Decoder
from data_prep.discovery import image_suffixes
from data_prep.importers.example import examples
from data_prep.importers.job import ArchiveImport
from data_prep.importers.nifti import SUFFIXES
from data_prep.importers.recipe import Recipe
from data_prep.importers.tree import files_below, refusal
from data_prep.importers.volume import Found, Frame
from data_prep.names import shown
from fedhpc.errors import ShardError
from fedhpc.site.data.shard import Shard
from fedhpc.util.arrays import Images
from fedhpc.util.text import first_names

BATCH = 64
NO_MASK = "\0"
"""Of the suffix that tells masks from volumes: no file's name has it."""


@dataclass(frozen=True)
class Batch:
    """Some images in a shard's dtype, [k, C, H, W], and what each is of (private).

    Attributes:
        names: the input that each is of.
        places: frame, slice or row in it; 0 of a single picture.
        images: before harmonisation.
    """

    names: tuple[str, ...]
    places: tuple[int, ...]
    images: Images


@dataclass(frozen=True)
class Inputs:
    """What to read and how.

    Attributes:
        paths: files and folders, or one shard (.h5).
        recipe: how a series becomes images, as at the import.
        modality: of NIfTI and NRRD volumes.
        plane: of volumes; None: as they lie.
    """

    paths: tuple[Path, ...]
    recipe: Recipe
    modality: str = "OT"
    plane: str | None = None

    @property
    def shard(self) -> Path | None:
        """The one shard; None of files and folders.

        Raises:
            ShardError: a shard beside other inputs.
        """
        shards = [path for path in self.paths if path.suffix == ".h5"]
        if not shards:
            return None
        if len(self.paths) == 1:
            return shards[0]
        others = [path for path in self.paths if path not in shards]
        beside = f"{_names(others)} of files and folders" if others else "another shard"
        raise ShardError(
            f"input={_names(shards)}: is a shard (.h5), given beside {beside}. Give one shard alone, or files and "
            "folders alone: one command and one table for each",
            code="prepare",
        )


class Lost(NamedTuple):
    """An input that gives no image, and why (private)."""

    path: Path
    why: str


@dataclass(frozen=True)
class _Files:
    """Given files by kind, and which of them were named themselves, not found in a folder."""

    pictures: tuple[Path, ...]
    volumes: tuple[Path, ...]
    dicom: tuple[Path, ...]
    named: frozenset[Path]


def batches(inputs: Inputs, note: Callable[[str], None]) -> Iterator[Batch]:
    """Yield all images, series by series.

    Args:
        inputs: what to read.
        note: is given a line about files of folders that hold no image.

    Raises:
        ShardError: a file that was named gives no image, or there is none at all; with the reason of each.
    """
    shard = inputs.shard
    if shard is not None:
        yield from _rows(shard)
        return
    files = _sorted(inputs.paths)
    lost: list[Lost] = []
    taken: set[Path] = set()
    for batch in _all(inputs, files, lost):
        taken |= set(map(Path, batch.names))
        yield batch
    wrong = [one for one in _each_once(lost) if one.path in files.named and one.path not in taken]
    if wrong or not taken:
        raise _refused(wrong or _each_once(lost), inputs)
    others = len({path for path, _ in lost} - taken)
    if others:
        note(f"{others:,} other files of the folders give no image: {first_names(sorted({why for _, why in lost}))}")


def _all(inputs: Inputs, files: _Files, lost: list[Lost]) -> Iterator[Batch]:
    """Every image; what gives none is added to `lost`."""
    yield from _pictures(inputs, files.pictures, lost)
    if files.volumes:
        from data_prep.importers import nifti

        yield from _series(inputs, files.volumes, nifti.find, lost)
    if files.dicom:
        from data_prep.importers import dicom

        yield from _series(inputs, files.dicom, dicom.find, lost)


def _rows(path: Path) -> Iterator[Batch]:
    with Shard.open(path, None, in_memory=False, need_train=False) as shard:
        for first in range(0, shard.n, BATCH):
            rows = np.arange(first, min(first + BATCH, shard.n))
            yield Batch((str(path),) * len(rows), tuple(rows.tolist()), shard.read(rows))


def _sorted(paths: Sequence[Path]) -> _Files:
    pictures, suffixes = image_suffixes(), SUFFIXES
    found: list[Path] = []
    named: set[Path] = set()
    for path in paths:
        if path.is_dir():
            found += [path / file for file in files_below(path) if not refusal(path, file, follow_links=True)]
        else:
            named.add(path)
            found.append(path)
    missing = [shown(path) for path in sorted(named) if not path.is_file()]
    if missing:
        raise ShardError(
            f"input={first_names(missing)}: no such file. Give files, folders or one shard", code="prepare"
        )
    unique = tuple(dict.fromkeys(found))
    volumes = tuple(path for path in unique if path.name.lower().endswith(suffixes))
    flat = tuple(path for path in unique if path.suffix.lower() in pictures)
    rest = tuple(path for path in unique if path not in {*volumes, *flat})
    return _Files(flat, volumes, rest, frozenset(named))


def _pictures(inputs: Inputs, paths: Sequence[Path], lost: list[Lost]) -> Iterator[Batch]:
    decoder = Decoder(inputs.recipe.square.size)
    for first in range(0, len(paths), BATCH):
        part = [(path, decoder.decode(path)) for path in paths[first : first + BATCH]]
        lost += [Lost(path, done.reason) for path, done in part if done.pixels is None]
        kept = [(str(path), done.pixels) for path, done in part if done.pixels is not None]
        if kept:
            images = np.stack([pixels for _, pixels in kept])[:, None]
            yield Batch(tuple(name for name, _ in kept), (0,) * len(kept), images)


def _series(
    inputs: Inputs, paths: Sequence[Path], find: Callable[[ArchiveImport], Found], lost: list[Lost]
) -> Iterator[Batch]:
    root = Path(os.path.commonpath([path.absolute().parent for path in paths]))
    given = {os.path.relpath(path.absolute(), root): path for path in paths}
    job = ArchiveImport(
        root,
        root,
        root,
        inputs.recipe,
        plane=inputs.plane,
        format_modality=inputs.modality,
        mask_suffix=NO_MASK,
        follow_links=True,
        only=tuple(given),
        anonymous=True,
    )
    found = find(job)
    lost += [Lost(given[reject.file], reject.why) for reject in found.rejects]
    for one in found.series:
        made = examples(one, one.open(root), inputs.recipe)
        lost += [Lost(given[one.frames[row].file], why) for row, why in made.rejects]
        frames = [one.frames[row] for row in made.frames.tolist()]
        for first in range(0, len(frames), BATCH):
            part = frames[first : first + BATCH]
            yield _named(part, given, made.images[first : first + BATCH])


def _named(frames: Sequence[Frame], given: dict[str, Path], images: Images) -> Batch:
    return Batch(tuple(str(given[frame.file]) for frame in frames), tuple(frame.index for frame in frames), images)


def _names(paths: Sequence[Path]) -> str:
    return first_names([shown(path) for path in paths])


def _each_once(lost: Sequence[Lost]) -> list[Lost]:
    """One reason of each input."""
    return list({one.path: one for one in lost}.values())


def _refused(lost: Sequence[Lost], inputs: Inputs) -> ShardError:
    """Of what was lost; of all that was given where nothing says why."""
    why = [f"{shown(path)} ({reason})" for path, reason in lost] or [
        f"{shown(path)} (holds no image)" for path in inputs.paths
    ]
    return ShardError(f"input={first_names(why)}: no image can be taken. Correct or leave these away", code="prepare")
