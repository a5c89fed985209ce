"""A NumPy archive to shards: `run.py prepare npz FILE`.

The file holds `images` [n, H, W], [n, C, H, W] or volumes [n, C, D, H, W] of uint8, uint16 or float32, `labels` int [n]
and `patients` [n], and may hold `modality` text [n], `early` 0 or 1 [n] and `split` 0 train, 1 val, 2 test [n]. Any
other array is refused: what is not asked for does not get into a shard.
"""

import math
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.image_job import SITE_NAME
from data_prep.importers.deidentified import METHOD
from data_prep.importers.division import divide
from data_prep.importers.secret import Pseudonyms, site_pseudonyms
from data_prep.names import is_class_name, patient_key, shown
from data_prep.partition import VAL_SHARE, Partition
from data_prep.shard_writer import write_shard
from data_prep.target import Target, staging
from fedhpc.errors import ShardError
from fedhpc.site.data.shard_format import IMAGE_DTYPES, MODALITIES

REQUIRED, OPTIONAL = ("images", "labels", "patients"), ("modality", "early", "split")
SHAPES = "[n, H, W], [n, C, H, W] or [n, C, D, H, W]"
COLOURS = 4
"""Most channels that the last axis of an image with channels last has."""
Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class ArraysImport:
    """What to import and how.

    Attributes:
        source: the .npz file.
        out: the folder of the shards.
        secret: the file of the site's secret.
        classes: names of the labels 0, 1, ...
        site: the one hospital; None: divide among `sites`.
        sites, skew, seed, all_test, val_share: see `data_prep.partition`.
        pixel_range: lowest and highest value of float32 images (public); None: the whole scale of uint8 or uint16.
        replace: remove the shards of another import from the folder.
    """

    source: Path
    out: Path
    secret: Path
    classes: tuple[str, ...]
    site: str | None = None
    sites: int = 4
    skew: float | None = None
    seed: int = 0
    all_test: bool = False
    val_share: float = VAL_SHARE
    pixel_range: tuple[float, ...] | None = None
    replace: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Of the hospitals, in order."""
        return (self.site,) if self.site else tuple(f"site{number}" for number in range(1, self.sites + 1))


def import_arrays(job: ArraysImport) -> list[Path]:
    """Write the shards of `job` and return their paths.

    Raises:
        ShardError: an archive that cannot be read or does not fit, too few patients, shards of another import, no room.
    """
    _refuse(job, "wrong options. Allowed", [text for fine, text in _options(job) if not fine])
    codes = site_pseudonyms(job.secret, job.out)
    arrays = _checked(job, _read(job.source))
    patients = np.array([codes.patient(name) for name in _patients(arrays)], "S16")
    labels = arrays["labels"].astype(np.int64)
    plan = Partition(len(job.names), job.skew, job.seed, job.all_test, job.val_share)
    site_of, split = divide(labels, patients, plan)
    split = arrays.get("split", split)
    files = tuple(f"{name}.h5" for name in job.names)
    target = Target(job.out, files, f"fedhpc prepare npz, import {_digest(job, codes)}", job.replace)
    target.strangers()
    images = arrays["images"]
    modality = arrays.get("modality", np.full(len(labels), "OT"))
    with staging(target, images.nbytes + 256 * len(images) + 2**20) as stage:
        for number, file in enumerate(files):
            mine = site_of == number
            write_shard(
                stage.folder / file,
                site=Path(file).stem,
                classes=job.classes,
                images=images[mine],
                labels=labels[mine],
                patient=patients[mine],
                split=split[mine],
                modality=[str(one) for one in modality[mine]],
                stage=arrays["early"][mine] if "early" in arrays else None,
                pixel_range=_range(job, images),
                created_by=target.stamp,
                deidentification=METHOD,
            )
        return stage.publish()


def _read(source: Path) -> Arrays:
    try:
        with np.load(source, allow_pickle=False) as archive:
            missing = [name for name in REQUIRED if name not in archive]
            unknown = sum(name not in (*REQUIRED, *OPTIONAL) for name in archive)
            if missing or unknown:
                raise ShardError(
                    f"{shown(source)}: has {unknown} unknown arrays and lacks {', '.join(missing) or 'none'}. Save "
                    f"{', '.join(REQUIRED)}, and of {', '.join(OPTIONAL)} what there is, nothing else",
                    code="prepare",
                )
            return {name: archive[name] for name in archive}
    except (OSError, ValueError, TypeError, zipfile.BadZipFile) as error:  # TypeError: of a .npy file, one array alone
        raise ShardError(
            f"{shown(source)}: cannot be read as a NumPy archive ({type(error).__name__}). Give a .npz file without "
            "Python objects in it",
            code="prepare",
        ) from error


def _refuse(job: ArraysImport, problem: str, needed: Sequence[str]) -> None:
    """Raise ShardError with what is needed, where anything is."""
    if needed:
        raise ShardError(f"{shown(job.source)}: {problem}: {'; '.join(needed)}", code="prepare")


def _options(job: ArraysImport) -> list[tuple[bool, str]]:
    ends = job.pixel_range
    return [
        (job.site is None or re.fullmatch(SITE_NAME, job.site) is not None, "--site of a-z, 0-9, _ and -"),
        (job.sites >= 1, "--sites 1 or more"),
        (job.skew is None or job.skew > 0, "--skew above 0, or none"),
        (0 < job.val_share < 1, "--val-share between 0 and 1"),
        (len(set(job.classes)) == len(job.classes) >= 2, "--classes with two or more different names"),
        (all(map(is_class_name, job.classes)), "--classes with printable names of up to 100 letters"),
        (
            ends is None or (all(map(math.isfinite, ends)) and ends[0] < ends[-1]),
            "--pixel-range of two finite numbers, the smaller first",
        ),
    ]


def _shapes(arrays: Arrays) -> list[tuple[bool, str]]:
    return [
        (all(len(values.shape) == 1 for name, values in arrays.items() if name != "images"), "[n] in every column"),
        (
            arrays["images"].ndim in (3, 4, 5) and 0 not in arrays["images"].shape,
            f"images {SHAPES}, none of them 0",
        ),
        (
            not (arrays["images"].ndim == 4 and arrays["images"].shape[3] <= COLOURS < arrays["images"].shape[1]),
            "channels before rows and columns: np.moveaxis(images, -1, 1)",
        ),
    ]


def _patients(arrays: Arrays) -> list[str]:
    """The key of each image's patient: tables add blanks and change the case of letters."""
    return [patient_key(str(name)) for name in arrays["patients"].tolist()]


