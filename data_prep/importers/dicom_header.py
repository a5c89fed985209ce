"""The header of one DICOM file: what is needed to sort it into a series, and nothing else (private).

Free text is looked at for signs of burned-in text only. Nothing of a header is ever quoted in a reason.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from data_prep.importers.screening import Verdict, screened

SINGLE = {
    "1.2.840.10008.5.1.4.1.1.1": "CR",
    "1.2.840.10008.5.1.4.1.1.1.1": "DX",
    "1.2.840.10008.5.1.4.1.1.1.2": "MG",
}
SLICES = {"1.2.840.10008.5.1.4.1.1.2": "CT", "1.2.840.10008.5.1.4.1.1.4": "MR"}
ENHANCED = {
    "1.2.840.10008.5.1.4.1.1.2.1": "CT",
    "1.2.840.10008.5.1.4.1.1.2.2": "CT",
    "1.2.840.10008.5.1.4.1.1.4.1": "MR",
    "1.2.840.10008.5.1.4.1.1.4.4": "MR",
}
"""Enhanced and legacy converted enhanced: several frames a file."""
RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
IMAGES = SINGLE | SLICES | ENHANCED
DIRECTORY = "1.2.840.10008.1.3.10"

KEYWORDS = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "PatientID", "IssuerOfPatientID",
    "Modality", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "ImageType", "ImagePositionPatient",
    "ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing", "SliceThickness", "InstanceNumber",
    "AcquisitionNumber", "TemporalPositionIdentifier", "DiffusionBValue", "TriggerTime", "EchoTime", "RepetitionTime",
    "ScanningSequence", "KVP", "BurnedInAnnotation", "ConversionType", "SeriesDescription", "ProtocolName",
    "PresentationIntentType", "Manufacturer", "ManufacturerModelName",
    "ReferencedSeriesSequence", "ReferencedFrameOfReferenceSequence", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)  # fmt: skip
# Positions of one series may repeat in these only: echoes, phases, directions, acquisitions.
DIMENSIONS = ("EchoTime", "AcquisitionNumber", "TemporalPositionIdentifier", "DiffusionBValue", "TriggerTime")

NOT_DICOM = "no DICOM file"
UNREADABLE = "a DICOM file that cannot be read"
AN_INDEX = "a DICOMDIR: an index, not an image"
NO_IMAGE = "holds no image"
OTHER_KIND = "an image of a kind that is not imported (only CT, MR, CR, DX and MG are)"
NO_IDENTITY = "without a patient, study, series or instance of its own"
PROCESSING = "a raw detector image (for processing, not for presentation)"

Numbers = tuple[float, ...]


@dataclass(frozen=True)
class Geometry:
    """Where one frame lies in the patient, as its header tells it."""

    position: Numbers | None
    orientation: Numbers | None
    spacing: Numbers | None
    frame: int = 0
    dimension: tuple[str, ...] = ()


@dataclass(frozen=True)
class Header:
    """Of one file that holds images, contours or segments (private).

    Attributes:
        file: path below the source.
        sop_class, instance, study, series, patient: as in the file.
        modality: by the SOP class; empty for contours and segments.
        rows, columns: pixels.
        frames: geometry of each.
        number: InstanceNumber, for the order of single images.
        image_type: the third value and those behind it, which tell water from fat and magnitude from phase.
        protocol: coded and numeric parameters of the scan.
        refers_to: UIDs of series that contours or segments belong to.
        description: of the series, for `--description` only (free text, never written).
        blank: rectangles to blank by a device rule: left, top, width, height.
    """

    file: str
    sop_class: str
    instance: str
    study: str
    series: str
    patient: str
    modality: str = ""
    rows: int = 0
    columns: int = 0
    frames: tuple[Geometry, ...] = ()
    number: int = 0
    image_type: tuple[str, ...] = ()
    protocol: str = ""
    refers_to: tuple[str, ...] = ()
    description: str = ""
    blank: tuple[tuple[int, int, int, int], ...] = ()


@dataclass(frozen=True)
class Refused:
    """A file that holds nothing to import: `why` is one of a fixed set of texts."""

    file: str
    why: str
    suspected: bool = False


@contextmanager
def quiet() -> Iterator[None]:
    """Keep pydicom's warnings and log lines to itself: they quote values of the file."""
    log = logging.getLogger("pydicom")
    before = log.disabled
    log.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled = before


def read_header(root: Path, file: str, blank: Path | None = None) -> Header | Refused:
    """Return the header of `root / file`, or why it holds nothing to import; whatever the file does.

    Args:
        root: the source.
        file: path below it.
        blank: a table of device rules beside the built-in one.
    """
    try:
        with quiet():
            dataset = _read(root / file)
            return Refused(file, NOT_DICOM) if dataset is None else _header(file, dataset, blank)
    except MemoryError:
        raise
    except Exception:  # pydicom raises whatever it likes, and quotes the file
        return Refused(file, UNREADABLE)


def _read(path: Path) -> Dataset | None:
    keywords = list(KEYWORDS)
    try:
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=keywords)
    except InvalidDicomError:
        if not _bare(path):
            return None
    found = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=keywords, force=True)
    return found if "SOPClassUID" in found else None


def _bare(path: Path) -> bool:
    """Whether a file begins with a group that a dataset without preamble begins with, in either byte order."""
    with path.open("rb") as file:
        head = file.read(4)
    return len(head) == 4 and head[:2] in (b"\x02\x00", b"\x08\x00", b"\x00\x08")


