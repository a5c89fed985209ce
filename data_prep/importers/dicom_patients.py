"""Whose DICOM files they are (private): the patient is the unit of privacy, so what may be one person counts as one.

- PatientID counts without regard to case, blanks and the width of letters. IssuerOfPatientID is not looked at: within
  the archive of one hospital the same number under two issuers is most often one person, registered twice.
- A study is of one patient (PS3.3, A.1.2). So different PatientIDs of one StudyInstanceUID are one patient, as after a
  correction of a wrong id.
- Without PatientID a file is of the patient in its path (`--patient-regex`), else of the patient of its study, else
  nobody's, and left out.

Two people whom this counts as one lose nothing but weight; one person whom it counted as two would lose privacy.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from data_prep.importers.dicom_classes import RTSTRUCT, SEGMENTATION
from data_prep.importers.dicom_header import Header
from data_prep.importers.volume import Reject
from data_prep.names import patient_key
from fedhpc.util.text import count_of

NO_PATIENT = "without PatientID, so whose it is is unknown (--patient-regex finds the patient in the path)"


NOBODY = "nobody"


def identified(
    headers: Sequence[Header], regex: str | None, unknown: str = ""
) -> tuple[list[Header], list[Reject], tuple[str, ...]]:
    """Return the headers with the key of their patient, the images of nobody as rejects, and notes for the screen.

    Args:
        headers: of all files.
        regex: searched in the path of a file without PatientID; None: nothing is.
        unknown: the patient of files of nobody; empty: they are rejects.
    """
    own = [header.patient or _in_path(header.file, regex) for header in headers]
    same = _Same()
    by_study: dict[str, list[str]] = defaultdict(list)
    for header, patient in zip(headers, own, strict=True):
        if patient and header.study:
            by_study[header.study].append(patient)
    for patients in by_study.values():
        for patient in patients[1:]:
            same.join(patients[0], patient)
    kept, rejects = [], []
    for header, patient in zip(headers, own, strict=True):
        known = patient or next(iter(by_study.get(header.study, ())), unknown)
        if known or header.sop_class in (RTSTRUCT, SEGMENTATION):
            kept.append(replace(header, patient=same.first(known)))
        else:
            rejects.append(Reject(header.file, NO_PATIENT))
    return kept, rejects, _notes(same, set(filter(None, own)))


def _in_path(file: str, regex: str | None) -> str:
    found = re.search(regex, file) if regex else None
    return patient_key((found[1] if found.re.groups else found[0]) or "") if found else ""


def _notes(same: "_Same", patients: set[str]) -> tuple[str, ...]:
    joined = len(patients) - len({same.first(patient) for patient in patients})
    if not joined:
        return ()
    return (f"{count_of(joined, 'PatientID')} in a study of another one: counted as the same patient",)


class _Same:
    """Sets of ids that are one patient, each known by its first in order."""

    def __init__(self) -> None:
        self._before: dict[str, str] = {}

    def first(self, patient: str) -> str:
        """Return the id that stands for all of one patient."""
        while patient in self._before:
            patient = self._before[patient]
        return patient

    def join(self, one: str, other: str) -> None:
        """Make two ids one patient."""
        ends = sorted({self.first(one), self.first(other)})
        if len(ends) == 2:
            self._before[ends[1]] = ends[0]
