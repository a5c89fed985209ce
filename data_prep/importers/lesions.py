"""Lesions that contours or masks mark: their area in each slice, and the diameter that makes one early (private)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.importers.volume import Bool, Pixel, Spacing

ANGLES = 90


@dataclass(frozen=True)
class Spot:
    """One connected piece of a lesion in one slice.

    Attributes:
        row: of the slice in its series.
        centre: row and column of its middle pixel.
        area_mm2: its area.
        diameter_mm: the longest distance inside its slice.
        box: rows and columns that hold it.
    """

    row: int
    centre: Pixel
    area_mm2: float
    diameter_mm: float
    box: tuple[slice, slice] = (slice(0), slice(0))


class Lesions:
    """Pieces of lesions, slice by slice, joined where pieces of neighbouring slices overlap.

    The diameter of a lesion is the longest one in any of its slices, as RECIST 1.1 measures it (Eisenhauer et al.,
    2009). Memory is that of one slice.
    """

    def __init__(self) -> None:
        self.spots: list[Spot] = []
        self._parent: list[int] = []
        self._before: npt.NDArray[np.int32] | None = None
        self._first = 0

    def add(self, row: int, mask: Bool, spacing_mm: Spacing) -> None:
        """Add the mask of the next slice; an empty one ends all lesions."""
        from scipy import ndimage

        pieces, count = ndimage.label(mask, np.ones((3, 3)))
        first = len(self.spots)
        for number in range(1, count + 1):
            self.spots.append(_spot(row, pieces == number, spacing_mm))
            self._parent.append(first + number - 1)
        if self._before is not None and self._before.shape == pieces.shape:
            both = (self._before > 0) & (pieces > 0)
            for old, new in np.unique(np.stack([self._before[both], pieces[both]]), axis=1).T:
                self._join(self._first + int(old) - 1, first + int(new) - 1)
        self._before, self._first = pieces, first

    def of_row(self, row: int) -> list[tuple[Spot, float]]:
        """Return the pieces in a slice, each with the diameter of its whole lesion in mm."""
        largest: dict[int, float] = {}
        for number, spot in enumerate(self.spots):
            top = self._top(number)
            largest[top] = max(largest.get(top, 0.0), spot.diameter_mm)
        return [(spot, largest[self._top(n)]) for n, spot in enumerate(self.spots) if spot.row == row]

    def whole(self) -> list[tuple[list[Spot], float]]:
        """Return the pieces of each lesion, from its first slice on, with its diameter in mm."""
        found: dict[int, list[Spot]] = {}
        for number, spot in enumerate(self.spots):
            found.setdefault(self._top(number), []).append(spot)
        return [(spots, max(spot.diameter_mm for spot in spots)) for spots in found.values()]

    def _top(self, number: int) -> int:
        while self._parent[number] != number:
            number = self._parent[number]
        return number

    def _join(self, one: int, other: int) -> None:
        self._parent[self._top(other)] = self._top(one)


def _spot(row: int, piece: Bool, spacing_mm: Spacing) -> Spot:
    rows, columns = np.nonzero(piece)
    middle = ((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2).argmin()
    return Spot(
        row,
        Pixel(int(rows[middle]), int(columns[middle])),
        float(len(rows) * spacing_mm.down * spacing_mm.right),
        _diameter_mm(rows * spacing_mm.down, columns * spacing_mm.right) + (spacing_mm.down + spacing_mm.right) / 2,
        (slice(int(rows.min()), int(rows.max()) + 1), slice(int(columns.min()), int(columns.max()) + 1)),
    )


def _diameter_mm(down: npt.NDArray[Any], right: npt.NDArray[Any]) -> float:
    """The longest extent over directions 2 degrees apart: less than 0.02 % short of the longest distance."""
    angles = np.linspace(0, np.pi, ANGLES, endpoint=False)
    ends = [np.ptp(down * np.sin(angle) + right * np.cos(angle)) for angle in angles]
    return float(max(ends))


@dataclass(frozen=True)
class LesionRule:
    """How contours and masks become labels.

    Attributes:
        patch_mm: side of the patches in and around lesions; None: whole slices, 1 where one holds lesion.
        least_mm2: smaller areas in a slice are neither with nor without a lesion, and are left out.
        early_mm: lesions up to this diameter are early.
        negatives: images without lesion kept for each one with it, in each series; None: all of a volume, one a patch.
        rois: a regular expression that names of contours and segments must match; None: all of them.
    """

    patch_mm: float | None = None
    least_mm2: float = 10.0
    early_mm: float = 30.0
    negatives: float | None = None
    rois: str | None = None


CLASSES = ("no lesion", "lesion")


def thinned(rows: Sequence[int], keep: int) -> list[int]:
    """Return `keep` of `rows`, evenly spaced.

    >>> thinned(range(10), 3)
    [0, 4, 9]
    """
    if keep >= len(rows):
        return list(rows)
    return [rows[int(place)] for place in np.rint(np.linspace(0, len(rows) - 1, max(keep, 0)))]
