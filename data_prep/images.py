"""Class folders of PNG, JPEG, BMP or TIFF images to shards: `run.py prepare images DIR -o OUT`.

Each image is harmonised by itself, so that nothing about the cohort leaks into it: grey at its full depth (8, 16 or 32
bit), the window from the 0.5th to the 99.5th percentile of its own intensities stretched to 0..255, padded to a square
with its aspect ratio kept, resized, and only then rounded to uint8.

No name enters a shard. A patient id becomes 16 hex digits of an HMAC-SHA256 keyed with the seed, so that the same seed
gives the same shard; ids that can be guessed (hospital numbers) need a seed that is kept secret.
"""

import csv
import hashlib
import hmac
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps
from tqdm import tqdm

from data_prep.partition import VAL_SHARE, Partition, partition
from data_prep.shard_writer import write_shard
from fedhpc.errors import ShardError
from fedhpc.rng import generator
from fedhpc.site.shard import MODALITIES

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff")
WINDOW = (0.5, 99.5)
GREY_MODES = ("L", "I", "F", "I;16", "I;16B", "I;16L")
BLOCK = 256
MOST_NAMED = 20

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ImageImport:
    """What to import and how.

    Attributes:
        source: a folder with one folder of images per class, nested as deep as you like.
        out: the folder for site1.h5, site2.h5, ...; with one site it may be a file that ends in .h5, whose stem is the
            site's name.
        sites, skew, seed, all_test, val_share, fold: see `data_prep.partition`.
        reference: how many patients are set aside for good, in `reference.h5` and without their labels, as public
            images to fit `model.features` to; the same for the same seed, whatever the fold.
        size: pixels a side of the stored square.
        patient_csv: a table with the columns file (relative to source, or the bare name) and patient.
        patient_regex: searched in the file's name; its group `patient`, or else its first group, is the patient.
        modality: MR, CT or OT, of all images.
    """

    source: Path
    out: Path
    sites: int = 4
    skew: float | None = None
    size: int = 64
    seed: int = 0
    patient_csv: Path | None = None
    patient_regex: str | None = None
    all_test: bool = False
    modality: str = "OT"
    val_share: float = VAL_SHARE
    fold: tuple[int, int] | None = None
    reference: int = 0


@dataclass(frozen=True)
class _Found:
    classes: tuple[str, ...]
    files: list[Path]
    labels: npt.NDArray[np.int64]


def import_images(job: ImageImport) -> list[Path]:
    """Write the shards of `job` and return their paths, in the order of the sites.

    Exact duplicates (equal after harmonising) are kept once and named on standard error.

    Raises:
        ShardError: a wrong option, a missing class, an unknown patient, unreadable images; lists every problem.
    """
    _refuse(job, _option_problems(job))
    found, problems = _find(job.source)
    patients, more = _patients(job, found.files)
    _refuse(job, problems + more)
    targets = _targets(job)
    targets[0].parent.mkdir(parents=True, exist_ok=True)
    # On disk, since a cohort may be larger than memory.
    with tempfile.TemporaryFile(dir=targets[0].parent) as spool:
        images = np.memmap(spool, np.uint8, "w+", shape=(len(found.files), 1, job.size, job.size))
        kept = _decode(job, found, images)
        ids = np.array([pseudonym(patients[row], job.seed) for row in kept], "S16")
        aside = _set_aside(ids, job)
        if job.reference:
            # Unlabelled: every label is 0, and no split means anything.
            unknown = np.zeros(aside.sum(), np.int64)
            targets.append(targets[0].with_name("reference.h5"))
            _write(job, found, (targets[-1], images), (kept[aside], unknown, ids[aside], unknown))
        kept, ids = kept[~aside], ids[~aside]
        plan = Partition(job.sites, job.skew, job.seed, job.all_test, job.val_share, job.fold)
        site_of, split = partition(found.labels[kept], ids, plan)
        for site, path in enumerate(targets[: job.sites]):
            mine = np.flatnonzero(site_of == site)
            _write(job, found, (path, images), (kept[mine], found.labels[kept[mine]], ids[mine], split[mine]))
        del images
    return targets


def _write(
    job: ImageImport, found: _Found, place: tuple[Path, npt.NDArray[Any]], columns: tuple[npt.NDArray[Any], ...]
) -> None:
    (path, images), (rows, labels, ids, split) = place, columns
    write_shard(
        path,
        site=path.stem,
        classes=found.classes,
        images=_blocks(images, rows),
        labels=labels,
        patient=ids,
        split=split,
        modality=[job.modality] * len(rows),
        pixel_range=(0.0, 255.0),
        created_by="fedhpc prepare images",
    )