def _columns(arrays: Arrays) -> list[tuple[bool, str]]:
    """What the optional columns must hold: nothing else of them may get into a shard."""
    split, early = arrays.get("split"), arrays.get("early")
    known = split is None or (split.dtype.kind in "iu" and bool(np.isin(split, (0, 1, 2)).all()))
    pairs = set() if split is None else {*zip(_patients(arrays), split.tolist(), strict=True)}
    alone = split is None or len(pairs) == len({patient for patient, _ in pairs})
    return [
        (known, "split 0 train, 1 val or 2 test"),
        (alone, "all images of a patient in one split"),
        (early is None or (early.dtype.kind in "iub" and bool(np.isin(early, (0, 1)).all())), "early 0 or 1"),
        (
            set(map(str, arrays.get("modality", ()))) <= set(MODALITIES),
            f"modality of {', '.join(MODALITIES)}",
        ),
    ]


def _checked(job: ArraysImport, arrays: Arrays) -> Arrays:
    _refuse(job, "does not fit. Needed", [text for fine, text in _shapes(arrays) if not fine])
    images, labels = arrays["images"], arrays["labels"]
    if images.ndim == 3:
        images = images[:, None]
    rules = (
        (
            images.dtype in IMAGE_DTYPES,
            f"images: uint8, uint16 or float32 {SHAPES}",
        ),
        (
            (images.dtype.kind == "f") == (job.pixel_range is not None and len(job.pixel_range) == 2),
            "--pixel-range LOW HIGH with float32 images, and only with them: it is public, so it is no image's own",
        ),
        (labels.ndim == 1 and labels.dtype.kind in "iu", "labels: whole numbers [n]"),
        (len({len(values) for values in arrays.values()}) == 1, "one value an image in every array"),
        (labels.dtype.kind in "iu" and bool(np.isin(labels, range(len(job.classes))).all()), "a class for each label"),
        (images.dtype.kind != "f" or bool(np.isfinite(images).all()), "finite pixels"),
    )
    _refuse(job, "does not fit. Needed", [text for fine, text in rules if not fine])
    _refuse(job, "does not fit. Needed", [text for fine, text in _columns(arrays) if not fine])
    return arrays | {"images": images}


def _digest(job: ArraysImport, codes: Pseudonyms) -> str:
    options = repr((job.classes, job.names, job.skew, job.seed, job.all_test, job.val_share, job.pixel_range))
    return codes.digest(options + job.source.read_bytes().hex())


def _range(job: ArraysImport, images: npt.NDArray[Any]) -> tuple[float, float]:
    """The whole scale of whole numbers; of float32 what was declared."""
    if job.pixel_range is not None:
        return job.pixel_range[0], job.pixel_range[1]
    return 0.0, float(np.iinfo(images.dtype).max)
