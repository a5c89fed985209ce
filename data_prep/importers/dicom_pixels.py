"""Pixels of DICOM files: decoded by pydicom and pylibjpeg, in Hounsfield units of CT, canonical, frame by frame."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut
from pydicom.pixels.utils import pixel_array

from data_prep.importers.dicom_classes import ENHANCED
from data_prep.importers.dicom_header import quiet
from data_prep.importers.dicom_plain import PlainPixels
from data_prep.importers.dicom_series import DicomSeries, Source
from data_prep.importers.volume import ImportFault, Mask, Plane, Spacing
from fedhpc.util.arrays import F32

OTHER_SHAPE = "its pixels are not of the size that its header tells"
NO_DECODER = "compressed in a way that no installed decoder reads"


@dataclass
class DicomReader:
    """Reads the planes of one series; the last file is kept, for files of several frames."""

    root: Path
    series: DicomSeries
    _file: str = ""
    _dataset: Dataset | None = None
    _marks: Any = None

    def plane(self, row: int) -> Plane:
        """Return one plane.

        Raises:
            ImportFault: it cannot be taken.
        """
        source = self.series.sources[row]
        plain = source.header.plain
        if plain is not None:
            # A slope may be any number; pixels that are none are rejected later.
            with np.errstate(over="ignore", invalid="ignore"):
                pixels = self._plain(source, plain)
        else:
            with quiet():
                pixels = self._decoded(source)
        _blank(pixels, source)
        spacing = source.geometry.spacing
        millimetres = Spacing(spacing[0], spacing[-1]) if spacing and min(spacing) > 0 else None
        turn = self.series.turn
        turned = np.asarray(turn.apply(pixels), np.float32)
        return Plane(turned, turn.spacing(millimetres) if millimetres else None)

    def lesion(self, row: int) -> Mask | None:
        """Return what contours and segments mark in a plane."""
        from data_prep.importers.dicom_contours import Marks

        if self._marks is None:
            with quiet():
                self._marks = Marks.read(self.root, self.series)
        source = self.series.sources[row]
        mask = self._marks.mask(source)
        spacing = source.geometry.spacing
        if mask is None or not spacing:
            return None
        turn = self.series.turn
        return Mask(np.asarray(turn.apply(mask), np.bool_), turn.spacing(Spacing(spacing[0], spacing[-1])))

    def _plain(self, source: Source, plain: PlainPixels) -> F32:
        """Uncompressed pixels, read where the header's scan has found them: as `_decoded` reads them, bit by bit."""
        header = source.header
        count = header.rows * header.columns
        stored = np.fromfile(self.root / header.file, plain.dtype, count, offset=plain.offset)
        if len(stored) < count:
            raise ImportFault(OTHER_SHAPE)
        stored = stored.reshape(header.rows, header.columns)
        stored = (stored << plain.unused_bits) >> plain.unused_bits if plain.unused_bits else stored
        pixels = stored.astype(np.float32)
        if (plain.slope, plain.intercept) != (1.0, 0.0):
            pixels *= np.float32(plain.slope)
            pixels += np.float32(plain.intercept)
        padding = None if plain.padding is None else _between(stored, *plain.padding)
        return _finished(pixels, padding, plain.inverted)

    def _decoded(self, source: Source) -> F32:
        dataset = self._opened(source.header.file)
        try:
            raw = pixel_array(dataset, index=source.geometry.frame, raw=True)
        except (RuntimeError, NotImplementedError, KeyError) as error:
            if "decompress" in str(error) or isinstance(error, NotImplementedError):
                raise ImportFault(NO_DECODER) from None
            raise
        if raw.shape != (source.header.rows, source.header.columns):
            raise ImportFault(OTHER_SHAPE)
        stored = _stored_bits(raw, dataset)
        padding = _padding(stored, dataset)
        pixels = np.asarray(_rescaled(stored, dataset, source), np.float32)
        return _finished(pixels, padding, str(dataset.get("PhotometricInterpretation")) == "MONOCHROME1")

    def _opened(self, file: str) -> Dataset:
        if self._dataset is None or file != self._file:
            self._file, self._dataset = file, pydicom.dcmread(self.root / file, force=True)
        return self._dataset


def _stored_bits(raw: npt.NDArray[Any], dataset: Dataset) -> npt.NDArray[Any]:
    """Without what lies above the stored bits: old scanners keep overlays there, with names in them."""
    if raw.dtype.kind not in "iu":
        return raw
    unused = 8 * raw.dtype.itemsize - int(dataset.get("BitsStored") or 8 * raw.dtype.itemsize)
    return raw if unused <= 0 else (raw << unused) >> unused


def _padding(stored: npt.NDArray[Any], dataset: Dataset) -> npt.NDArray[np.bool_] | None:
    """Which pixels are outside of the scanned area (PS3.3 C.7.5.1.1.2)."""
    value = dataset.get("PixelPaddingValue")
    if not isinstance(value, int):
        return None
    other = dataset.get("PixelPaddingRangeLimit")
    limit = other if isinstance(other, int) else value
    return _between(stored, min(value, limit), max(value, limit))


def _between(stored: npt.NDArray[Any], low: int, high: int) -> npt.NDArray[np.bool_] | None:
    found: npt.NDArray[np.bool_] = (stored >= low) & (stored <= high)
    return found if found.any() else None


def _finished(pixels: F32, padding: npt.NDArray[np.bool_] | None, inverted: bool) -> F32:
    """Padding becomes the ground of the image, and white is bright."""
    if padding is not None and not padding.all():
        pixels[padding] = pixels[~padding].min()
    return pixels.max() + pixels.min() - pixels if inverted else pixels


def _rescaled(stored: npt.NDArray[Any], dataset: Dataset, source: Source) -> npt.NDArray[Any]:
    if source.header.sop_class not in ENHANCED:
        return np.asarray(apply_modality_lut(stored, dataset))
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    own = dataset.get("PerFrameFunctionalGroupsSequence") or []
    groups = own[source.geometry.frame] if source.geometry.frame < len(own) else Dataset()
    scale = groups.get("PixelValueTransformationSequence") or shared.get("PixelValueTransformationSequence")
    return np.asarray(apply_modality_lut(stored, scale[0])) if scale else stored


def _blank(pixels: F32, source: Source) -> None:
    """Set the rectangles of the device's rule to the smallest value, in place."""
    rows, columns = pixels.shape
    for left, top, width, height in source.header.blank:
        first_column, first_row = left % columns if left < 0 else left, top % rows if top < 0 else top
        pixels[first_row : first_row + height, first_column : first_column + width] = pixels.min()
