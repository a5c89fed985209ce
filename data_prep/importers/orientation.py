"""From the orientation of a plane in the patient to how it is turned, so that every hospital's slices lie alike.

DICOM PS3.3 C.7.6.2: x to the patient's left, y to the back, z to the head. Canonical is what a radiologist sees:

- axial: right edge is the left of the patient, lower edge the back;
- coronal: right edge is the left, lower edge the feet;
- sagittal: right edge is the back, lower edge the feet.

A plane is turned by quarter turns and flips only, never resampled: an oblique one goes by its nearest axes.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from data_prep.importers.volume import Spacing

Vector = npt.NDArray[np.float64]
Vectors = tuple[float, ...]
PLANES = {2: "axial", 1: "coronal", 0: "sagittal"}
"""By the axis of the patient that the normal is nearest to."""
RIGHT = {"axial": (0, 1), "coronal": (0, 1), "sagittal": (1, 1)}
DOWN = {"axial": (1, 1), "coronal": (2, -1), "sagittal": (2, -1)}
"""Axis of the patient and sign of what points to the right and down."""
OBLIQUE_DEGREES = 5.0


@dataclass(frozen=True)
class Turn:
    """How a plane is brought into canonical orientation: transposed first, then flipped."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    def apply(self, pixels: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """Return `pixels` [h, w] turned; a copy in memory order."""
        turned = pixels.T if self.transpose else pixels
        return np.ascontiguousarray(turned[:: -1 if self.flip_rows else 1, :: -1 if self.flip_columns else 1])

    def spacing(self, spacing_mm: Spacing) -> Spacing:
        """Return the spacing of rows and columns after the turn."""
        return Spacing(spacing_mm.right, spacing_mm.down) if self.transpose else spacing_mm


CANONICAL = Turn()


@dataclass(frozen=True)
class Orientation:
    """Of a plane in the patient.

    Attributes:
        along_row: unit vector of the direction in which the column index grows.
        along_column: unit vector of the direction in which the row index grows.
    """

    along_row: tuple[float, float, float]
    along_column: tuple[float, float, float]

    @classmethod
    def of(cls, cosines: npt.ArrayLike) -> "Orientation | None":
        """Return it from the six direction cosines of DICOM; None where they are no right angle of unit vectors."""
        given = tuple(np.asarray(cosines, np.float64).tolist())
        return _orientation(given)

    @property
    def normal(self) -> Vector:
        """The unit vector across the plane."""
        return np.cross(self.along_row, self.along_column)

    @property
    def plane(self) -> str:
        """The anatomical plane that it is nearest to."""
        return PLANES[int(np.abs(self.normal).argmax())]

    @property
    def tilt_degrees(self) -> float:
        """The angle between its normal and the nearest axis of the patient."""
        return float(np.degrees(np.arccos(np.clip(np.abs(self.normal).max(), 0, 1))))

    @property
    def turn(self) -> Turn:
        """How it becomes canonical."""
        axis, _ = RIGHT[self.plane]
        row, column = np.array(self.along_row), np.array(self.along_column)
        transpose = abs(column[axis]) > abs(row[axis])
        right, down = (column, row) if transpose else (row, column)
        flip_columns = right[axis] * RIGHT[self.plane][1] < 0
        down_axis, sign = DOWN[self.plane]
        return Turn(bool(transpose), bool(down[down_axis] * sign < 0), bool(flip_columns))


@lru_cache(maxsize=256)
def _orientation(cosines: Vectors) -> Orientation | None:
    """Slices of one series have the same cosines."""
    six = np.array(cosines, np.float64)
    if six.shape != (6,) or not np.isfinite(six).all():
        return None
    row, column = six[:3], six[3:]
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if min(lengths) < 0.9 or max(lengths) > 1.1 or abs(row @ column) > 0.01:
        return None
    row, column = row / lengths[0], column / lengths[1]
    return Orientation((row[0], row[1], row[2]), (column[0], column[1], column[2]))