def _set_aside(ids: npt.NDArray[np.bytes_], job: ImageImport) -> npt.NDArray[np.bool_]:
    """Which images belong to the patients of the public reference."""
    patients = np.unique(ids)
    if job.reference >= len(patients):
        raise ShardError(
            f"reference={job.reference} of {len(patients)} patients; allowed: fewer, so that some are left"
        )
    chosen = generator(job.seed, "reference").choice(patients, job.reference, replace=False)
    aside: npt.NDArray[np.bool_] = np.isin(ids, chosen)
    return aside


def pseudonym(patient: str, seed: int) -> str:
    """16 hex digits that stand for `patient` (private); equal for equal (patient, seed)."""
    return hmac.new(f"fedhpc {seed}".encode(), patient.encode(), hashlib.sha256).hexdigest()[:16]


def read_grey(path: Path) -> npt.NDArray[np.float32]:
    """The image at `path` as float32 [h, w] in its own units, colours turned to luminance, upright (private).

    Raises:
        ValueError, OSError and whatever else the decoder raises: an unreadable file, or one with several frames.
    """
    with Image.open(path) as image:
        frames = getattr(image, "n_frames", 1)
        if frames > 1:
            raise ValueError(f"{frames} frames; allowed: one")
        upright = ImageOps.exif_transpose(image)
        if upright.mode in ("P", "PA"):
            upright = upright.convert("RGBA")
        return np.array(upright if upright.mode in GREY_MODES else upright.convert("L"), dtype=np.float32)


def harmonise(grey: npt.NDArray[np.float32], size: int) -> Pixels:
    """One image, float [h, w] of any unit, windowed by itself and padded to uint8 [size, size] (private)."""
    low, high = np.percentile(grey, WINDOW)
    if high <= low:  # a small object on an even ground: all intensities count
        low, high = grey.min(), grey.max()
    stretched = (grey - low) * (255 / max(high - low, 1e-12))
    clipped = Image.fromarray(np.clip(stretched, 0, 255).astype(np.float32))
    square = ImageOps.pad(clipped, (size, size), Image.Resampling.LANCZOS, color=0)
    return np.asarray(np.rint(np.clip(np.asarray(square), 0, 255)), dtype=np.uint8)


def _refuse(job: ImageImport, problems: Sequence[str]) -> None:
    if problems:
        raise ShardError(f"cannot import {job.source}:" + "".join(f"\n  - {problem}" for problem in problems))


def _option_problems(job: ImageImport) -> list[str]:
    rules = (
        (job.sites >= 1, f"sites={job.sites}; allowed: 1 or more"),
        (job.size >= 8, f"size={job.size}; allowed: 8 pixels or more"),
        (job.skew is None or job.skew > 0, f"skew={job.skew}; allowed: above 0, or none at all"),
        (job.modality in MODALITIES, f"modality={job.modality!r}; allowed: {', '.join(MODALITIES)}"),
        (
            job.sites == 1 or job.out.suffix != ".h5",
            f"out={job.out} is one file; allowed for {job.sites} sites: a folder",
        ),
        (0 < job.val_share < 1, f"val_share={job.val_share}; allowed: between 0 and 1"),
        (job.fold is None or 1 <= job.fold[0] <= job.fold[1] >= 2, f"fold={job.fold}; allowed: 1/5 to 5/5, or alike"),
        (not (job.fold and job.all_test), "fold and all_test; allowed: one of them"),
        (job.reference >= 0, f"reference={job.reference}; allowed: 0 or more patients"),
        (
            not job.reference or job.out.suffix != ".h5",
            f"out={job.out} is one file, reference={job.reference} needs another beside it; allowed: a folder",
        ),
        (not (job.patient_csv and job.patient_regex), "patient_csv and patient_regex; allowed: one of them"),
    )
    return [text for fine, text in rules if not fine]


def _targets(job: ImageImport) -> list[Path]:
    if job.out.suffix == ".h5":
        return [job.out]
    return [job.out / f"site{number}.h5" for number in range(1, job.sites + 1)]


def _find(source: Path) -> tuple[_Found, list[str]]:
    folders = sorted(path for path in source.glob("*") if path.is_dir() and not path.name.startswith("."))
    files = {folder.name: _image_files(folder) for folder in folders}
    problems = [f"{source / name} has no image; allowed: {', '.join(SUFFIXES)}" for name in files if not files[name]]
    if len(folders) < 2:
        problems.append(f"{len(folders)} class folders in {source}; allowed: at least two, each named after its class")
    labels = np.repeat(np.arange(len(files)), [len(paths) for paths in files.values()])
    return _Found(tuple(files), [path for paths in files.values() for path in paths], labels), problems


