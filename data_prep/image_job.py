"""What `run.py prepare images` is asked for, and whether it can be done."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.names import shown
from data_prep.partition import VAL_SHARE, Partition
from fedhpc.errors import ShardError
from fedhpc.site.data.shard_format import MODALITIES

# As `fedhpc.config.schema.SiteName`.
SITE_NAME = r"[a-z0-9][a-z0-9_-]{0,30}"


@dataclass(frozen=True)
class ImageImport:
    """What to import and how.

    Attributes:
        source: a folder with one folder of images per class, nested as deep as you like.
        out: the folder for site1.h5, site2.h5, ...; with one site it may be a file that ends in .h5, whose stem is the
            site's name.
        sites, skew, seed, all_test, val_share, fold: see `data_prep.partition`. val_share=None is `VAL_SHARE`, or with
            split_folders no validation split but the source's own.
        reference: how many patients are set aside for good, in `reference.h5` and without their labels, as public
            images to fit `model.features` to; the same for the same seed, whatever the fold.
        size: pixels a side of the stored square.
        patient_csv: a table with the columns file (relative to source, or the bare name) and patient.
        patient_regex: searched in the file's name; its group `patient`, or else its first group, is the patient.
        modality: one of `fedhpc.site.data.shard.MODALITIES`, of all images.
        split_folders: the top folders are splits (Training, Testing, ...) and the classes lie in them.
        follow_links: walk into links to folders.
        repair_nan: replace NaN and infinite pixels instead of refusing the image.
        skip_unreadable: leave out images that cannot be read instead of refusing the import.
        replace: remove the shards of another import from the output folder.
        list_files: write what became of every file to a table beside the shards (private).
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
    val_share: float | None = None
    fold: tuple[int, int] | None = None
    reference: int = 0
    split_folders: bool = False
    follow_links: bool = False
    repair_nan: bool = False
    skip_unreadable: bool = False
    replace: bool = False
    list_files: bool = False

    @property
    def folder(self) -> Path:
        """Where the files go."""
        return self.out.parent if self.one_file else self.out

    @property
    def one_file(self) -> bool:
        """Whether `out` is the shard itself."""
        return self.out.suffix == ".h5"

    @property
    def file_names(self) -> tuple[str, ...]:
        """The sites' shards in order, then the reference."""
        if self.one_file:
            return (self.out.name,)
        sites = [f"site{number}.h5" for number in range(1, self.sites + 1)]
        return tuple(sites + ["reference.h5"] * (self.reference > 0))

    @property
    def table_name(self) -> str:
        """Where `list_files` writes."""
        return f"{self.out.stem}.files.csv" if self.one_file else "files.csv"

    @property
    def plan(self) -> Partition:
        """How patients are divided."""
        default = 0.0 if self.split_folders else VAL_SHARE
        share = default if self.val_share is None else self.val_share
        return Partition(self.sites, self.skew, self.seed, self.all_test, share, self.fold)


def refuse(job: ImageImport, problems: Sequence[str]) -> None:
    """Raise a ShardError that lists `problems`, if there are any."""
    if problems:
        raise ShardError(
            f"cannot import {shown(job.source)}:" + "".join(f"\n  - {problem}" for problem in problems), code="prepare"
        )


def option_problems(job: ImageImport) -> list[str]:
    """Return what is wrong with the options of `job`."""
    rules = (
        (job.sites >= 1, f"sites={job.sites}; allowed: 1 or more"),
        (8 <= job.size <= 4096, f"size={job.size}; allowed: 8 to 4096 pixels"),
        (job.skew is None or job.skew > 0, f"skew={job.skew}; allowed: above 0, or none at all"),
        (job.modality in MODALITIES, f"modality={job.modality!r}; allowed: {', '.join(MODALITIES)}"),
        (
            job.sites == 1 or not job.one_file,
            f"out={shown(job.out)} is one file; allowed for {job.sites} sites: a folder",
        ),
        (
            job.all_test or not job.one_file or re.fullmatch(SITE_NAME, job.out.stem) is not None,
            f"out={shown(job.out)}: no config can name the site {shown(job.out.stem)!r}; allowed: lower-case letters, "
            "digits, _ and -",
        ),
        (job.val_share is None or 0 < job.val_share < 1, f"val_share={job.val_share}; allowed: between 0 and 1"),
        (job.fold is None or 1 <= job.fold[0] <= job.fold[1] >= 2, f"fold={job.fold}; allowed: 1/5 to 5/5, or alike"),
        (not (job.fold and job.all_test), "fold and all_test; allowed: one of them"),
        (
            not (job.split_folders and (job.fold or job.all_test)),
            "split_folders with fold or all_test; allowed: one of them, since each says what is tested",
        ),
        (job.reference >= 0, f"reference={job.reference}; allowed: 0 or more patients"),
        (
            not job.reference or not job.one_file,
            f"out={shown(job.out)} is one file, reference={job.reference} needs another beside it; allowed: a folder",
        ),
        (not (job.patient_csv and job.patient_regex), "patient_csv and patient_regex; allowed: one of them"),
    )
    return [text for fine, text in rules if not fine]
