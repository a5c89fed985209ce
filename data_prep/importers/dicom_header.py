"""The header of one DICOM file: what is needed to sort it into a series, and nothing else (private).

Free text is looked at for signs of burned-in text only. Nothing of a header is ever quoted in a reason.
"""

import logging
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from data_prep.importers.dicom_classes import IMAGES, RTSTRUCT, SEGMENTATION
from data_prep.importers.dicom_geometry import Geometry, geometry_of
from data_prep.importers.dicom_plain import PlainPixels, plain_pixels
from data_prep.importers.fields import Fields, meta_text, tag_of
from data_prep.importers.screening import Verdict, screened
from data_prep.importers.tree import refusal
from data_prep.importers.volume import MOST_FRAMES, MOST_PIXELS, MOST_VOXELS, is_plausible
from data_prep.names import patient_key

DIRECTORY = "1.2.840.10008.1.3.10"
KEYWORDS = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "PatientID", "Modality",
    "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "ImageType", "ImagePositionPatient",
    "ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing", "SliceThickness", "InstanceNumber",
    "AcquisitionNumber", "TemporalPositionIdentifier", "DiffusionBValue", "TriggerTime", "EchoTime", "RepetitionTime",
    "ScanningSequence", "KVP", "BurnedInAnnotation", "ConversionType", "SeriesDescription", "ProtocolName",
    "PresentationIntentType", "Manufacturer", "ManufacturerModelName",
    "BitsAllocated", "BitsStored", "PixelRepresentation", "PhotometricInterpretation", "RescaleSlope",
    "RescaleIntercept", "ModalityLUTSequence", "PixelPaddingValue", "PixelPaddingRangeLimit",
    "ReferencedSeriesSequence", "ReferencedFrameOfReferenceSequence", "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)  # fmt: skip
TAGS = tuple(tag_of(keyword) for keyword in KEYWORDS)

NOT_DICOM = "no DICOM file"
UNREADABLE = "a DICOM file that cannot be read"
AN_INDEX = "a DICOMDIR: an index, not an image"
NO_IMAGE = "holds no image"
OTHER_KIND = "an image of a kind that is not imported (only CT, MR, CR, DX and MG are)"
NO_IDENTITY = "without a patient, study, series or instance of its own"
PROCESSING = "a raw detector image (for processing, not for presentation)"
TOO_LARGE = (
    f"claims no frame, more than {MOST_FRAMES:,}, more than {MOST_PIXELS:,} pixels a frame, or {MOST_VOXELS:,} in all"
)

DEFLATED = b"1.2.840.10008.1.2.1.99"
"""The transfer syntax of a dataset that is compressed as a whole."""
META_BYTES, MOST_INFLATED_BYTES = 1024, 2**29
"""Of the beginning of a file, which names its transfer syntax; of what a compressed dataset may become in memory."""