def _image_files(folder: Path) -> list[Path]:
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return sorted(path for path in found if not path.name.startswith("."))


def _patients(job: ImageImport, files: list[Path]) -> tuple[list[str], list[str]]:
    """The patient of each file, and what is wrong with them."""
    if job.patient_csv:
        return _patients_by_csv(job.patient_csv, job.source, files)
    if job.patient_regex:
        return _patients_by_regex(job.patient_regex, files)
    print(
        f"warning: no patient ids for {job.source}: each image counts as a patient of its own, so that splits may "
        "share patients and privacy holds per image only. Remedy: --patient-csv or --patient-regex",
        file=sys.stderr,
    )
    return [path.relative_to(job.source).as_posix() for path in files], []


def _patients_by_regex(regex: str, files: list[Path]) -> tuple[list[str], list[str]]:
    try:
        pattern = re.compile(regex)
    except re.error as error:
        return [], [f"patient_regex={regex!r}: {error}; allowed: a Python regular expression"]
    if not pattern.groups:
        return [], [f"patient_regex={regex!r} has no group; allowed: (...) or (?P<patient>...) around the patient"]
    group: str | int = "patient" if "patient" in pattern.groupindex else 1
    matches = [pattern.search(path.name) for path in files]
    patients = [(match and match[group]) or "" for match in matches]
    problems = [f"{path}: patient_regex={regex!r} finds no patient in the name"
                for path, patient in zip(files, patients, strict=True) if not patient]  # fmt: skip
    return patients, problems


def _patients_by_csv(table: Path, source: Path, files: list[Path]) -> tuple[list[str], list[str]]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as lines:
            rows = list(csv.DictReader(lines))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        return [], [f"patient_csv={table}: {error}"]
    if not rows or not {"file", "patient"} <= set(rows[0]):
        return [], [f"patient_csv={table} has the columns {list(rows[0]) if rows else []}; allowed: file, patient"]
    known: dict[str, str] = {}
    problems = []
    for row in rows:
        name, patient = (row["file"] or "").strip(), (row["patient"] or "").strip()
        if not patient or known.setdefault(name, patient) != patient:
            problems.append(
                f"{table}: {name} has patient {patient!r} after {known.get(name, '')!r}; allowed: one a file"
            )
    same_name = Counter(path.name for path in files)
    patients = []
    for path in files:
        short = path.name if same_name[path.name] == 1 else ""
        patient = known.get(path.relative_to(source).as_posix()) or known.get(short, "")
        patients.append(patient)
        if not patient:
            problems.append(
                f"{path} has no patient in {table}; allowed: its path below {source}, or a name that occurs once"
            )
    return patients, problems


def _decode(job: ImageImport, found: _Found, images: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Fill `images` and return the rows to keep, ascending: one of each set of equal images."""
    problems: list[str] = []
    first_row: dict[bytes, int] = {}
    twins: list[tuple[int, int]] = []
    for row, path in enumerate(tqdm(found.files, desc="images", unit="image", leave=False, disable=None)):
        try:
            images[row, 0] = harmonise(read_grey(path), job.size)
        except Exception as error:  # image decoders raise whatever they like
            problems.append(f"{path}: unreadable image ({error}); allowed: a whole {', '.join(SUFFIXES)} file")
            continue
        first = first_row.setdefault(hashlib.sha256(images[row].tobytes()).digest(), row)
        if first != row:
            twins.append((first, row))
    _refuse(job, problems)
    _warn_of_twins(job, found, twins)
    return np.array(sorted(first_row.values()), np.int64)


def _warn_of_twins(job: ImageImport, found: _Found, twins: list[tuple[int, int]]) -> None:
    if not twins:
        return
    names = [path.relative_to(job.source).as_posix() for path in found.files]
    # Contradicting labels come first: someone should look at them.
    ranked = sorted(twins, key=lambda twin: found.labels[twin[0]] == found.labels[twin[1]])
    print(f"warning: {len(twins)} duplicate images left out, the first of each kept:", file=sys.stderr)
    for first, second in ranked[:MOST_NAMED]:
        note = "" if found.labels[first] == found.labels[second] else " (another class!)"
        print(f"  {names[second]} = {names[first]}{note}", file=sys.stderr)
    if len(ranked) > MOST_NAMED:
        print(f"  and {len(ranked) - MOST_NAMED} more", file=sys.stderr)


def _blocks(images: npt.NDArray[Any], rows: npt.NDArray[np.int64]) -> Iterator[Pixels]:
    for first in range(0, len(rows), BLOCK):
        yield np.asarray(images[rows[first : first + BLOCK]])
