"""Where the pixels of an uncompressed DICOM image lie in its file, so that they are read without pydicom (private)."""

from dataclasses import dataclass
from typing import BinaryIO

from pydicom.dataset import Dataset

from data_prep.importers.dicom_classes import ENHANCED
from data_prep.importers.fields import Fields, meta_text

PIXEL_DATA = b"\xe0\x7f\x10\x00"
PLAIN_SYNTAXES = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")
"""Uncompressed, little endian: the pixels lie in the file as they are."""


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


def plain_pixels(stream: BinaryIO, dataset: Dataset) -> PlainPixels | None:
    """Return where the pixels lie, if they do so plainly: the stream stands before the element of the pixels."""
    fields = Fields(dataset)
    syntax = meta_text(dataset, "TransferSyntaxUID")
    allocated, stored = fields.whole("BitsAllocated", 0), fields.whole("BitsStored", 0)
    plain = (
        syntax in PLAIN_SYNTAXES
        and fields.text("SOPClassUID") not in ENHANCED
        and fields.whole("NumberOfFrames", 1) == 1
        and allocated in (8, 16)
        and 0 < stored <= allocated
        and "ModalityLUTSequence" not in fields
    )
    head = stream.read(12) if plain else b""
    if head[:4] != PIXEL_DATA or (head[4:6] not in (b"OW", b"OB")) != (syntax == PLAIN_SYNTAXES[0]):
        return None
    skip = 8 if syntax == PLAIN_SYNTAXES[0] else 12
    size_bytes = int.from_bytes(head[skip - 4 : skip], "little")
    wanted_bytes = fields.whole("Rows", 0) * fields.whole("Columns", 0) * allocated // 8
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
