"""The planes of one series as they are read, the last few kept, and examples in the making (private)."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from data_prep.importers.lesions import Lesions
from data_prep.importers.recipe import Recipe
from data_prep.importers.resample import to_square
from data_prep.importers.volume import EVEN_SHARE, ImportFault, Mask, Plane, Reader, Series, Spacing, step_mm
from fedhpc.util.arrays import F32

CONSTANT = "of one grey value throughout"
NOT_FINITE = "with NaN or infinite pixels"
SMALL_LESION = "a lesion too small to count in this slice"
BESIDE_GAP = "beside a missing or unevenly spaced slice: no stack can be cut there"
THINNED = "not asked for: thinned out by --every-mm, --max-slices or --negatives"
NO_PATCH = "no patch without lesion fits beside the lesion"


@dataclass
class Draft:
    """Examples of one series in the making."""

    squares: list[F32] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    early: list[int] = field(default_factory=list)
    rejects: list[tuple[int, str]] = field(default_factory=list)

    def add(self, square: F32, frame: int, label: int = 0, early: bool = False) -> None:
        """Take one example, f32[stack, H, W] or [1, D, H, W], of the frame in its middle."""
        self.squares.append(square)
        self.frames.append(frame)
        self.labels.append(label)
        self.early.append(int(early))

    def keep(self, numbers: Sequence[int]) -> None:
        """Keep these examples only."""
        self.squares = [self.squares[number] for number in numbers]
        self.frames = [self.frames[number] for number in numbers]
        self.labels = [self.labels[number] for number in numbers]
        self.early = [self.early[number] for number in numbers]


class Planes:
    """Planes of one series as squares, the last few kept."""

    def __init__(self, series: Series, reader: Reader, recipe: Recipe) -> None:
        self._series, self._reader, self._recipe = series, reader, recipe
        self._kept: dict[int, F32 | str] = {}
        self._step_mm = step_mm(series.positions_mm) if series.is_volume else 0.0

    def plane(self, row: int) -> Plane | str:
        """The plane, or why it cannot be taken."""
        try:
            plane = self._reader.plane(row)
        except ImportFault as fault:
            return str(fault)
        except MemoryError:
            raise
        except Exception as error:  # decoders raise whatever they like, and quote the file
            return f"cannot be decoded ({type(error).__name__})"
        return plane if np.isfinite(plane.pixels).all() else NOT_FINITE

    def lesions(self) -> Lesions:
        """Pieces of lesions in all slices, in order."""
        found = Lesions()
        for row in range(len(self._series.frames)):
            mask = self.mask(row)
            found.add(
                row, np.zeros((1, 1), bool) if mask is None else mask.pixels, mask.spacing_mm if mask else Spacing(1, 1)
            )
        return found

    def stacked(self, row: int) -> F32 | str:
        """float32 [stack, size, size] around a slice, or why not. The first and last slice are repeated at the ends."""
        half = self._recipe.stack // 2
        rows = [min(max(row + k, 0), len(self._series.frames) - 1) for k in range(-half, half + 1)]
        if half and not self._even(rows):
            return BESIDE_GAP
        squares = [self._square(each, row) for each in rows]
        wrong = [each for each in squares if isinstance(each, str)]
        if wrong:
            return wrong[0]
        block = np.stack([each for each in squares if not isinstance(each, str)])
        self._kept = {each: self._kept[each] for each in rows if each in self._kept}
        return CONSTANT if block.min() == block.max() else block

    def mask(self, row: int) -> Mask | None:
        """What is marked in a slice: where that cannot be read, no label of the series is known."""
        try:
            return self._reader.lesion(row)
        except (MemoryError, ImportFault):
            raise
        except Exception as error:  # as in `plane`
            raise ImportFault(f"its contours or masks cannot be read ({type(error).__name__})") from None

    def _even(self, rows: Sequence[int]) -> bool:
        if not self._series.is_volume:
            return False
        steps = np.diff(self._series.positions_mm[sorted(set(rows))])
        return bool(np.all(np.abs(steps / self._step_mm - 1) <= EVEN_SHARE))

    def _square(self, row: int, centre: int) -> F32 | str:
        if row not in self._kept:
            plane = self.plane(row)
            self._kept[row] = plane if isinstance(plane, str) else to_square(plane, self._recipe.square)
            if not isinstance(plane, str):
                self._pixel_mm = self._recipe.square.pixel_mm or _fitted_mm(plane, self._recipe.square.size)
        square = self._kept[row]
        if isinstance(square, str) or row == centre:
            return square
        here, there = self._series.frames[row].shift_mm, self._series.frames[centre].shift_mm
        shift = [(one - other) / self._pixel_mm for one, other in zip(here, there, strict=True)]
        if max(map(abs, shift)) < 0.01:
            return square
        from scipy import ndimage  # half a second, for what few archives need

        # Under gantry tilt a neighbour begins elsewhere in its plane than straight behind.
        return np.asarray(ndimage.shift(square, shift, order=1, mode="nearest"), np.float32)


def _fitted_mm(plane: Plane, size: int) -> float:
    sides = [side * mm for side, mm in zip(plane.pixels.shape, plane.millimetres, strict=True)]
    return float(max(sides) / size)
