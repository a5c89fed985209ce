"""The images of a source with their classes and patients, checked before the first of them is decoded."""

import hashlib
import hmac
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_prep.discovery import (
    CLOSED_FOLDER,
    NO_CLASS,
    ImageFile,
    Tree,
    Walk,
    by_split,
    explore,
    image_suffixes,
    split_of,
)
from data_prep.image_job import ImageImport, refuse
from data_prep.inventory import LeftOut, reasons
from data_prep.names import shown
from data_prep.patients import Patients, by_regex, by_table, each_its_own, pseudonym
from data_prep.target import CREATED_BY
from fedhpc.util.arrays import I64
from fedhpc.util.text import first_names

LOG = logging.getLogger(__name__)

SAMPLE_BYTES = 4096


@dataclass(frozen=True)
class Cohort:
    """Images that are, or may be, imported, a row each (private)."""

    classes: tuple[str, ...]
    files: tuple[ImageFile, ...]
    patients: npt.NDArray[np.bytes_]

    @property
    def labels(self) -> I64:
        """Index into `classes` of each image."""
        number = {name: index for index, name in enumerate(self.classes)}
        return np.array([number[file.class_name] for file in self.files], np.int64)

    @property
    def splits(self) -> I64 | None:
        """As the source gives them; None where it gives none."""
        given = [file.split for file in self.files if file.split is not None]
        return np.array(given, np.int64) if given else None

    def rows(self, kept: Sequence[int]) -> "Cohort":
        """The same with some of the images only."""
        return replace(self, files=tuple(self.files[row] for row in kept), patients=self.patients[list(kept)])


def find_cohort(job: ImageImport) -> tuple[Cohort, list[LeftOut]]:
    """All image files with their patients, checked before anything is decoded, and everything else."""
    if not job.source.is_dir():
        refuse(job, [f"{shown(job.source)} is no folder; allowed: a folder of class folders"])
    tree = explore(Walk(job.source, job.folder, job.follow_links))
    problems = _split_problems(job, tree)
    refuse(job, problems)
    tree = by_split(tree) if job.split_folders else tree
    problems = _class_problems(job, tree)
    closed = [entry for entry in tree.left if entry.reason == CLOSED_FOLDER]
    problems += [] if job.skip_unreadable else reasons(closed)
    patients = _patients(job, tree)
    problems += patients.problems
    refuse(job, problems)
    ids = np.array([pseudonym(name, job.seed) for name in patients.names], "S16")
    classes = tuple(sorted({file.class_name for file in tree.images}, key=os.fsencode))
    cohort = Cohort(classes, tree.images, ids)
    refuse(job, _shared_patients(cohort, patients))
    return cohort, list(tree.left)


def _split_problems(job: ImageImport, tree: Tree) -> list[str]:
    holding = {file.path.parts[0] for file in tree.images}
    named = [name for name in tree.folders if split_of(name) is not None and name in holding]
    others = [name for name in tree.folders if name not in named and name in holding]
    if job.split_folders:
        wrong = (
            f"{first_names([shown(name) for name in others])} is not named after a split; with --split-folders allowed "
        )
        return [wrong + "in the top folder: train, val, test, or the like"] if others or not named else []
    inner = {file.path.parts[1] for file in tree.images if file.path.parts[0] in named and len(file.path.parts) > 2}
    # A class may be called test; two such folders, or one that holds the names of the others, are splits.
    if not inner or (others and len(named) < 2 and inner.isdisjoint(others)):
        return []
    what = ", ".join(shown(name) for name in named)
    return [
        f"{what}: are these splits or classes? They are named after splits and hold folders of their own. Give "
        "--split-folders to take the classes from inside them and the splits as they are, or the path of one of them "
        "as the source to divide it anew, or rename them if they are classes"
    ]


def _class_problems(job: ImageImport, tree: Tree) -> list[str]:
    holding = {file.path.parts[0] for file in tree.images}
    empty = [name for name in tree.folders if name not in holding]
    allowed = ", ".join(sorted(image_suffixes()))
    problems = [
        f"{shown(job.source / name)} has no image; allowed: {allowed}. Move it out of the source if it is no class"
        for name in empty
    ]
    classes = sorted({shown(file.class_name) for file in tree.images})
    problems += _similar_names(classes)
    if len(classes) >= 2:
        return problems
    inner = sorted({file.path.parts[1] for file in tree.images if len(file.path.parts) > 2})
    hint = f". {shown(job.source / tree.folders[0])} holds {first_names(inner)}: give that" if len(inner) > 1 else ""
    loose = sum(entry.reason == NO_CLASS for entry in tree.left)
    hint += f". {loose:,} images lie in no class folder" if loose else ""
    return [
        *problems,
        f"{len(classes)} class folders in {shown(job.source)}; allowed: at least two, each named after its class{hint}",
    ]


def _similar_names(classes: Sequence[str]) -> list[str]:
    """Class names that differ only in case or in spaces at their ends: one class, most likely."""
    alike: dict[str, list[str]] = {}
    for name in classes:
        alike.setdefault(name.strip().casefold(), []).append(name)
    return [
        f"classes {', '.join(map(repr, names))} differ only in case or spaces; allowed: one name a class. Merge or "
        "rename them"
        for names in alike.values()
        if len(names) > 1
    ]


def _patients(job: ImageImport, tree: Tree) -> Patients:
    files = [file.path for file in tree.images]
    if job.patient_csv:
        return by_table(job.patient_csv, files)
    if job.patient_regex:
        return by_regex(job.patient_regex, files)
    LOG.warning(
        "no patient ids for %s: each image counts as a patient of its own, so that splits may share patients and "
        "privacy holds per image only. Remedy: --patient-csv or --patient-regex",
        shown(job.source),
    )
    return each_its_own(files)


def _shared_patients(cohort: Cohort, patients: Patients) -> list[str]:
    """Patients in two split folders: their test images would not be new to the model."""
    if cohort.splits is None:
        return []
    splits: dict[str, set[int]] = {}
    for name, split in zip(patients.names, cohort.splits.tolist(), strict=True):
        splits.setdefault(name, set()).add(split)
    shared = sorted(shown(name) for name, found in splits.items() if len(found) > 1)
    if not shared:
        return []
    return [
        f"{len(shared)} patients lie in two split folders: {first_names(shared)}; allowed: each in one. Move their "
        "images, or give all images to the importer without splits"
    ]


def stamp(job: ImageImport, cohort: Cohort) -> str:
    """`created_by`: equal for equal options and files, whatever the output; the seed keys it and stays secret."""
    private = ("source", "out", "seed", "replace", "list_files", "patient_csv")
    options = {name: value for name, value in asdict(job).items() if name not in private}
    code = hmac.new(f"fedhpc {job.seed}".encode(), json.dumps(options, sort_keys=True).encode(), hashlib.sha256)
    code.update(cohort.patients.tobytes())
    for file in cohort.files:
        code.update(os.fsencode(file.path) + b"\0" + _sample(job.source / file.path))
    return f"{CREATED_BY}, import {code.hexdigest()[:16]}"


def _sample(path: Path) -> bytes:
    """Size and middle of a file: enough to notice that it was exchanged, without reading all of it twice."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size // 2 - SAMPLE_BYTES // 2))
            return str(size).encode() + file.read(SAMPLE_BYTES)
    except OSError:
        return b"unreadable"
