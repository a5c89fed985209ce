"""Contours (RTSTRUCT) and segments (DICOM-SEG) of one series as masks of its planes, in the orientation of the file."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
from PIL import Image, ImageDraw
from pydicom.dataset import Dataset
from pydicom.pixels.utils import pixel_array

from data_prep.importers.dicom_classes import SEGMENTATION
from data_prep.importers.dicom_series import DicomSeries, Source
from data_prep.importers.volume import Bool, Pixel, step_mm

FINE = 8
"""Contours are drawn so many times finer than the pixels, and a pixel belongs where its centre does."""
Points = npt.NDArray[np.float64]


@dataclass
class Marks:
    """Contours by plane, as [k, 2] of row and column, each with its region; masks of segments by plane."""

    contours: dict[tuple[str, int], list[tuple[str, Points]]] = field(default_factory=lambda: defaultdict(list))
    masks: dict[tuple[str, int], Bool] = field(default_factory=dict)

    @classmethod
    def read(cls, root: Path, series: DicomSeries) -> "Marks":
        """Return all marks of the files that refer to a series."""
        found = cls()
        for file in series.contours:
            dataset = pydicom.dcmread(root / file, force=True)
            if str(dataset.get("SOPClassUID")) == SEGMENTATION:
                found._add_segments(dataset, series)
            else:
                found._add_contours(dataset, series)
        return found

    def mask(self, source: Source) -> Bool | None:
        """Return bool [rows, columns] of one plane; None where nothing is marked in it."""
        key = source.header.file, source.geometry.frame
        contours, mask = self.contours.get(key), self.masks.get(key)
        if not contours:
            return mask
        shape = Pixel(source.header.rows, source.header.columns)
        regions: dict[str, list[Points]] = defaultdict(list)
        for region, points in contours:
            regions[region].append(points)
        drawn: Bool = np.any([_filled(outlines, shape) for outlines in regions.values()], axis=0)
        return drawn if mask is None else drawn | mask

    def _add_contours(self, dataset: Dataset, series: DicomSeries) -> None:
        names = {
            int(roi.ROINumber): str(roi.get("ROIName") or "") for roi in dataset.get("StructureSetROISequence") or []
        }
        planes = _Planes(series)
        for roi in dataset.get("ROIContourSequence") or []:
            number = int(roi.ReferencedROINumber)
            if not _wanted(names.get(number, ""), series.rois):
                continue
            for contour in roi.get("ContourSequence") or []:
                points = np.asarray(contour.get("ContourData") or [], np.float64)
                if len(points) < 9 or len(points) % 3:
                    continue
                row = planes.nearest(points.reshape(-1, 3))
                if row is not None:
                    source = series.sources[row]
                    place = _in_plane(points.reshape(-1, 3), source)
                    self.contours[source.header.file, source.geometry.frame].append((f"{number}", place))

    def _add_segments(self, dataset: Dataset, series: DicomSeries) -> None:
        labels = {
            int(one.SegmentNumber): f"{one.get('SegmentLabel') or ''}" for one in dataset.get("SegmentSequence") or []
        }
        planes = _Planes(series)
        shared = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
        for number, groups in enumerate(dataset.get("PerFrameFunctionalGroupsSequence") or []):
            found = groups.get("SegmentIdentificationSequence") or shared.get("SegmentIdentificationSequence")
            if not found or not _wanted(labels.get(int(found[0].ReferencedSegmentNumber), ""), series.rois):
                continue
            position = groups.get("PlanePositionSequence") or shared.get("PlanePositionSequence")
            row = planes.nearest(np.asarray(position[0].ImagePositionPatient, np.float64)[None]) if position else None
            pixels = np.asarray(pixel_array(dataset, index=number)) > 0
            if row is None or pixels.shape != (series.sources[row].header.rows, series.sources[row].header.columns):
                continue
            key = series.sources[row].header.file, series.sources[row].geometry.frame
            self.masks[key] = pixels | self.masks[key] if key in self.masks else pixels


class _Planes:
    """Finds the plane that points lie in."""

    def __init__(self, series: DicomSeries) -> None:
        six = np.asarray(series.sources[0].geometry.orientation, np.float64)
        self._normal = np.cross(six[:3], six[3:])
        self._positions = np.array([np.asarray(one.geometry.position) @ self._normal for one in series.sources])
        self._reach_mm = max(step_mm(self._positions) / 2, 0.5) + 1e-3

    def nearest(self, points: Points) -> int | None:
        """Return the row of the plane within half a step of all points; None where there is none."""
        along = points @ self._normal
        row = int(np.abs(self._positions - along.mean()).argmin())
        return row if np.abs(along - self._positions[row]).max() <= self._reach_mm else None


def _wanted(name: str, pattern: str | None) -> bool:
    return pattern is None or re.search(pattern, name, re.I) is not None


def _in_plane(points: Points, source: Source) -> Points:
    """Row and column of points in the patient (PS3.3 C.7.6.2.1.1): the centre of the first pixel is 0, 0."""
    geometry = source.geometry
    spacing = geometry.spacing or (1.0,)
    six = np.asarray(geometry.orientation, np.float64)
    away = points - np.asarray(geometry.position, np.float64)
    return np.stack([away @ six[3:] / spacing[0], away @ six[:3] / spacing[-1]], axis=1)


def _filled(outlines: Sequence[Points], shape: Pixel) -> Bool:
    """Pixels whose centre lies inside: inside of an outline in an outline is outside, as of a ring."""
    mask = np.zeros(shape, bool)
    for points in outlines:
        low = np.maximum(np.floor(points.min(axis=0)).astype(int), 0)
        high = np.minimum(np.ceil(points.max(axis=0)).astype(int) + 1, shape)
        if (high <= low).any():
            continue
        height, width = (high - low).tolist()
        picture = Image.new("1", (width * FINE, height * FINE))
        corners = (points - low + 0.5) * FINE - 0.5
        ImageDraw.Draw(picture).polygon([(float(x), float(y)) for y, x in corners], fill=1, outline=0)
        fine = np.asarray(picture, bool)
        mask[low[0] : high[0], low[1] : high[1]] ^= fine[FINE // 2 :: FINE, FINE // 2 :: FINE]
    return mask
