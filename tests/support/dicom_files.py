"""DICOM files made by hand: small volumes whose geometry, pixels and headers a test chooses."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import UID, ExplicitVRLittleEndian

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
DX = "1.2.840.10008.5.1.4.1.1.1.1"
RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"
ROOT = "1.2.826.0.1.3680043.8.498"
AXIAL = (1, 0, 0, 0, 1, 0)


def uid(*parts: int) -> str:
    """Return a UID of this test."""
    return ".".join([ROOT, *map(str, parts)])


def slice_file(pixels: npt.NDArray[Any], patient: int, position: Sequence[float], **change: Any) -> FileDataset:
    """Return one axial CT slice, rescaled by -1024, that keywords change; None removes a tag."""
    number = change.pop("number", round(position[2] * 100) + 1_000_000)
    series = change.pop("series", 1)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = UID(change.get("SOPClassUID", CT))
    meta.MediaStorageSOPInstanceUID = UID(uid(patient, series, number))
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    values: dict[str, Any] = {
        "SOPClassUID": CT, "SOPInstanceUID": uid(patient, series, number), "StudyInstanceUID": uid(patient),
        "SeriesInstanceUID": uid(patient, series), "PatientID": f"id{patient}", "PatientName": f"Name^{patient}",
        "Modality": "CT", "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "Rows": pixels.shape[0],
        "Columns": pixels.shape[1], "SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 8 * pixels.dtype.itemsize, "BitsStored": 8 * pixels.dtype.itemsize,
        "HighBit": 8 * pixels.dtype.itemsize - 1, "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "PixelSpacing": [1.0, 1.0], "ImagePositionPatient": list(position), "ImageOrientationPatient": list(AXIAL),
        "RescaleIntercept": -1024, "RescaleSlope": 1, "InstanceNumber": int(number) % 10_000, "KVP": 120,
    }  # fmt: skip
    for keyword, value in (values | change).items():
        if value is not None:
            setattr(dataset, keyword, value)
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OW" if pixels.dtype.itemsize > 1 else "OB"
    return dataset


def write(dataset: FileDataset, path: Path) -> Path:
    """Write a file and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def ball(size: int, depth: int, at: tuple[float, float, float], radius: float) -> npt.NDArray[np.bool_]:
    """Return bool [depth, size, size]: a ball around a place (slice, row, column)."""
    z, y, x = np.indices((depth, size, size))
    distance: npt.NDArray[np.bool_] = (z - at[0]) ** 2 + (y - at[1]) ** 2 + (x - at[2]) ** 2 <= radius**2
    return distance


def volume(folder: Path, patient: int, *, size: int = 32, depth: int = 8, **change: Any) -> list[FileDataset]:
    """Write a CT volume of a body with noise of its own, one file a slice; return the datasets."""
    random = np.random.default_rng(patient)
    body = ball(size, depth, (depth / 2, size / 2, size / 2), size * 0.4)
    pixels = np.where(body, 1024, 24) + random.integers(0, 60, body.shape)
    made = []
    for row in range(depth):
        dataset = slice_file(pixels[row].astype(np.uint16), patient, (0.0, 0.0, 3.0 * row), **change)
        write(dataset, folder / f"p{patient}" / f"{row:03d}.dcm")
        made.append(dataset)
    return made


def square_contour(row_mm: float, column_mm: float, side_mm: float, z_mm: float) -> list[float]:
    """Return the points of a square in an axial plane: x, y, z after one another."""
    half = side_mm / 2
    corners = [(-half, -half), (half, -half), (half, half), (-half, half)]
    return [value for dx, dy in corners for value in (column_mm + dx, row_mm + dy, z_mm)]


def contours(patient: int, outlines: Mapping[str, Sequence[Sequence[float]]], series: int = 1) -> FileDataset:
    """Return an RTSTRUCT of named regions, each with closed planar contours, that refers to a series."""
    dataset = slice_file(np.zeros((1, 1), np.uint16), patient, (0, 0, 0), series=99, number=patient)
    for keyword in ("PixelData", "Rows", "Columns", "ImagePositionPatient", "ImageOrientationPatient"):
        delattr(dataset, keyword)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = UID(RTSTRUCT)
    dataset.Modality = "RTSTRUCT"
    of_series, of_study, of_frame = Dataset(), Dataset(), Dataset()
    of_series.SeriesInstanceUID = uid(patient, series)
    of_study.RTReferencedSeriesSequence = Items([of_series])
    of_frame.RTReferencedStudySequence = Items([of_study])
    dataset.ReferencedFrameOfReferenceSequence = Items([of_frame])
    regions, drawn = [], []
    for number, (name, lines) in enumerate(outlines.items(), 1):
        region, roi = Dataset(), Dataset()
        region.ROINumber, region.ROIName, roi.ReferencedROINumber = number, name, number
        roi.ContourSequence = Items([_contour(points) for points in lines])
        regions.append(region)
        drawn.append(roi)
    dataset.StructureSetROISequence, dataset.ROIContourSequence = Items(regions), Items(drawn)
    return dataset


def _contour(points: Sequence[float]) -> Dataset:
    contour = Dataset()
    contour.ContourGeometricType = "CLOSED_PLANAR"
    contour.NumberOfContourPoints = len(points) // 3
    contour.ContourData = list(points)
    return contour
