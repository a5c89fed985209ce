"""Values of a DICOM header as text and numbers, without pydicom's conversion of each element where that is slow.

A scan of an archive reads thirty values of each file; most are ASCII, and of those the bytes say everything.
"""

import struct
from typing import Any

from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag

SHORTS = frozenset(
    ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation")
)
Numbers = tuple[float, ...]
_tags: dict[str, BaseTag] = {}


class Fields:
    """The values of one header, by keyword (private)."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __contains__(self, keyword: str) -> bool:
        return self.dataset.get_item(tag_of(keyword)) is not None

    def text(self, keyword: str) -> str:
        """Return a value as text, several joined by backslashes; empty where there is none."""
        raw = self._ascii(keyword)
        if raw is not None:
            return raw.strip("\0 ")
        value = self.dataset.get(keyword)
        if value is None:
            return ""
        several = not isinstance(value, str | bytes) and hasattr(value, "__iter__")
        return "\\".join(map(str, value)) if several else str(value).strip("\0 ")

    def words(self, keyword: str) -> list[str]:
        """Return the values of a text."""
        text = self.text(keyword)
        return [word.strip("\0 ") for word in text.split("\\")] if text else []

    def numbers(self, keyword: str) -> Numbers | None:
        """Return the numbers of a value; None where there is none, or it is no number."""
        raw = self._ascii(keyword)
        try:
            if raw is not None:
                text = raw.strip("\0 ")
                return tuple(float(part) for part in text.split("\\")) if text else None
            return numbers_of(self.dataset, keyword)
        except ValueError:
            return None

    def whole(self, keyword: str, default: int) -> int:
        """Return a whole number; `default` where there is none."""
        element = self.dataset.get_item(tag_of(keyword))
        if keyword in SHORTS and isinstance(element, RawDataElement) and element.value and len(element.value) == 2:
            return int(struct.unpack("<H" if element.is_little_endian else ">H", element.value)[0])
        found = self.numbers(keyword)
        return int(found[0]) if found else default

    def _ascii(self, keyword: str) -> str | None:
        """The bytes of an element that is not converted yet, where they are text in ASCII."""
        element = self.dataset.get_item(tag_of(keyword))
        if not isinstance(element, RawDataElement) or keyword in SHORTS or keyword in BINARY:
            return None
        value = element.value
        return value.decode("ascii") if isinstance(value, bytes) and value.isascii() else None


BINARY = frozenset(("DiffusionBValue", "PixelPaddingValue", "PixelPaddingRangeLimit", "TemporalPositionIndex"))
"""Of the values that are asked for, those that are no text."""


def numbers_of(dataset: Dataset, keyword: str) -> Numbers | None:
    """Return the numbers of a value as pydicom converts it; None where there is none, or it is no number."""
    value: Any = dataset.get(keyword)
    if value is None or value == "":
        return None
    try:
        return tuple(float(one) for one in value) if hasattr(value, "__iter__") else (float(value),)
    except (TypeError, ValueError):
        return None


def meta_text(dataset: Dataset, key: str) -> str:
    """Return a value of the file's own header (PS3.10) as text; empty where there is none."""
    meta = getattr(dataset, "file_meta", None)
    return "" if meta is None else str(meta.get(key) or "")


def tag_of(keyword: str) -> BaseTag:
    """Return the tag of a keyword of the dictionary."""
    if keyword not in _tags:
        _tags[keyword] = BaseTag(tag_for_keyword(keyword) or 0)
    return _tags[keyword]
