"""From the planes of one series to examples: the only values of a file that go on from here (private).

An example is pixels, label, early or not, and the number of its frame. Patient, study, series and file stay behind as
codes of the site's secret. So whatever else a file says cannot reach a shard: default deny.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from data_prep.importers.intensity import HOUNSFIELD_RANGE, Scale, percentile_scale, windows
from data_prep.importers.lesions import LesionRule, Lesions, thinned
from data_prep.importers.resample import Square, to_square
from data_prep.importers.volume import (
    EVEN_SHARE,
    Bool,
    ImportFault,
    Mask,
    Pixel,
    Plane,
    Reader,
    Series,
    Spacing,
    step_mm,
)
from fedhpc.util.arrays import F32, Images

CONSTANT = "of one grey value throughout"
NOT_FINITE = "with NaN or infinite pixels"
SMALL_LESION = "a lesion too small to count in this slice"
BESIDE_GAP = "beside a missing or unevenly spaced slice: no stack can be cut there"
THINNED = "not asked for: thinned out by --every-mm, --max-slices or --negatives"
NO_PATCH = "no patch without lesion fits beside the lesion"
PATCH_TRIES = 64


@dataclass(frozen=True)
class Recipe:
    """How a series becomes examples.

    Attributes:
        square: of each image.
        window: names of CT windows, one channel each; ("hu",) for Hounsfield units.
        stack: neighbouring slices that become channels; 1: single slices.
        every_mm: the least distance between two slices that are taken.
        max_slices: of one series, evenly spaced; None: all.
        lesion: labels from contours or masks; None: labels come from a table.
    """

    square: Square = field(default_factory=lambda: Square(64))
    window: tuple[str, ...] = ("wide",)
    stack: int = 1
    every_mm: float = 0.0
    max_slices: int | None = None
    lesion: LesionRule | None = None


@dataclass(frozen=True)
class Examples:
    """What one series gave (private).

    Attributes:
        images: uint8 or float32 [n, C, size, size].
        frames: int64[n], rows of `Series.frames`.
        labels: int64[n], 0 and 1 by lesions; zeros where a table labels.
        early: uint8[n], 1 with a small lesion.
        rejects: rows of `Series.frames` that gave none, with the reason.
    """

    images: Images
    frames: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    early: npt.NDArray[np.uint8]
    rejects: tuple[tuple[int, str], ...] = ()


@dataclass
class _Draft:
    """Examples of one series in the making."""

    squares: list[F32] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    early: list[int] = field(default_factory=list)
    rejects: list[tuple[int, str]] = field(default_factory=list)

    def add(self, square: F32, frame: int, label: int = 0, early: bool = False) -> None:
        self.squares.append(square)
        self.frames.append(frame)
        self.labels.append(label)
        self.early.append(int(early))


def examples(series: Series, reader: Reader, recipe: Recipe) -> Examples:
    """Return the examples of one series; memory is that of its squares, never of its whole planes.

    A plane that cannot be taken becomes a reject, whatever a decoder raises.
    """
    try:
        if recipe.lesion is not None and recipe.lesion.patch_mm is not None:
            draft = _patches(series, reader, recipe, recipe.lesion)
        else:
            draft = _slices(series, reader, recipe)
    except ImportFault as fault:
        draft = _Draft(rejects=[(row, str(fault)) for row in range(len(series.frames))])
    return _scaled(series, draft, recipe)


def _slices(series: Series, reader: Reader, recipe: Recipe) -> _Draft:
    draft = _Draft()
    whole = _Planes(series, reader, recipe)
    wanted, left = _wanted(series, recipe)
    draft.rejects += [(row, THINNED) for row in left]
    labels = _slice_labels(whole, recipe.lesion, wanted, draft) if recipe.lesion else dict.fromkeys(wanted, (0, False))
    for row, (label, early) in labels.items():
        square = whole.stacked(row)
        if isinstance(square, str):
            draft.rejects.append((row, square))
        else:
            draft.add(square, row, label, early)
    return draft


def _wanted(series: Series, recipe: Recipe) -> tuple[list[int], list[int]]:
    """Rows to take, and those that are thinned out."""
    rows = list(range(len(series.frames)))
    if series.is_volume and recipe.every_mm > 0:
        positions, kept = series.positions_mm, [0]
        for row in rows[1:]:
            if positions[row] - positions[kept[-1]] >= recipe.every_mm * (1 - EVEN_SHARE):
                kept.append(row)
        rows = kept
    if recipe.max_slices is not None and recipe.lesion is None:
        rows = thinned(rows, recipe.max_slices)
    chosen = set(rows)
    return rows, [row for row in range(len(series.frames)) if row not in chosen]


def _slice_labels(
    whole: "_Planes", rule: LesionRule, wanted: Sequence[int], draft: _Draft
) -> dict[int, tuple[int, bool]]:
    """The label of each wanted slice, and whether all of its lesions are early."""
    lesions = whole.lesions()
    labels: dict[int, tuple[int, bool]] = {}
    for row in wanted:
        found = lesions.of_row(row)
        area_mm2 = sum(spot.area_mm2 for spot, _ in found)
        if 0 < area_mm2 < rule.least_mm2:
            draft.rejects.append((row, SMALL_LESION))
        else:
            labels[row] = (int(area_mm2 > 0), bool(found) and max(mm for _, mm in found) <= rule.early_mm)
    if rule.negatives is None:
        return labels
    empty = [row for row, (label, _) in labels.items() if not label]
    keep = set(thinned(empty, round(rule.negatives * (len(labels) - len(empty)))))
    draft.rejects += [(row, THINNED) for row in empty if row not in keep]
    return {row: label for row, label in labels.items() if label[0] or row in keep}


class _Planes:
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
            mask = self._mask(row)
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

    def _mask(self, row: int) -> Mask | None:
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


def _patches(series: Series, reader: Reader, recipe: Recipe, rule: LesionRule) -> _Draft:
    """Squares of `patch_mm` around each lesion, and as many in the same slices that hold none."""
    draft = _Draft()
    whole = _Planes(series, reader, recipe)
    lesions = whole.lesions()
    for row in range(len(series.frames)):
        spots = [(spot, mm) for spot, mm in lesions.of_row(row) if spot.area_mm2 >= rule.least_mm2]
        plane = whole.plane(row) if spots else THINNED
        if isinstance(plane, str):
            draft.rejects.append((row, plane))
            continue
        for spot, diameter_mm in spots:
            draft.add(_cut(plane, spot.centre, recipe.square, rule)[None], row, 1, diameter_mm <= rule.early_mm)
        wanted = len(spots) if rule.negatives is None else round(rule.negatives * len(spots))
        mask = reader.lesion(row)
        taken = np.zeros(plane.pixels.shape, bool) if mask is None else mask.pixels.copy()
        centres = list(_beside(plane, taken, _sides(plane, rule), wanted))
        for centre in centres:
            draft.add(_cut(plane, centre, recipe.square, rule)[None], row)
        if len(centres) < wanted:
            draft.rejects.append((row, NO_PATCH))
    return draft


def _sides(plane: Plane, rule: LesionRule) -> Pixel:
    side_mm = rule.patch_mm or 0.0
    return Pixel(max(2, round(side_mm / plane.millimetres.down)), max(2, round(side_mm / plane.millimetres.right)))


def _cut(plane: Plane, centre: Pixel, square: Square, rule: LesionRule) -> F32:
    """A patch around a pixel as a square; what lies outside of the plane is its smallest value."""
    rows, columns = _sides(plane, rule)
    top, left = centre[0] - rows // 2, centre[1] - columns // 2
    padded = np.full((rows, columns), plane.pixels.min(), np.float32)
    down = slice(max(top, 0), min(top + rows, plane.pixels.shape[0]))
    right = slice(max(left, 0), min(left + columns, plane.pixels.shape[1]))
    padded[down.start - top : down.stop - top, right.start - left : right.stop - left] = plane.pixels[down, right]
    return to_square(Plane(padded, plane.spacing_mm), Square(square.size))


def _beside(plane: Plane, taken: Bool, sides: Pixel, wanted: int) -> Iterator[Pixel]:
    """Centres of patches inside the body that touch nothing `taken`; the same for the same plane."""
    body = plane.pixels > (float(plane.pixels.min()) + float(plane.pixels.max())) / 4
    inside = np.argwhere(body)
    random = np.random.default_rng(len(inside))
    found = 0
    for place in random.permutation(len(inside))[: PATCH_TRIES * wanted]:
        if found == wanted:
            return
        down, right = (int(value) for value in inside[place])
        near = taken[_around(down, sides[0]), _around(right, sides[1])]
        if not near.any():
            near[...] = True
            found += 1
            yield Pixel(down, right)


def _around(at: int, side: int) -> slice:
    return slice(max(0, at - side // 2), at + side // 2 + 1)


def _scaled(series: Series, draft: _Draft, recipe: Recipe) -> Examples:
    """Put squares on the pixel scale: by window for CT, else by percentiles of the volume, or of each single image."""
    keep: list[int] = list(range(len(draft.squares)))
    scales = windows(recipe.window)
    if series.modality == "CT":
        images = [_windowed(square, scales) for square in draft.squares]
    else:
        whole = percentile_scale(np.stack(draft.squares)) if series.is_volume and draft.squares else None
        by_image = [whole if series.is_volume else percentile_scale(square) for square in draft.squares]
        keep = [number for number, scale in enumerate(by_image) if scale is not None]
        images = [scale.apply(square) for square, scale in zip(draft.squares, by_image, strict=True) if scale]
        draft.rejects += [(draft.frames[n], CONSTANT) for n in range(len(by_image)) if by_image[n] is None]
    channels = recipe.stack * (max(1, len(scales)) if series.modality == "CT" else 1)
    empty = np.empty((0, channels, recipe.square.size, recipe.square.size), np.uint8 if scales else np.float32)
    return Examples(
        np.stack(images) if images else empty,
        np.array(draft.frames, np.int64)[keep],
        np.array(draft.labels, np.int64)[keep],
        np.array(draft.early, np.uint8)[keep],
        tuple(sorted(set(draft.rejects))),
    )


def _windowed(square: F32, scales: Sequence[Scale]) -> Images:
    """Channels of one example: each slice of the stack through each window; without windows Hounsfield units."""
    if not scales:
        return np.clip(square, *HOUNSFIELD_RANGE)
    return np.concatenate([scale.apply(square) for scale in scales])
