"""What every archive format is read as: planes of one volume, or single images, each in its own units (private)."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fedhpc.util.arrays import F32

Bool = npt.NDArray[np.bool_]
EVEN_SHARE = 0.05
"""Steps between slices count as equal up to this share of their median."""


class Spacing(NamedTuple):
    """Millimetres from one row to the next, and from one column to the next."""

    down: float
    right: float


STRAIGHT = Spacing(0.0, 0.0)

MOST_FRAMES, MOST_PIXELS, MOST_VOXELS = 2**16, 2**27, 2**32
"""Of one file, of one plane and of all its planes: a header may claim any number, and memory is taken by the claim."""


LEAST_MM, MOST_MM, FARTHEST_MM = 1e-4, 1e3, 1e6
"""Between two pixels or slices, and from the origin of the patient's axes."""


def are_spacings(values: Iterable[float]) -> bool:
    """Return whether these may be distances of pixels or slices, in millimetres."""
    return all(LEAST_MM <= value <= MOST_MM for value in values)


def is_plausible(frames: int, rows: int, columns: int) -> bool:
    """Return whether a file may be read that claims so many planes of such a size."""
    pixels = rows * columns
    return 1 <= frames <= MOST_FRAMES and pixels <= MOST_PIXELS and frames * pixels <= MOST_VOXELS


class Pixel(NamedTuple):
    """Of a plane."""

    row: int
    column: int


class ImportFault(Exception):
    """One image or volume cannot be taken. The message is one of a fixed set and quotes nothing of the file."""


@dataclass(frozen=True)
class Plane:
    """One slice or image in canonical orientation, so that patients' right, front and head lie alike.

    Attributes:
        pixels: float32 [h, w], in Hounsfield units of CT (private).
        spacing_mm: distance between rows and between columns; None where the file does not tell.
    """

    pixels: F32
    spacing_mm: Spacing | None

    @property
    def millimetres(self) -> Spacing:
        """The spacing, 1 mm where it is unknown."""
        return self.spacing_mm or Spacing(1.0, 1.0)


@dataclass(frozen=True)
class Mask:
    """What contours and masks mark in one slice, in canonical orientation.

    Attributes:
        pixels: bool [h, w] (private).
        spacing_mm: distance between rows and between columns.
    """

    pixels: Bool
    spacing_mm: Spacing


@dataclass(frozen=True, slots=True)
class Frame:
    """One plane of a series, before it is read (private).

    Attributes:
        file: path below the source.
        index: of the frame inside the file.
        position_mm: along the normal of the planes; None of a single image.
        shift_mm: of its corner along rows and columns against the first plane's, other than 0 under gantry tilt.
    """

    file: str
    index: int = 0
    position_mm: float | None = None
    shift_mm: Spacing = STRAIGHT


@dataclass(frozen=True, slots=True)
class Facts:
    """What the dry run shows of a series: coded and numeric fields only, never free text."""

    modality: str
    protocol: str
    plane: str
    size: str
    spacing: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Series(ABC):
    """One stack of planes that belong together, or the single images of one series, in one format (private).

    Attributes:
        patient, study, series: identities, for joining and for pseudonyms only.
        modality: as a shard says it.
        frames: along the normal of a volume, by file of single images.
        facts: for the dry run.
        has_lesions: whether contours or masks refer to it.
    """

    patient: str
    study: str
    series: str
    modality: str
    frames: tuple[Frame, ...]
    facts: Facts
    has_lesions: bool = False

    @property
    def is_volume(self) -> bool:
        """Whether the planes lie one behind another."""
        return self.frames[0].position_mm is not None and len(self.frames) > 1

    @property
    def positions_mm(self) -> npt.NDArray[np.float64]:
        """Of the planes of a volume, ascending."""
        return np.array([frame.position_mm for frame in self.frames], np.float64)

    @property
    def key(self) -> str:
        """Tell this stack from every other of the source."""
        first = self.frames[0]
        return f"{self.series}\0{first.file}\0{first.index}\0{len(self.frames)}"

    @property
    @abstractmethod
    def marks(self) -> tuple[str, ...]:
        """The files, below the source, of its contours and masks."""

    @abstractmethod
    def open(self, root: Path) -> "Reader":
        """Return the reader of its planes."""

    def without(self, dropped: frozenset[int]) -> "Series":
        """Return the same series without some of its frames."""
        kept = tuple(frame for row, frame in enumerate(self.frames) if row not in dropped)
        return replace(self, frames=kept)


class Reader(Protocol):
    """Reads the planes of one series."""

    def plane(self, row: int) -> Plane:
        """Return the plane of `Series.frames[row]`.

        Raises:
            ImportFault: it cannot be taken.
        """

    def lesion(self, row: int) -> Mask | None:
        """Return what contours and masks mark in it; None where there is nothing."""


@dataclass(frozen=True, slots=True)
class Reject:
    """One file, or one frame of it, that is not in a shard: `why` is one of a fixed set of texts.

    Attributes:
        file: path below the source (private: it is written as a code only).
        why: never quotes the file.
        suspected: its pixels may show who the patient is.
    """

    file: str
    why: str
    suspected: bool = False


@dataclass(frozen=True)
class Found:
    """All files of a source: the series that can be taken, everything else, and what a person should know of them."""

    series: tuple[Series, ...]
    rejects: tuple[Reject, ...]
    files: int
    notes: tuple[str, ...] = ()


def step_mm(positions_mm: npt.NDArray[np.float64]) -> float:
    """Return the usual distance between neighbouring planes, 0 of fewer than two.

    >>> step_mm(np.array([0.0, 3.0, 6.0, 12.0]))
    3.0
    """
    return float(np.median(np.diff(positions_mm))) if len(positions_mm) > 1 else 0.0


def spacing_notes(positions_mm: npt.NDArray[np.float64]) -> tuple[str, ...]:
    """Say whether slices are missing or unevenly spaced.

    >>> spacing_notes(np.array([0.0, 3.0, 6.0, 12.0, 15.0]))
    ('1 slice missing',)
    >>> spacing_notes(np.array([0.0, 3.0, 6.0, 10.0, 13.0]))
    ('uneven spacing, 3 to 4 mm',)
    """
    if len(positions_mm) < 3:
        return ()
    steps = np.diff(positions_mm)
    usual = step_mm(positions_mm)
    ratio = steps / usual
    whole = np.rint(ratio)
    if np.abs(ratio - np.maximum(whole, 1)).max() > EVEN_SHARE:
        return (f"uneven spacing, {steps.min():.3g} to {steps.max():.3g} mm",)
    missing = int((whole - 1).sum())
    return (f"{missing} slice{'s' * (missing != 1)} missing",) if missing else ()
