"""Headers of DICOM files to series: stacks of parallel planes in order, or the single images of one series (private).

One series of an archive may hold several stacks: echoes, phases, directions of diffusion, a localizer of three planes.
It is taken apart by orientation, size and spacing, then by the dimension that makes positions unique.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_prep.importers.dicom_classes import RTSTRUCT, SEGMENTATION
from data_prep.importers.dicom_geometry import DIMENSIONS, Geometry
from data_prep.importers.dicom_header import Header
from data_prep.importers.orientation import CANONICAL, OBLIQUE_DEGREES, Orientation, Turn
from data_prep.importers.volume import Facts, Frame, Reader, Reject, Series, Spacing, spacing_notes, step_mm

DUPLICATE_INSTANCE = "an instance that is in another file too, the first kept"
SAME_POSITION = "a second image at one position of its stack, the first kept"
NO_GEOMETRY = "a slice without position, orientation or spacing"
TILT_MM = 0.1
DIFFERENT_MM = 1e-3


@dataclass(frozen=True, slots=True)
class Source:
    """Where one frame comes from, beside what any format has (private).

    Attributes:
        header: of the file.
        geometry: of the frame.
    """

    header: Header
    geometry: Geometry


@dataclass(frozen=True)
class DicomSeries(Series):
    """A series of DICOM files.

    Attributes:
        sources: of each frame.
        turn: into canonical orientation.
        contours: files below the source that hold contours or segments of this series.
        rois: the regular expression that names of contours must match, or None.
    """

    sources: tuple[Source, ...] = ()
    turn: Turn = CANONICAL
    contours: tuple[str, ...] = ()
    rois: str | None = None

    @property
    def marks(self) -> tuple[str, ...]:
        """See `Series`."""
        return self.contours

    def without(self, dropped: frozenset[int]) -> "DicomSeries":
        """Return the same series without some of its frames."""
        rows = [row for row in range(len(self.frames)) if row not in dropped]
        frames, sources = tuple(self.frames[row] for row in rows), tuple(self.sources[row] for row in rows)
        return replace(self, frames=frames, sources=sources)

    def open(self, root: Path) -> Reader:
        """Return the reader of its planes."""
        from data_prep.importers.dicom_pixels import DicomReader

        return DicomReader(root, self)


def unique(headers: Iterable[Header]) -> tuple[list[Header], list[Reject]]:
    """Return one file of each instance, in order of file names, and the others as rejects."""
    kept: dict[str, Header] = {}
    rejects = []
    for header in sorted(headers, key=lambda header: header.file):
        if header.instance and header.instance in kept:
            rejects.append(Reject(header.file, DUPLICATE_INSTANCE))
        else:
            kept[header.instance or header.file] = header
    return list(kept.values()), rejects


def series_of(headers: Sequence[Header], rois: str | None = None) -> tuple[list[DicomSeries], list[Reject]]:
    """Return the series of images in order of patient, study and series, and what belongs to none.

    Args:
        headers: of all files, without duplicates.
        rois: see `DicomSeries`.
    """
    contours = defaultdict(list)
    for header in headers:
        if header.sop_class in (RTSTRUCT, SEGMENTATION):
            for uid in header.refers_to or (header.study,):
                contours[uid].append(header.file)
    groups: dict[tuple[object, ...], list[Source]] = defaultdict(list)
    rejects: list[Reject] = []
    for header in headers:
        for geometry in header.frames:
            key = _kind(header, geometry)
            if key is None:
                rejects.append(Reject(header.file, NO_GEOMETRY))
                continue
            groups[key].append(Source(header, geometry))
    found: list[DicomSeries] = []
    for sources in groups.values():
        volume = sources[0].geometry.position is not None
        for stack in _apart(sources) if volume else [sources]:
            series, doubles = _stack(stack) if volume else _singles(stack)
            marks = contours[series.series] or contours[series.study]
            found.append(replace(series, contours=tuple(marks), has_lesions=bool(marks), rois=rois))
            rejects += doubles
    return sorted(found, key=lambda one: (one.patient, one.study, one.series, one.frames[0].file)), rejects


def _kind(header: Header, geometry: Geometry) -> tuple[object, ...] | None:
    """What all planes of one stack have in common; None of a slice that lies nowhere."""
    same = (header.patient, header.study, header.series, header.modality)
    if geometry.position is None and geometry.orientation is None and header.modality not in ("CT", "MR"):
        return same
    orientation = Orientation.of(geometry.orientation or ())
    if orientation is None or not geometry.position or len(geometry.position) != 3 or not geometry.spacing:
        return None
    cosines = tuple(np.round([*orientation.along_row, *orientation.along_column], 3).tolist())
    return (
        *same,
        header.rows,
        header.columns,
        cosines,
        tuple(np.round(geometry.spacing, 4).tolist()),
        header.image_type,
    )


def _apart(sources: Sequence[Source]) -> list[list[Source]]:
    """Divide by the first dimension that leaves no two planes at one position; as it is where none does."""
    if _repeated(sources):
        for dimension in range(len(DIMENSIONS)):
            parts: dict[str, list[Source]] = defaultdict(list)
            for source in sources:
                parts[source.geometry.dimension[dimension]].append(source)
            if len(parts) > 1 and not any(map(_repeated, parts.values())):
                return list(parts.values())
    return [list(sources)]


def _repeated(sources: Sequence[Source]) -> bool:
    positions = np.sort(_along(sources))
    return bool(len(positions) > 1 and np.diff(positions).min() < DIFFERENT_MM)


def _along(sources: Sequence[Source]) -> npt.NDArray[np.float64]:
    positions = np.array([source.geometry.position for source in sources], np.float64)
    return np.asarray(positions @ _orientation(sources[0]).normal)


def _orientation(source: Source) -> Orientation:
    found = Orientation.of(source.geometry.orientation or ())
    assert found is not None  # `_kind` has refused the others
    return found


def _stack(sources: Sequence[Source]) -> tuple[DicomSeries, list[Reject]]:
    along = _along(sources)
    kept: list[int] = []
    doubles = []
    for place in sorted(range(len(sources)), key=lambda place: (along[place], sources[place].header.file)):
        if kept and along[place] - along[kept[-1]] < DIFFERENT_MM:
            doubles.append(Reject(sources[place].header.file, SAME_POSITION))
        else:
            kept.append(place)
    orientation, first = _orientation(sources[0]), sources[kept[0]]
    corner = np.asarray(first.geometry.position)
    turn = orientation.turn
    frames = []
    axes = np.array([orientation.along_column, orientation.along_row])
    for place in kept:
        down, right = (axes @ (np.asarray(sources[place].geometry.position) - corner)).tolist()
        shift = (right, down) if turn.transpose else (down, right)
        signs = (-1 if turn.flip_rows else 1, -1 if turn.flip_columns else 1)
        turned = Spacing(shift[0] * signs[0], shift[1] * signs[1])
        frame = sources[place].geometry.frame
        frames.append(Frame(sources[place].header.file, frame, float(along[place]), turned))
    facts = _facts([sources[place] for place in kept], orientation, frames)
    return _series(tuple(sources[place] for place in kept), tuple(frames), facts, turn), doubles


def _singles(sources: Sequence[Source]) -> tuple[DicomSeries, list[Reject]]:
    ordered = sorted(sources, key=lambda one: (one.header.number, one.header.file, one.geometry.frame))
    frames = tuple(Frame(source.header.file, source.geometry.frame) for source in ordered)
    sizes = sorted({(source.header.rows, source.header.columns) for source in ordered})
    first = ordered[0]
    spacing = f"{first.geometry.spacing[0]:.3g} mm" if first.geometry.spacing else "unknown"
    size = f"{sizes[0][0]} x {sizes[0][1]}" + (" and others" if len(sizes) > 1 else "")
    facts = Facts(first.header.modality, first.header.protocol, "single", size, spacing)
    return _series(tuple(ordered), frames, facts, CANONICAL), []


def _series(sources: tuple[Source, ...], frames: tuple[Frame, ...], facts: Facts, turn: Turn) -> DicomSeries:
    first = sources[0].header
    return DicomSeries(
        first.patient, first.study, first.series, first.modality, frames, facts, sources=sources, turn=turn
    )


def _facts(sources: Sequence[Source], orientation: Orientation, frames: Sequence[Frame]) -> Facts:
    first = sources[0]
    positions = np.array([frame.position_mm for frame in frames], np.float64)
    spacing = first.geometry.spacing or (0.0,)
    notes = list(spacing_notes(positions))
    tilt = orientation.tilt_degrees
    if tilt > OBLIQUE_DEGREES:
        notes.append(f"oblique by {tilt:.0f} degrees")
    lean = max(abs(value) for value in frames[-1].shift_mm)
    if lean > TILT_MM and len(frames) > 1:
        degrees = np.degrees(np.arctan2(lean, positions[-1] - positions[0]))
        notes.append(f"gantry tilt of {degrees:.0f} degrees")
    return Facts(
        first.header.modality,
        first.header.protocol,
        orientation.plane,
        f"{first.header.rows} x {first.header.columns}",
        " x ".join(f"{value:.3g}" for value in (*spacing, step_mm(positions))) + " mm",
        tuple(notes),
    )
