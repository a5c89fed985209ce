"""From found series to shards: convert, label, divide by patient, write; the same for every archive format."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_prep.importers.deidentified import METHOD
from data_prep.importers.division import divide
from data_prep.importers.intensity import HOUNSFIELD_RANGE
from data_prep.importers.job import ArchiveImport, checked
from data_prep.importers.labels import Labels, check_no_names, read_labels
from data_prep.importers.lesions import CLASSES
from data_prep.importers.listing import listing
from data_prep.importers.parallel import each
from data_prep.importers.rejects import NAME, reject_summary, reject_table
from data_prep.importers.secret import Pseudonyms, site_pseudonyms
from data_prep.importers.volume import Found, Reject, Series
from data_prep.importers.work import Convert, Finished, Task, work_folder
from data_prep.names import shown
from data_prep.shard_writer import write_shard
from data_prep.target import Staging, Target, ended_by_sigterm, staging
from fedhpc.errors import ShardError
from fedhpc.util.arrays import I64, Images
from fedhpc.util.text import count_of

Finder = Callable[[ArchiveImport], Found]
NO_LABEL = "without a label in the table"
NO_LESIONS = "of a series without contours or masks, so that its label is unknown"
DUPLICATE = "an image with the very pixels of another one, the first kept"
OTHER_SHAPE = "of another number of channels or another dtype than the first series"
FACES = (
    "3-D patches keep surfaces: of a head, blocks that reach its skin can be rendered as a face. Import small patches "
    "of its inside, or deface the volumes first (PS3.15 option 113102 is not claimed)"
)
FEW_IMAGES = 1024


@dataclass(frozen=True)
class _Rows:
    """All examples of an import, a row each (private)."""

    series: I64
    place: I64
    labels: I64
    early: npt.NDArray[np.uint8]
    patients: npt.NDArray[np.bytes_]
    modality: npt.NDArray[np.str_]


def dry_run(job: ArchiveImport, finder: Finder) -> str:
    """Return the table of the series found and what would be taken; write nothing but a new secret.

    Raises:
        ShardError: a wrong option, an unreadable folder, a missing library.
    """
    codes = site_pseudonyms(checked(job).secret, job.out)
    labels = read_labels(job.labels, job.classes) if job.labels else None
    found, _, unlabelled = _labelled(_found(job, finder, codes), labels)
    _check_classes(job, labels, found)
    return "\n".join([listing(found, unlabelled), *(f"note: {note}" for note in _notes(job, found))])


def import_archive(job: ArchiveImport, finder: Finder, name: str) -> list[Path]:
    """Write the shards of `job` and OUT/rejects.csv, print what was taken, and return the shards' paths.

    Args:
        job: what to import.
        finder: finds the series of one format.
        name: of the format, for `created_by`.

    Raises:
        ShardError: a wrong option, nothing to import, too few patients, shards of another import, no room.
    """
    codes = site_pseudonyms(checked(job).secret, job.out)
    labels = read_labels(job.labels, job.classes) if job.labels else None
    found, rejects, _ = _labelled(_found(job, finder, codes), labels)
    if not found.series:
        raise ShardError(_nothing(job, rejects), code="prepare")
    _check_classes(job, labels, found)
    digest = _digest(job, found, codes)
    target = Target(job.out, job.files, f"fedhpc prepare {name}, import {digest}", job.replace)
    target.strangers()
    job.out.mkdir(parents=True, exist_ok=True)
    folder = work_folder(job.out, _digest(job, found, codes, times=True))
    with ended_by_sigterm():
        finished = _converted(job, found, codes, folder)
        rejects += _late_rejects(found.series, finished)
        rows, doubles = _rows(job, found, finished, codes, labels)
        rejects += doubles
        if not len(rows.labels):
            raise ShardError(_nothing(job, rejects), code="prepare")
        names = job.classes or (labels.classes if labels else CLASSES)
        print(_summary(job, found, rows, rejects, names))
        with staging(target, _needed_bytes(finished)) as stage:
            _write(job, rows, finished, stage, names)
            (stage.folder / NAME).write_text(reject_table(rejects, codes), encoding="ascii")
            paths = stage.publish([stage.folder / NAME])
    shutil.rmtree(folder, ignore_errors=True)
    return paths[:-1]


def _found(job: ArchiveImport, finder: Finder, codes: Pseudonyms) -> Found:
    """What the source holds; the contact sheet of what was refused is written where it is asked for."""
    if job.quarantine is None:
        return finder(job)
    from data_prep.importers.quarantine import refuse_inside, write_quarantine

    refuse_inside(job.quarantine, job.out)
    found = finder(job)
    count = write_quarantine(job.quarantine, job.source, found.rejects, codes)
    print(f"{shown(job.quarantine)}: {count_of(count, 'image')} that may show text, for you only")
    return found


def _labelled(found: Found, labels: Labels | None) -> tuple[Found, list[Reject], list[Series]]:
    """The series that have labels, all rejects so far, and the series that have none."""
    taken, without, rejects = [], [], list(found.rejects)
    for series in found.series:
        if labels is None:
            known = set(range(len(series.frames))) if series.has_lesions else set()
        else:
            known = {row for row in range(len(series.frames)) if labels.of(series, row) is not None}
        lost = frozenset(range(len(series.frames))) - known
        why = NO_LESIONS if labels is None else NO_LABEL
        rejects += [Reject(series.frames[row].file, why) for row in sorted(lost)]
        if known:
            taken.append(series.without(lost) if lost else series)
        else:
            without.append(series)
    return replace(found, series=tuple(taken)), rejects, without


def _check_classes(job: ArchiveImport, labels: Labels | None, found: Found) -> None:
    """Classes that nobody has named are those of the table: they must not be its patients."""
    if job.labels and labels and job.classes is None:
        check_no_names(job.labels, labels, found.series)


def _nothing(job: ArchiveImport, rejects: Sequence[Reject]) -> str:
    lines = "".join(f"\n  - {line}" for line in reject_summary(rejects))
    return f"cannot import {shown(job.source)}: no image can be taken. Look at it with --dry-run:{lines}"


def _digest(job: ArchiveImport, found: Found, codes: Pseudonyms, *, times: bool = False) -> str:
    """Tell this import from others: the same files and options under the same secret, the same digest.

    Args:
        job: what to import.
        found: the series to take.
        codes: of the site.
        times: count when files were changed too, for what is kept of an import that was stopped.
    """
    files = {frame.file for series in found.series for frame in series.frames}
    files |= {file for series in found.series for file in series.marks}
    facts = [(file, (job.source / file).stat()) for file in sorted(files)]
    sizes = [f"{file}\0{fact.st_size}" + (f"\0{fact.st_mtime_ns}" if times else "") for file, fact in facts]
    tables = [path.read_text(errors="replace") for path in (job.labels, job.blank) if path]
    return codes.digest("\n".join([job.options, *tables, *sizes]))


def _converted(job: ArchiveImport, found: Found, codes: Pseudonyms, folder: Path) -> list[Finished]:
    tasks = [Task(codes.digest(series.key), series) for series in found.series]
    work = Convert(job.source, folder, job.recipe)
    images = sum(len(series.frames) for series in found.series)
    done = each(work, tasks, "series", "series", few=len(tasks) if images <= FEW_IMAGES else 1)
    return list(done)


def _late_rejects(series: Sequence[Series], finished: Sequence[Finished]) -> list[Reject]:
    return [
        Reject(one.frames[row].file, why)
        for one, done in zip(series, finished, strict=True)
        for row, why in done.rejects
    ]


def _rows(
    job: ArchiveImport, found: Found, finished: Sequence[Finished], codes: Pseudonyms, labels: Labels | None
) -> tuple[_Rows, list[Reject]]:
    """One of each set of equal images, in the order of codes, with its columns."""
    # By code: an order by name would tell in a shard whose name comes first.
    order = sorted(range(len(finished)), key=lambda number: finished[number].path.name)
    kind = next(((done.shape, done.dtype) for number in order if len((done := finished[number]).frames)), None)
    seen: set[bytes] = set()
    rejects: list[Reject] = []
    columns: list[tuple[int, int, int, int, str, str]] = []
    for number in order:
        series, done = found.series[number], finished[number]
        for place, row in enumerate(done.frames.tolist()):
            file = series.frames[row].file
            if (done.shape, done.dtype) != kind or done.hashes[place] in seen:
                rejects.append(Reject(file, DUPLICATE if (done.shape, done.dtype) == kind else OTHER_SHAPE))
                continue
            seen.add(done.hashes[place])
            given = labels.of(series, row) if labels else int(done.labels[place])
            slab = f"\0slab {row * job.slabs // len(series.frames)}" if job.slabs > 1 else ""
            who = codes.patient(series.patient + slab)
            columns.append((number, place, int(given or 0), int(done.early[place]), who, series.modality))
    numbers, places, given_labels, early, who_all, modality = zip(*columns, strict=True) if columns else ((),) * 6
    return _Rows(
        np.array(numbers, np.int64), np.array(places, np.int64), np.array(given_labels, np.int64),
        np.array(early, np.uint8), np.array(who_all, "S16"), np.array(modality, np.str_),
    ), rejects  # fmt: skip


def _needed_bytes(finished: Sequence[Finished]) -> int:
    return sum(done.path.stat().st_size + 256 * len(done.frames) for done in finished) + 2**20


def _write(job: ArchiveImport, rows: _Rows, finished: Sequence[Finished], stage: Staging, names: Sequence[str]) -> None:
    site_of, split = divide(rows.labels, rows.patients, job.plan)
    by_lesion = job.recipe.lesion is not None
    scale = (0.0, 255.0) if "u1" in finished[int(rows.series[0])].dtype else HOUNSFIELD_RANGE
    for number, file in enumerate(job.files):
        mine = np.flatnonzero(site_of == number)
        write_shard(
            stage.folder / file,
            site=Path(file).stem,
            classes=names,
            images=_blocks(rows, mine, finished),
            labels=rows.labels[mine],
            patient=rows.patients[mine],
            split=split[mine],
            modality=rows.modality[mine],
            stage=rows.early[mine] if by_lesion else None,
            pixel_range=scale,
            created_by=stage.target.stamp,
            deidentification=METHOD,
        )


def _blocks(rows: _Rows, mine: I64, finished: Sequence[Finished]) -> Iterator[Images]:
    """The images of some rows, one series in memory at a time."""
    numbers = rows.series[mine]
    for number in dict.fromkeys(numbers.tolist()):
        yield finished[number].images()[rows.place[mine[numbers == number]]]


def _notes(job: ArchiveImport, found: Found) -> tuple[str, ...]:
    """What a person should know of the files, and of what is made of them."""
    return (*found.notes, FACES) if job.recipe.depth else found.notes


def _summary(job: ArchiveImport, found: Found, rows: _Rows, rejects: Sequence[Reject], names: Sequence[str]) -> str:
    counts = np.bincount(rows.labels, minlength=len(names))
    per_class = ", ".join(f"{name} {count:,}" for name, count in zip(names, counts, strict=True))
    kinds = ", ".join(f"{name} {count:,}" for name, count in sorted(Counter(rows.modality.tolist()).items()))
    early = f", {int(rows.early.sum()):,} early" if job.recipe.lesion else ""
    lines = [
        f"found {count_of(found.files, 'file')}, {len(found.series):,} series to take",
        f"  taken {count_of(len(rows.labels), 'image')} of {count_of(len(np.unique(rows.patients)), 'patient')}: "
        f"{per_class}{early}; {kinds}",
        f"  left out {count_of(len(rejects), 'image')} or other file" + (":" if rejects else ""),
        *(f"    {line}" for line in reject_summary(rejects)),
        *(f"  note: {note}" for note in _notes(job, found)),
        f"  which files, as codes: {shown(job.out / NAME)}; --find CODE names one, here only",
    ]
    return "\n".join(lines)