@dataclass(frozen=True, slots=True)
class Header:
    """Of one file that holds images, contours or segments (private).

    Attributes:
        file: path below the source.
        sop_class, instance, study, series: as in the file.
        patient: the key of its PatientID; empty where there is none.
        modality: by the SOP class; empty for contours and segments.
        rows, columns: pixels.
        frames: geometry of each.
        number: InstanceNumber, for the order of single images.
        image_type: the third value and those behind it, which tell water from fat and magnitude from phase.
        protocol: coded and numeric parameters of the scan.
        refers_to: UIDs of series that contours or segments belong to.
        description: of the series, for `--description` only (free text, never written).
        blank: rectangles to blank by a device rule: left, top, width, height.
        plain: where the pixels lie; None: pydicom has to decode them.
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
    plain: PlainPixels | None = None


@dataclass(frozen=True, slots=True)
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


def read_header(root: Path, file: str, blank: Path | None = None, follow_links: bool = False) -> Header | Refused:
    """Return the header of `root / file`, or why it holds nothing to import; whatever the file does.

    Args:
        root: the source.
        file: path below it.
        blank: a table of device rules beside the built-in one.
        follow_links: read files outside of the source that links name.
    """
    try:
        if why := refusal(root, file, follow_links):
            return Refused(file, why)
        with quiet(), (root / file).open("rb") as stream:
            _check_inflated(stream)
            dataset = _read(stream)
            if dataset is None:
                return Refused(file, NOT_DICOM)
            found = _header(file, dataset, blank)
            if isinstance(found, Header) and found.modality:
                return replace(found, plain=plain_pixels(stream, dataset))
            return found
    except MemoryError:
        raise
    except Exception:  # pydicom raises whatever it likes, and quotes the file
        return Refused(file, UNREADABLE)


def _read(stream: BinaryIO) -> Dataset | None:
    tags = list(TAGS)
    try:
        return pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=tags)
    except InvalidDicomError:
        if not _bare(stream):
            return None
    found = pydicom.dcmread(stream, stop_before_pixels=True, specific_tags=tags, force=True)
    return found if "SOPClassUID" in found else None


def _check_inflated(stream: BinaryIO) -> None:
    """Raise ValueError of a compressed dataset that would take more memory than any image has; rewind the stream."""
    head = stream.read(META_BYTES)
    if DEFLATED in head:
        # The length of the file's own header is its first element's value (PS3.10, table 7.1-1).
        stream.seek(144 + int.from_bytes(head[140:144], "little"))
        inflating = zlib.decompressobj(-zlib.MAX_WBITS)
        inflating.decompress(stream.read(), MOST_INFLATED_BYTES)
        if inflating.unconsumed_tail:
            raise ValueError
    stream.seek(0)


def _bare(stream: BinaryIO) -> bool:
    """Whether a file begins with a group that a dataset without preamble begins with, in either byte order."""
    stream.seek(0)
    head = stream.read(4)
    stream.seek(0)
    return len(head) == 4 and head[:2] in (b"\x02\x00", b"\x08\x00", b"\x00\x08")


def _header(file: str, dataset: Dataset, blank: Path | None) -> Header | Refused:
    fields = Fields(dataset)
    sop_class = fields.text("SOPClassUID")
    if meta_text(dataset, "MediaStorageSOPClassUID") == DIRECTORY:
        return Refused(file, AN_INDEX)
    instance, study, series = (fields.text(f"{one}InstanceUID") for one in ("SOP", "Study", "Series"))
    known = Header(file, sop_class, instance, study, series, patient_key(fields.text("PatientID")))
    if not is_plausible(fields.whole("NumberOfFrames", 1), fields.whole("Rows", 0), fields.whole("Columns", 0)):
        return Refused(file, TOO_LARGE)
    if sop_class in (RTSTRUCT, SEGMENTATION):
        return replace(known, refers_to=tuple(sorted(_referenced(dataset))))
    verdict = screened(fields, sop_class, blank)
    if verdict.why:
        return Refused(file, verdict.why, verdict.suspected)
    if "Rows" not in fields:
        return Refused(file, NO_IMAGE)
    if sop_class not in IMAGES:
        return Refused(file, OTHER_KIND)
    if not (instance and study and series):
        return Refused(file, NO_IDENTITY)
    if fields.text("PresentationIntentType") == "FOR PROCESSING":
        return Refused(file, PROCESSING)
    return _image(known, fields, verdict)


def _image(known: Header, fields: Fields, verdict: Verdict) -> Header:
    modality = IMAGES[known.sop_class]
    frames = fields.whole("NumberOfFrames", 1)
    return replace(
        known,
        modality=modality,
        rows=fields.whole("Rows", 0),
        columns=fields.whole("Columns", 0),
        frames=geometry_of(fields, known.sop_class, modality, frames),
        number=fields.whole("InstanceNumber", 0),
        image_type=tuple(fields.words("ImageType")[2:]),
        protocol=_protocol(fields, modality),
        description=fields.text("SeriesDescription"),
        blank=verdict.blank,
    )


def _referenced(dataset: Dataset) -> Iterator[str]:
    for item in dataset.get("ReferencedSeriesSequence") or []:
        yield _text(item, "SeriesInstanceUID")
    for frame in dataset.get("ReferencedFrameOfReferenceSequence") or []:
        for study in frame.get("RTReferencedStudySequence") or []:
            for series in study.get("RTReferencedSeriesSequence") or []:
                yield _text(series, "SeriesInstanceUID")


def _protocol(fields: Fields, modality: str) -> str:
    """Numbers and code words of a fixed set only: a protocol's name may hold a patient's."""
    if modality == "MR":
        parts = [word for word in fields.words("ScanningSequence") if word in ("SE", "IR", "GR", "EP", "RM")]
        parts += [f"{name} {_number(fields, key)}" for name, key in (("TR", "RepetitionTime"), ("TE", "EchoTime"))]
    else:
        parts = [f"{_number(fields, 'KVP')} kV"]
    return " ".join(part for part in parts if "?" not in part)


def _number(fields: Fields, key: str) -> str:
    found = fields.numbers(key)
    return f"{found[0]:g}" if found else "?"


def _text(dataset: Dataset, key: str) -> str:
    return Fields(dataset).text(key)
