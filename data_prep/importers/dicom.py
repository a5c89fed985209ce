"""A tree of DICOM files to the series that can be taken: `run.py prepare dicom DIR`."""

import re
from collections.abc import Sequence
from pathlib import Path

from data_prep.importers.dicom_classes import RTSTRUCT, SEGMENTATION
from data_prep.importers.dicom_header import Header, Refused, read_header
from data_prep.importers.dicom_patients import NOBODY, identified
from data_prep.importers.dicom_series import DicomSeries, series_of, unique
from data_prep.importers.job import ArchiveImport
from data_prep.importers.libraries import require
from data_prep.importers.ocr import require_ocr, without_text
from data_prep.importers.parallel import each
from data_prep.importers.screening import blanking_rules
from data_prep.importers.tree import files_below
from data_prep.importers.volume import Found, Reject, Series

NOT_WANTED = "not asked for by --modality, --plane or --description"
TOO_FEW = "of a series with fewer slices than --min-slices"
CONTOURS_UNUSED = "contours or segments of no series that is taken"


def find(job: ArchiveImport) -> Found:
    """Return all series below `job.source`, and every file that belongs to none, with the reason.

    Raises:
        ShardError: the folder or the table of device rules cannot be read, a library is missing.
    """
    require("pydicom", "pylibjpeg")
    if job.ocr:
        require_ocr()
    if job.blank is not None:
        blanking_rules(job.blank)
    files = files_below(job.source) if job.only is None else list(job.only)
    headers: list[Header] = []
    rejects: list[Reject] = []
    for found in each(_Scan(job.source, job.blank, job.follow_links), files, "headers", "file"):
        if isinstance(found, Refused):
            rejects.append(Reject(found.file, found.why, found.suspected))
        else:
            headers.append(found)
    kept, doubles = unique(headers)
    kept, nobody, notes = identified(kept, job.patient_regex, NOBODY if job.anonymous else "")
    stacks, lost = series_of(kept, job.recipe.lesion.rois if job.recipe.lesion else None)
    texts = {header.series: header.description for header in kept}
    taken, left = _chosen(job, stacks, texts)
    if job.ocr:
        taken, text = without_text(job.source, taken)
        left += text
    used = {file for series in taken for file in series.contours}
    marks = [header.file for header in kept if header.sop_class in (RTSTRUCT, SEGMENTATION)]
    rejects += [*doubles, *nobody, *lost, *left, *(Reject(file, CONTOURS_UNUSED) for file in marks if file not in used)]
    return Found(tuple(taken), tuple(rejects), len(files), notes)


class _Scan:
    """Reads the header of one file below a source; it goes to other processes."""

    def __init__(self, root: Path, blank: Path | None, follow_links: bool) -> None:
        self._root, self._blank, self._follow_links = root, blank, follow_links

    def __call__(self, file: str) -> Header | Refused:
        return read_header(self._root, file, self._blank, self._follow_links)


def _chosen(
    job: ArchiveImport, stacks: Sequence[DicomSeries], texts: dict[str, str]
) -> tuple[list[DicomSeries], list[Reject]]:
    taken: list[DicomSeries] = []
    left: list[Reject] = []
    for series in stacks:
        why = _refusal(job, series, texts.get(series.series, ""))
        if why:
            left += [Reject(frame.file, why) for frame in series.frames]
        else:
            taken.append(series)
    return taken, left


def _refusal(job: ArchiveImport, series: Series, description: str) -> str:
    wrong_kind = bool(job.modality) and series.modality not in job.modality
    wrong_plane = bool(job.plane) and series.facts.plane != job.plane
    wrong_text = job.description is not None and not re.search(job.description, description, re.I)
    if wrong_kind or wrong_plane or wrong_text:
        return NOT_WANTED
    is_short = series.modality in ("CT", "MR") and len(series.frames) < job.min_slices
    return TOO_FEW if is_short else ""
