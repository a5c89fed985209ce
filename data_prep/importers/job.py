"""What an importer of archives is asked for, and whether it can be done."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.image_job import SITE_NAME
from data_prep.importers.intensity import windows
from data_prep.importers.lesions import CLASSES, LesionRule
from data_prep.importers.recipe import Recipe
from data_prep.importers.volume import LEAST_MM, MOST_MM
from data_prep.names import is_class_name, shown
from data_prep.partition import VAL_SHARE, Partition
from fedhpc.errors import ShardError
from fedhpc.site.data.shard_format import MODALITIES

MOST_BLOCK = 2**24
"""Voxels of a 3-D patch: 256 a side."""


@dataclass(frozen=True)
class ArchiveImport:
    """What to import and how.

    Attributes:
        source: the folder of the archive's files.
        out: the folder of the shards.
        secret: the file of the site's secret.
        recipe: how a series becomes examples.
        site: the name of the one hospital whose archive this is; None: divide among `sites`, for studies.
        sites, skew, seed, all_test, val_share: see `data_prep.partition`.
        labels: a table of labels; None: by contours or masks.
        classes: names of the classes in order; None: those of the table, sorted.
        modality: to take; empty: all.
        plane: to take; None: all.
        description: a regular expression that the series' description must match; None: any.
        min_slices: fewer make no volume.
        blank: one more table of device rules.
        ocr: leave out images in which an OCR program finds text.
        quarantine: where to write a contact sheet of the images that may show who the patient is; None: nowhere.
        patient_regex: for files that tell no patient: searched in the path; its first group is the patient.
        follow_links: read files outside of the source that links name.
        only: the files below the source to look at; None: all.
        anonymous: take files without PatientID as those of one patient: for predictions, which count nobody.
        mask_suffix: of the name of a mask beside its volume, for formats without references.
        image_suffix: of the name of a volume that a mask's has in its place.
        format_modality: of formats that do not tell theirs.
        slabs: pieces that each volume is cut into, each as a patient of its own: to try things out on few volumes only.
        replace: remove the shards of another import from the folder.
    """

    source: Path
    out: Path
    secret: Path
    recipe: Recipe = field(default_factory=Recipe)
    site: str | None = None
    sites: int = 4
    skew: float | None = None
    seed: int = 0
    all_test: bool = False
    val_share: float = VAL_SHARE
    labels: Path | None = None
    classes: tuple[str, ...] | None = None
    modality: tuple[str, ...] = ()
    plane: str | None = None
    description: str | None = None
    min_slices: int = 1
    blank: Path | None = None
    ocr: bool = False
    quarantine: Path | None = None
    patient_regex: str | None = None
    follow_links: bool = False
    only: tuple[str, ...] | None = None
    anonymous: bool = False
    mask_suffix: str = "_mask"
    image_suffix: str = ""
    format_modality: str = "OT"
    slabs: int = 1
    replace: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Of the hospitals, in order."""
        return (self.site,) if self.site else tuple(f"site{number}" for number in range(1, self.sites + 1))

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the shards, in order."""
        return tuple(f"{name}.h5" for name in self.names)

    @property
    def plan(self) -> Partition:
        """How patients are divided."""
        return Partition(len(self.names), self.skew, self.seed, self.all_test, self.val_share)

    @property
    def options(self) -> str:
        """All that changes what is in the shards, beside the files themselves; for keyed digests only."""
        hidden = ("source", "out", "secret", "replace", "labels", "blank", "quarantine", "only", "anonymous")
        return json.dumps([repr(value) for name, value in sorted(vars(self).items()) if name not in hidden])


def checked(job: ArchiveImport) -> ArchiveImport:
    """Return `job`.

    Raises:
        ShardError: with every wrong option.
    """
    recipe = job.recipe
    rules = (
        (job.site is None or re.fullmatch(SITE_NAME, job.site), f"site={job.site!r}; allowed: a-z, 0-9, _ and -"),
        (job.sites >= 1, f"sites={job.sites}; allowed: 1 or more"),
        (8 <= recipe.square.size <= 4096, f"size={recipe.square.size}; allowed: 8 to 4096 pixels"),
        (recipe.square.pixel_mm is None or recipe.square.pixel_mm > 0, "pixel_mm; allowed: above 0"),
        (recipe.stack % 2 == 1 and 1 <= recipe.stack <= 63, f"stack={recipe.stack}; allowed: odd, 1 to 63 slices"),
        (job.skew is None or job.skew > 0, f"skew={job.skew}; allowed: above 0, or none at all"),
        (0 < job.val_share < 1, f"val_share={job.val_share}; allowed: between 0 and 1"),
        (
            job.format_modality in MODALITIES,
            f"modality={job.format_modality!r}; allowed: {', '.join(MODALITIES)}",
        ),
        (job.slabs >= 1, f"slabs={job.slabs}; allowed: 1 or more"),
        (
            (job.labels is None) != (recipe.lesion is None),
            "labels and lesion; allowed: one of them: --labels TABLE, or --lesion slice|patch",
        ),
        (
            job.classes is None or len(set(job.classes)) == len(job.classes) >= 2,
            "classes; allowed: two or more different names",
        ),
        (all(map(is_class_name, job.classes or ())), "classes; allowed: printable names of up to 100 letters"),
        (recipe.every_mm >= 0, f"every_mm={recipe.every_mm}; allowed: 0 or more"),
        (recipe.max_slices is None or recipe.max_slices >= 1, f"max_slices={recipe.max_slices}; allowed: 1 or more"),
        (job.min_slices >= 1, f"min_slices={job.min_slices}; allowed: 1 or more"),
        *_of_lesions(recipe.lesion),
        (recipe.lesion is None or job.classes is None or len(job.classes) == len(CLASSES), "classes; allowed: two"),
        (recipe.stack == 1 or recipe.lesion is None or recipe.lesion.patch_mm is None, "stack of patches; allowed: 1"),
        *_of_depth(recipe),
        *((_is_regex(value), f"{name}; allowed: a regular expression") for name, value in _patterns(job)),
    )
    windows(recipe.window)
    problems = [text for fine, text in rules if not fine]
    if problems:
        lines = "".join(f"\n  - {problem}" for problem in problems)
        raise ShardError(f"cannot import {shown(job.source)}:{lines}", code="prepare")
    return job


def _of_lesions(rule: LesionRule | None) -> list[tuple[bool, str]]:
    if rule is None:
        return []
    return [
        (rule.patch_mm is None or 0 < rule.patch_mm <= MOST_MM, f"patch_mm={rule.patch_mm}; allowed: up to 1000"),
        (rule.least_mm2 >= 0, f"least_mm2={rule.least_mm2}; allowed: 0 or more"),
        (rule.early_mm >= 0, f"early_mm={rule.early_mm}; allowed: 0 or more"),
        (rule.negatives is None or rule.negatives >= 0, f"negatives={rule.negatives}; allowed: 0 or more"),
    ]


def _of_depth(recipe: Recipe) -> list[tuple[bool, str]]:
    depth = recipe.depth
    if depth is None:
        return []
    voxels = depth.planes * recipe.square.size**2
    return [
        (2 <= depth.planes <= 512, f"depth={depth.planes}; allowed: 2 to 512 planes"),
        (voxels <= MOST_BLOCK, f"depth x size x size={voxels:,}; allowed: up to {MOST_BLOCK:,} voxels"),
        (
            depth.slice_mm is None or LEAST_MM <= depth.slice_mm <= MOST_MM,
            f"slice_mm={depth.slice_mm}; allowed: above 0, up to 1000",
        ),
        (
            (recipe.square.pixel_mm or 1.0) >= LEAST_MM,
            f"pixel_mm={recipe.square.pixel_mm}; allowed: {LEAST_MM:g} or more",
        ),
        (recipe.stack == 1, f"stack={recipe.stack} with depth; allowed: 1"),
        (recipe.every_mm == 0, f"every_mm={recipe.every_mm} with depth; allowed: 0"),
    ]


def _patterns(job: ArchiveImport) -> list[tuple[str, str]]:
    rois = job.recipe.lesion.rois if job.recipe.lesion else None
    given = (("description", job.description), ("patient_regex", job.patient_regex), ("roi", rois))
    return [(name, value) for name, value in given if value is not None]


def _is_regex(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True
