"""Class folders of images to shards: `run.py prepare images DIR -o OUT`.

Every file of the source is accounted for in one table: taken, or left out and why (`data_prep.inventory`). Each image
is harmonised by itself (`data_prep.decoding`). Nothing appears in the output folder before everything in it is whole.

No name enters a shard. A patient id becomes 16 hex digits of an HMAC-SHA256 keyed with the seed, so that the same seed
gives the same shard; ids that can be guessed (hospital numbers) need a seed that is kept secret.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_prep.decoding import CONSTANT, NOT_FINITE, TOO_LARGE, Decoded, Decoder, any_size, in_order
from data_prep.discovery import ImageFile
from data_prep.image_job import ImageImport, option_problems, refuse
from data_prep.image_source import Cohort, find_cohort, stamp
from data_prep.inventory import Inventory, LeftOut, reasons
from data_prep.names import shown
from data_prep.partition import partition
from data_prep.shard_writer import UNLABELLED, write_shard
from data_prep.spool import Spool
from data_prep.target import Staging, Target, ended_by_sigterm, staging
from fedhpc.errors import ShardError
from fedhpc.util.arrays import I64
from fedhpc.util.progress import progress
from fedhpc.util.rng import generator

DUPLICATE = "an exact duplicate, the first kept"
CONTRADICTION = "an exact duplicate in another class, the first kept: look at both"
SHARD_OVERHEAD_BYTES = 256


def import_images(job: ImageImport) -> list[Path]:
    """Write the shards of `job`, print the table of what was found, and return the shards' paths, sites in order.

    Raises:
        ShardError: a wrong option, a missing class, an unknown patient, unreadable images, shards of another import in
            the output folder, no room; lists every problem of a kind.
    """
    refuse(job, option_problems(job))
    cohort, left = find_cohort(job)
    target = Target(job.folder, job.file_names, stamp(job, cohort), job.replace, job.one_file)
    target.strangers()
    # Before the images are decoded, so that what cannot be divided is refused in seconds.
    _divide(job, cohort)
    with any_size(), ended_by_sigterm():
        cohort, refused = _inspected(job, cohort)
        needed_bytes = 2 * len(cohort.files) * (job.size**2 + SHARD_OVERHEAD_BYTES) + 2**20
        with staging(target, needed_bytes) as stage, Spool(stage.folder, job.size) as spool:
            spool.reserve(len(cohort.files))
            taken, more, notes = _decode(job, cohort, spool)
            left = sorted([*left, *refused, *more], key=lambda entry: os.fsencode(entry.path))
            found = [(file.path, file.class_name) for file in taken.files]
            inventory = Inventory(job.source, found, left, notes)
            _write_all(job, taken, spool, stage, target.stamp)
            extra = _file_list(job, inventory, stage)
            spool.close()
            paths = stage.publish(extra)
    print(inventory.text)
    return paths[: len(job.file_names)]


def _inspected(job: ImageImport, cohort: Cohort) -> tuple[Cohort, list[LeftOut]]:
    """The images that can be taken as far as their headers tell, and the others."""
    decoder = Decoder(job.size, job.repair_nan)
    paths = [job.source / file.path for file in cohort.files]
    found = list(progress(in_order(decoder.inspect, paths), len(paths), "headers"))
    kept = [row for row, wrong in enumerate(found) if wrong is None]
    left = [_left_out(cohort.files[row], wrong) for row, wrong in enumerate(found) if wrong is not None]
    _refuse_unreadable(job, left)
    return cohort.rows(kept), left


def _decode(job: ImageImport, cohort: Cohort, spool: Spool) -> tuple[Cohort, list[LeftOut], dict[str, list[str]]]:
    """Put the images into `spool`: one of each set of equal ones. Return them, the others, and what is worth a note."""
    decoder = Decoder(job.size, job.repair_nan)
    paths = [job.source / file.path for file in cohort.files]
    kept: list[int] = []
    left: list[LeftOut] = []
    notes: dict[str, list[str]] = {}
    first_row: dict[bytes, int] = {}
    for row, done in enumerate(progress(in_order(decoder.decode, paths), len(paths), "images")):
        file = cohort.files[row]
        if done.pixels is None:
            left.append(_left_out(file, done))
            continue
        first = first_row.setdefault(hashlib.sha256(done.pixels.tobytes()).digest(), row)
        if first != row:
            left.append(_duplicate(file, cohort.files[first]))
            continue
        kept.append(row)
        spool.append(done.pixels)
        if done.reason:
            notes.setdefault(done.reason, []).append(shown(file.path))
    _refuse_unreadable(job, left)
    return cohort.rows(kept), left, notes


def _left_out(file: ImageFile, done: Decoded) -> LeftOut:
    return LeftOut(file.path, done.reason, detail=done.detail)


def _duplicate(file: ImageFile, first: ImageFile) -> LeftOut:
    reason = DUPLICATE if file.class_name == first.class_name else CONTRADICTION
    return LeftOut(file.path, reason, detail=f"= {shown(first.path)}")


def _refuse_unreadable(job: ImageImport, left: Sequence[LeftOut]) -> None:
    """Refuse, since an image that was lost on the way is a patient who is missing, unless told to go on."""
    harmless = {TOO_LARGE, CONSTANT, DUPLICATE, CONTRADICTION}
    wrong = [entry for entry in left if entry.reason not in harmless]
    if not wrong or job.skip_unreadable:
        return
    repair = " or repair them with --repair-nan" if any(entry.reason == NOT_FINITE for entry in wrong) else ""
    refuse(job, [*reasons(wrong), f"correct these files{repair}, or leave them out with --skip-unreadable"])


def _divide(job: ImageImport, cohort: Cohort) -> tuple[npt.NDArray[np.bool_], I64, npt.NDArray[np.uint8]]:
    """Which images are set aside as the reference, then site and split of the others."""
    aside = _set_aside(job, cohort)
    mine = ~aside
    splits = None if cohort.splits is None else cohort.splits[mine]
    return aside, *partition(cohort.labels[mine], cohort.patients[mine], job.plan, splits)


def _set_aside(job: ImageImport, cohort: Cohort) -> npt.NDArray[np.bool_]:
    """Which images belong to the patients of the public reference; of given splits, only those for training."""
    training = np.ones(len(cohort.files), bool) if cohort.splits is None else cohort.splits == 0
    patients = np.unique(cohort.patients[training])
    if not job.reference:
        return np.zeros(len(cohort.files), bool)
    if job.reference >= len(patients):
        raise ShardError(
            f"reference={job.reference} of {len(patients)} patients; allowed: fewer, so that some are left",
            code="prepare.too-few-patients",
        )
    chosen = generator(job.seed, "reference").choice(patients, job.reference, replace=False)
    aside: npt.NDArray[np.bool_] = np.isin(cohort.patients, chosen)
    return aside


def _write_all(job: ImageImport, taken: Cohort, spool: Spool, stage: Staging, stamp: str) -> None:
    aside, site_of, split = _divide(job, taken)
    rows = np.flatnonzero(~aside)
    names = tuple(shown(name) for name in taken.classes)
    for site, name in enumerate(job.file_names[: job.sites]):
        mine = site_of == site
        part = _Part(names, rows[mine], taken.labels[rows[mine]], taken.patients[rows[mine]], split[mine])
        _write(stage.folder / name, part, spool, job.modality, stamp)
    if job.reference:
        chosen = np.flatnonzero(aside)
        unknown = np.zeros(len(chosen), np.int64)
        part = _Part(UNLABELLED, chosen, unknown, taken.patients[chosen], unknown)
        _write(stage.folder / "reference.h5", part, spool, job.modality, stamp)


@dataclass(frozen=True)
class _Part:
    """What goes into one shard: names of the classes, rows of the spool, and a column each."""

    classes: tuple[str, ...]
    rows: I64
    labels: I64
    patients: npt.NDArray[np.bytes_]
    split: npt.NDArray[np.integer]


def _write(path: Path, part: _Part, spool: Spool, modality: str, stamp: str) -> None:
    write_shard(
        path,
        site=path.stem,
        classes=part.classes,
        images=spool.blocks(part.rows),
        labels=part.labels,
        patient=part.patients,
        split=part.split,
        modality=[modality] * len(part.rows),
        pixel_range=(0.0, 255.0),
        created_by=stamp,
    )


def _file_list(job: ImageImport, inventory: Inventory, stage: Staging) -> list[Path]:
    if not job.list_files:
        return []
    path = stage.folder / job.table_name
    path.write_text(inventory.csv(), encoding="utf-8")
    return [path]
