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

from data_prep.importers.fields import Fields, Numbers, numbers_of, tag_of
from data_prep.importers.screening import Verdict, screened
from data_prep.importers.tree import refusal
from data_prep.importers.volume import (
    FARTHEST_MM,
    MOST_FRAMES,
    MOST_PIXELS,
    MOST_VOXELS,
    are_spacings,
    is_plausible,
)
from data_prep.names import patient_key

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
PIXEL_DATA = b"\xe0\x7f\x10\x00"

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
# Positions of one series may repeat in these only: echoes, phases, directions, acquisitions.
DIMENSIONS = ("EchoTime", "AcquisitionNumber", "TemporalPositionIdentifier", "DiffusionBValue", "TriggerTime")

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

PLAIN_SYNTAXES = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")
"""Uncompressed, little endian: the pixels lie in the file as they are."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where one frame lies in the patient, as its header tells it."""

    position: Numbers | None
    orientation: Numbers | None
    spacing: Numbers | None
    frame: int = 0
    dimension: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PlainPixels:
    """Where the pixels of one uncompressed image lie in its file, and what they mean.

    Attributes:
        offset: of the first pixel, in bytes.
        dtype: of a pixel, little endian.
        unused_bits: above the stored ones.
        slope, intercept: of the rescaling.
        inverted: MONOCHROME1.
        padding: lowest and highest value outside of the scanned area; None: there is none.
    """

    offset: int
    dtype: str
    unused_bits: int
    slope: float
    intercept: float
    inverted: bool
    padding: tuple[int, int] | None


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
                return replace(found, plain=_plain(stream, dataset, found))
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
    if _meta(dataset, "MediaStorageSOPClassUID") == DIRECTORY:
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
    enhanced = known.sop_class in ENHANCED
    geometry = _enhanced(fields.dataset, frames) if enhanced else (_geometry(fields, modality),) * frames
    return replace(
        known,
        modality=modality,
        rows=fields.whole("Rows", 0),
        columns=fields.whole("Columns", 0),
        frames=geometry,
        number=fields.whole("InstanceNumber", 0),
        image_type=tuple(fields.words("ImageType")[2:]),
        protocol=_protocol(fields, modality),
        description=fields.text("SeriesDescription"),
        blank=verdict.blank,
    )


def _geometry(fields: Fields, modality: str) -> Geometry:
    if modality in SINGLE.values():
        found = _spacing(fields.numbers("PixelSpacing")) or _spacing(fields.numbers("ImagerPixelSpacing"))
        return Geometry(None, None, found)
    return Geometry(
        _position(fields.numbers("ImagePositionPatient")),
        fields.numbers("ImageOrientationPatient"),
        _spacing(fields.numbers("PixelSpacing")),
        dimension=tuple(fields.text(key) for key in DIMENSIONS),
    )


def _spacing(found: Numbers | None) -> Numbers | None:
    """A spacing that can be one; None of others, as where there is none."""
    return found if found and are_spacings(found) else None


def _position(found: Numbers | None) -> Numbers | None:
    """A position that can be a patient's, the same way."""
    return found if found and all(abs(value) <= FARTHEST_MM for value in found) else None


def _plain(stream: BinaryIO, dataset: Dataset, header: Header) -> PlainPixels | None:
    """Where the pixels lie, if they do so plainly: the stream stands before the element of the pixels."""
    fields = Fields(dataset)
    syntax = _meta(dataset, "TransferSyntaxUID")
    allocated, stored = fields.whole("BitsAllocated", 0), fields.whole("BitsStored", 0)
    plain = (
        syntax in PLAIN_SYNTAXES
        and header.sop_class not in ENHANCED
        and len(header.frames) == 1
        and allocated in (8, 16)
        and 0 < stored <= allocated
        and "ModalityLUTSequence" not in fields
    )
    head = stream.read(12) if plain else b""
    if head[:4] != PIXEL_DATA or (head[4:6] not in (b"OW", b"OB")) != (syntax == PLAIN_SYNTAXES[0]):
        return None
    skip = 8 if syntax == PLAIN_SYNTAXES[0] else 12
    size_bytes = int.from_bytes(head[skip - 4 : skip], "little")
    wanted_bytes = header.rows * header.columns * allocated // 8
    if size_bytes not in (wanted_bytes, wanted_bytes + 1):
        return None
    slope, intercept = fields.numbers("RescaleSlope"), fields.numbers("RescaleIntercept")
    padding, limit = fields.numbers("PixelPaddingValue"), fields.numbers("PixelPaddingRangeLimit")
    ends = sorted(int(one[0]) for one in (padding, limit or padding) if one) if padding else []
    return PlainPixels(
        stream.tell() - 12 + skip,
        f"<{'i' if fields.whole('PixelRepresentation', 0) else 'u'}{allocated // 8}",
        allocated - stored,
        slope[0] if slope else 1.0,
        intercept[0] if intercept else 0.0,
        fields.text("PhotometricInterpretation") == "MONOCHROME1",
        (ends[0], ends[-1]) if ends else None,
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
        return numbers_of(items[0], key) if items else None

    echo = value("MREchoSequence", "EffectiveEchoTime")
    diffusion = value("MRDiffusionSequence", "DiffusionBValue")
    content = groups.get("FrameContentSequence")
    phase = _text(content[0], "TemporalPositionIndex") if content else ""
    return Geometry(
        _position(value("PlanePositionSequence", "ImagePositionPatient")),
        value("PlaneOrientationSequence", "ImageOrientationPatient"),
        _spacing(value("PixelMeasuresSequence", "PixelSpacing")),
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


def _meta(dataset: Dataset, key: str) -> str:
    """A value of the file's own header; empty where there is none."""
    meta = getattr(dataset, "file_meta", None)
    return "" if meta is None else str(meta.get(key) or "")


def _text(dataset: Dataset, key: str) -> str:
    return Fields(dataset).text(key)