def _header(file: str, dataset: Dataset, blank: Path | None) -> Header | Refused:
    sop_class = _text(dataset, "SOPClassUID")
    if _text(getattr(dataset, "file_meta", Dataset()), "MediaStorageSOPClassUID") == DIRECTORY:
        return Refused(file, AN_INDEX)
    instance, study, series = (_text(dataset, f"{one}InstanceUID") for one in ("SOP", "Study", "Series"))
    patient = "\0".join(filter(None, (_text(dataset, "PatientID"), _text(dataset, "IssuerOfPatientID"))))
    known = Header(file, sop_class, instance, study, series, patient or f"study {study}")
    if sop_class in (RTSTRUCT, SEGMENTATION):
        return replace(known, refers_to=tuple(sorted(_referenced(dataset))))
    verdict = screened(dataset, sop_class, blank)
    if verdict.why:
        return Refused(file, verdict.why, verdict.suspected)
    if "Rows" not in dataset:
        return Refused(file, NO_IMAGE)
    if sop_class not in IMAGES:
        return Refused(file, OTHER_KIND)
    if not (instance and study and series):
        return Refused(file, NO_IDENTITY)
    if _text(dataset, "PresentationIntentType") == "FOR PROCESSING":
        return Refused(file, PROCESSING)
    return _image(known, dataset, verdict)


def _image(known: Header, dataset: Dataset, verdict: Verdict) -> Header:
    modality = IMAGES[known.sop_class]
    frames = int(dataset.get("NumberOfFrames") or 1)
    geometry = _enhanced(dataset, frames) if known.sop_class in ENHANCED else (_geometry(dataset, modality),) * frames
    kind = dataset.get("ImageType")
    return replace(
        known,
        modality=modality,
        rows=int(dataset.Rows),
        columns=int(dataset.Columns),
        frames=geometry,
        number=int(dataset.get("InstanceNumber") or 0),
        image_type=tuple(map(str, kind))[2:] if kind is not None and not isinstance(kind, str) else (),
        protocol=_protocol(dataset, modality),
        description=_text(dataset, "SeriesDescription"),
        blank=verdict.blank,
    )


def _geometry(dataset: Dataset, modality: str) -> Geometry:
    if modality in SINGLE.values():
        spacing = _numbers(dataset, "PixelSpacing") or _numbers(dataset, "ImagerPixelSpacing")
        return Geometry(None, None, spacing)
    return Geometry(
        _numbers(dataset, "ImagePositionPatient"),
        _numbers(dataset, "ImageOrientationPatient"),
        _numbers(dataset, "PixelSpacing"),
        dimension=tuple(_text(dataset, key) for key in DIMENSIONS),
    )


def _enhanced(dataset: Dataset, frames: int) -> tuple[Geometry, ...]:
    """Geometry of each frame: its own functional groups, else the shared ones (PS3.3 C.7.6.16)."""
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    own = list(dataset.get("PerFrameFunctionalGroupsSequence") or [])
    own += [Dataset()] * (frames - len(own))
    return tuple(_group_geometry(groups, shared, number) for number, groups in enumerate(own[:frames]))


def _group_geometry(groups: Dataset, shared: Dataset, number: int) -> Geometry:
    def value(sequence: str, key: str) -> Numbers | None:
        items = groups.get(sequence) or shared.get(sequence)
        return _numbers(items[0], key) if items else None

    echo = value("MREchoSequence", "EffectiveEchoTime")
    diffusion = value("MRDiffusionSequence", "DiffusionBValue")
    content = groups.get("FrameContentSequence")
    phase = _text(content[0], "TemporalPositionIndex") if content else ""
    return Geometry(
        value("PlanePositionSequence", "ImagePositionPatient"),
        value("PlaneOrientationSequence", "ImageOrientationPatient"),
        value("PixelMeasuresSequence", "PixelSpacing"),
        number,
        (str(echo or ""), "", phase, str(diffusion or ""), ""),
    )


def _referenced(dataset: Dataset) -> Iterator[str]:
    for item in dataset.get("ReferencedSeriesSequence") or []:
        yield _text(item, "SeriesInstanceUID")
    for frame in dataset.get("ReferencedFrameOfReferenceSequence") or []:
        for study in frame.get("RTReferencedStudySequence") or []:
            for series in study.get("RTReferencedSeriesSequence") or []:
                yield _text(series, "SeriesInstanceUID")


def _protocol(dataset: Dataset, modality: str) -> str:
    """Numbers and code words of a fixed set only: a protocol's name may hold a patient's."""
    if modality == "MR":
        kinds = dataset.get("ScanningSequence")
        words = [kinds] if isinstance(kinds, str) else list(kinds or [])
        parts = [word for word in words if word in ("SE", "IR", "GR", "EP", "RM")]
        parts += [f"{name} {_number(dataset, key)}" for name, key in (("TR", "RepetitionTime"), ("TE", "EchoTime"))]
    else:
        parts = [f"{_number(dataset, 'KVP')} kV"]
    return " ".join(part for part in parts if "?" not in part)


def _number(dataset: Dataset, key: str) -> str:
    found = _numbers(dataset, key)
    return f"{found[0]:g}" if found else "?"


def _numbers(dataset: Dataset, key: str) -> Numbers | None:
    value: Any = dataset.get(key)
    if value is None or value == "":
        return None
    try:
        return tuple(float(one) for one in value) if hasattr(value, "__iter__") else (float(value),)
    except (TypeError, ValueError):
        return None


def _text(dataset: Dataset, key: str) -> str:
    value = dataset.get(key)
    return "" if value is None else str(value).strip("\0 ")
