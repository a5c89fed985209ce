"""3-D patches of one volume: around its lesions and beside them, or in a grid over all of it (private).

Voxels are resampled to one size: in its plane each slice goes by Pillow's Lanczos filter, as 2-D patches do; for the
way from slice to slice see `weights_of`. Memory is that of the planes of one patch, and of the patches themselves.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from data_prep.importers.lesions import LesionRule, Lesions, Spot, thinned
from data_prep.importers.patches import beside, cut_out, sides_of
from data_prep.importers.planes import CONSTANT, NO_PATCH, SMALL_LESION, Draft, Planes
from data_prep.importers.recipe import Recipe
from data_prep.importers.volume import ImportFault, Mask, Pixel, Plane, Series, step_mm
from data_prep.importers.voxels import Voxels, offsets, weights_of
from fedhpc.util.arrays import F32

NO_VOLUME = "a single image or slice, of which no 3-D patch can be cut"
UNUSED = "in no 3-D patch that was taken"
GAP = "beside a missing slice: no 3-D patch can be cut there"
TOO_MANY = "a volume that makes too many 3-D patches: give a larger --pixel-mm, or --max-slices"
EMPTY = "of a 3-D patch that shows almost nothing but the ground"
MOST_PLACES, MOST_PATCH_VOXELS = 2**20, 2**28
"""Of one volume: its patches lie in memory together, as float32."""
GAP_STEPS, MASKS = 1.5, 64
"""A step of so many usual ones is a gap; masks of so many slices are kept."""
BODY_SHARE, GROUND_SHARE, PERCENTILES, SAMPLE = 0.1, 0.1, (1.0, 99.0), 2**14
"""Less of a patch than this share above the ground is left out; the ground, of the range between two percentiles; of
so many voxels a patch."""


@dataclass(frozen=True)
class Place:
    """Where a patch lies.

    Attributes:
        z_mm: of its middle, along the slices' normal.
        centre: row and column of its middle, in the plane nearest to that.
        label, early: as of an example.
    """

    z_mm: float
    centre: Pixel
    label: int = 0
    early: bool = False


def blocks(series: Series, planes: Planes, recipe: Recipe) -> Draft:
    """Return the 3-D patches of a series, [1, D, H, W] each, as examples in the making.

    Raises:
        ImportFault: it is no volume, or its contours or masks cannot be read.
    """
    if not series.is_volume:
        raise ImportFault(NO_VOLUME)
    draft, rule = Draft(), recipe.lesion
    volume = _Volume(series, planes, recipe)
    if rule is not None and rule.patch_mm is not None:
        places = _around_lesions(volume, rule, draft)
    else:
        places = _grid(volume, rule, draft)
    _cut_all(volume, places, draft)
    if rule is None or rule.patch_mm is None:
        _drop_ground(draft)
    # A slice that cannot be read says so; all others are in a patch, or are listed as in none.
    told = {row for row, _ in draft.rejects}
    draft.rejects += [(row, UNUSED) for row in range(len(series.frames)) if row not in volume.used | told]
    return draft


class _Volume:
    """The planes of a series in their places, those around the last patch kept."""

    def __init__(self, series: Series, planes: Planes, recipe: Recipe) -> None:
        self._series, self._planes = series, planes
        self._kept, self._masks = dict[int, Plane | str](), dict[int, Mask | None]()
        self.positions_mm = series.positions_mm
        self.step_mm, self.used = step_mm(self.positions_mm), set[int]()
        self.first, self.most = self._first(), recipe.max_slices
        self.voxels = self._voxels(recipe)

    def plane(self, row: int) -> Plane | str:
        """The plane, or why it cannot be taken."""
        if row not in self._kept:
            self._kept[row] = self._planes.plane(row)
        return self._kept[row]

    def lesions(self) -> Lesions:
        """Pieces of lesions in all slices."""
        return self._planes.lesions()

    def lesion_mm2(self, row: int, place: Place) -> float:
        """The area of lesion in one slice of the patch at a place."""
        if row not in self._masks:
            self._masks = {other: mask for other, mask in self._masks.items() if abs(other - row) < MASKS}
            self._masks[row] = self._planes.mask(row)
        mask = self._masks[row]
        if mask is None:
            return 0.0
        window = self.window(self._shifted(place.centre, self.row_at(place.z_mm), row), mask.pixels.shape)
        return float(mask.pixels[window].sum() * mask.spacing_mm.down * mask.spacing_mm.right)

    def row_at(self, z_mm: float) -> int:
        """The slice nearest to a place."""
        return int(np.abs(self.positions_mm - z_mm).argmin())

    def rows_of(self, z_mm: float) -> range:
        """The slices that a patch around a place touches."""
        coarser = self.voxels.slice_mm > self.step_mm
        reach = (self.voxels.depth_mm - self.voxels.slice_mm) / 2 + coarser * self.voxels.slice_mm
        # From the slice before the first plane to the one behind the last, or these themselves.
        reach -= 1e-3 * self.step_mm
        low = int(np.searchsorted(self.positions_mm, z_mm - reach, "right")) - 1
        high = int(np.searchsorted(self.positions_mm, z_mm + reach)) + 1
        return range(max(low, 0), min(high, len(self.positions_mm)))

    def inside(self, z_mm: float) -> range:
        """The slices that lie in a patch around a place."""
        ends = (z_mm - self.voxels.depth_mm / 2, z_mm + self.voxels.depth_mm / 2)
        low, high = np.searchsorted(self.positions_mm, ends)
        return range(int(low), int(high))

    def keep(self, rows: range) -> None:
        """Forget the planes of other rows."""
        self._kept = {row: plane for row, plane in self._kept.items() if row in rows}

    def block(self, place: Place) -> F32 | str:
        """f32[1, D, H, W] at a place, or why not; beyond the volume it is the patch's smallest value."""
        rows, middle = self.rows_of(place.z_mm), self.row_at(place.z_mm)
        self.keep(rows)
        if len(rows) > 1 and np.diff(self.positions_mm[rows.start : rows.stop]).max() > GAP_STEPS * self.step_mm:
            return GAP
        squares = []
        for row in rows:
            plane = self.plane(row)
            if isinstance(plane, str):
                return plane
            at = self._shifted(place.centre, middle, row)
            squares.append(cut_out(plane, at, self.voxels.side_mm, self.voxels.size))
        weights = weights_of(place.z_mm, self.voxels, self.positions_mm[rows.start : rows.stop], self.step_mm)
        stack = np.stack(squares)
        block = np.tensordot(weights, stack, 1).astype(np.float32)
        block[~weights.any(axis=1)] = stack.min()
        self.used |= set(rows)
        return CONSTANT if block.min() == block.max() else block[None]

    def _shifted(self, centre: Pixel, middle: int, row: int) -> Pixel:
        """The same place in another plane, which begins elsewhere under gantry tilt."""
        here, there = self._series.frames[row].shift_mm, self._series.frames[middle].shift_mm
        down = (there.down - here.down) / self.first.millimetres.down
        right = (there.right - here.right) / self.first.millimetres.right
        return Pixel(centre.row + round(down), centre.column + round(right))

    def window(self, centre: Pixel, shape: tuple[int, ...]) -> tuple[slice, slice]:
        """The pixels of a plane that the patch around a pixel covers."""
        sides = sides_of(self.first, self.voxels.side_mm)
        starts = (centre.row - sides.row // 2, centre.column - sides.column // 2)
        down, right = (
            slice(min(max(start, 0), most), min(max(start + side, 0), most))
            for start, side, most in zip(starts, sides, shape, strict=True)
        )
        return down, right

    def _first(self) -> Plane:
        for row in range(len(self._series.frames)):
            plane = self.plane(row)
            if isinstance(plane, Plane):
                return plane
        raise ImportFault(str(self.plane(0)))

    def _voxels(self, recipe: Recipe) -> Voxels:
        depth, size = recipe.depth, recipe.square.size
        if depth is None:
            raise ValueError("depth=None: 3-D patches need one")
        if recipe.lesion is not None and recipe.lesion.patch_mm is not None:
            pixel_mm = recipe.lesion.patch_mm / size
        else:
            pixel_mm = recipe.square.pixel_mm or self._fitting_mm(size, None if depth.slice_mm else depth.planes)
        return Voxels(depth.planes, size, depth.slice_mm or pixel_mm, pixel_mm)

    def _fitting_mm(self, size: int, planes: int | None) -> float:
        """The voxel by which all of the volume fits into a patch."""
        lengths = [side * mm / size for side, mm in zip(self.first.pixels.shape, self.first.millimetres, strict=True)]
        return float(max(*lengths, self.extent_mm / planes if planes else 0.0))

    @property
    def extent_mm(self) -> float:
        """From the first to the last slice, both included."""
        return float(self.positions_mm[-1] - self.positions_mm[0]) + self.step_mm


def _cut_all(volume: _Volume, places: Sequence[Place], draft: Draft) -> None:
    """Along the volume, so that each plane is read once where patches of one depth lie side by side."""
    for place in sorted(places, key=lambda place: place.z_mm):
        row, block = volume.row_at(place.z_mm), volume.block(place)
        if isinstance(block, str):
            draft.rejects.append((row, block))
        else:
            draft.add(block, row, place.label, place.early)


def _around_lesions(volume: _Volume, rule: LesionRule, draft: Draft) -> list[Place]:
    """One patch around the middle of each lesion, and as many beside them, whose boxes hold none."""
    lesions = volume.lesions()
    whole = [(spots, mm) for spots, mm in lesions.whole() if max(s.area_mm2 for s in spots) >= rule.least_mm2]
    large = {spot.row for spots, _ in whole for spot in spots}
    draft.rejects += [(row, SMALL_LESION) for row in sorted({spot.row for spot in lesions.spots} - large)]
    positive, negative = [], list[Place]()
    share = 1.0 if rule.negatives is None else rule.negatives
    for number, (spots, diameter_mm) in enumerate(whole):
        middle = _middle(volume, spots)
        z_mm = float(volume.positions_mm[middle.row])
        positive.append(Place(z_mm, middle.centre, 1, diameter_mm <= rule.early_mm))
        wanted = int((number + 1) * share) - int(number * share)
        negative += _beside_lesions(volume, lesions, negative, positive[-1], wanted)
        if len(negative) < int((number + 1) * share):
            draft.rejects.append((middle.row, NO_PATCH))
    return [*positive, *negative]


def _middle(volume: _Volume, spots: Sequence[Spot]) -> Spot:
    """The piece of a lesion that is nearest to its centre of mass along the slices."""
    positions = volume.positions_mm[[spot.row for spot in spots]]
    centre_mm = np.average(positions, weights=[spot.area_mm2 for spot in spots])
    return spots[int(np.abs(positions - centre_mm).argmin())]


def _beside_lesions(
    volume: _Volume, lesions: Lesions, others: Sequence[Place], beside_what: Place, wanted: int
) -> list[Place]:
    row, z_mm = volume.row_at(beside_what.z_mm), beside_what.z_mm
    plane = volume.plane(row)
    if isinstance(plane, str) or not wanted:
        return []
    sides = sides_of(plane, volume.voxels.side_mm)
    taken = np.zeros(plane.pixels.shape, np.bool_)
    for spot in lesions.spots:
        if spot.row in volume.rows_of(z_mm):
            taken[spot.box] = True
    for other in others:
        if abs(other.z_mm - z_mm) < volume.voxels.depth_mm:
            taken[volume.window(other.centre, taken.shape)] = True
    return [Place(z_mm, centre) for centre in beside(plane, taken, sides, wanted)]


def _grid(volume: _Volume, rule: LesionRule | None, draft: Draft) -> list[Place]:
    """Patches side by side over the whole volume; by lesions, the label is whether one is inside."""
    voxels, plane = volume.voxels, volume.first
    middle_mm = float(volume.positions_mm[0] + volume.positions_mm[-1]) / 2
    levels = [middle_mm + away for away in offsets(volume.extent_mm, voxels.depth_mm)]
    down, right = (
        [round(side / 2 - 0.5 + away / mm) for away in offsets(side * mm, voxels.side_mm)]
        for side, mm in zip(plane.pixels.shape, plane.millimetres, strict=True)
    )
    count = len(levels) * len(down) * len(right)
    if count > MOST_PLACES or min(count, volume.most or count) * voxels.planes * voxels.size**2 > MOST_PATCH_VOXELS:
        raise ImportFault(TOO_MANY)
    places = [Place(z_mm, Pixel(y, x)) for z_mm in levels for y in down for x in right]
    if rule is not None:
        places = _labelled(volume, places, rule, draft)
    most = volume.most
    return [places[number] for number in thinned(range(len(places)), len(places) if most is None else most)]


def _labelled(volume: _Volume, places: Sequence[Place], rule: LesionRule, draft: Draft) -> list[Place]:
    """The same places with their labels; those with too little lesion, and thinned out ones without, are left out."""
    lesions = volume.lesions()
    pieces = {row: lesions.of_row(row) for row in {spot.row for spot in lesions.spots}}
    with_lesion, empty = list[Place](), list[Place]()
    for place in places:
        rows = [row for row in volume.inside(place.z_mm) if row in pieces]
        found_mm2 = [volume.lesion_mm2(row, place) for row in rows]
        if not any(found_mm2):
            empty.append(place)
        elif max(found_mm2) < rule.least_mm2:
            draft.rejects.append((volume.row_at(place.z_mm), SMALL_LESION))
        else:
            largest_mm = max(mm for row in rows for _, mm in pieces[row])
            with_lesion.append(replace(place, label=1, early=largest_mm <= rule.early_mm))
    if rule.negatives is not None:
        kept = thinned(range(len(empty)), round(rule.negatives * len(with_lesion)))
        empty = [empty[number] for number in kept]
    return [*with_lesion, *empty]


def _drop_ground(draft: Draft) -> None:
    """Leave out patches that are darker, nearly all of them, than a tenth of the range of all patches of the volume.

    Not by Otsu's threshold: a little metal or contrast medium would put it above the body.
    """
    if not draft.squares:
        return
    flat = np.concatenate([one.reshape(-1)[:: max(1, one.size // SAMPLE)] for one in draft.squares])
    low, high = np.percentile(flat, PERCENTILES)
    threshold = low + GROUND_SHARE * (high - low)
    kept = [number for number, one in enumerate(draft.squares) if (one > threshold).mean() >= BODY_SHARE]
    draft.rejects += [(draft.frames[n], EMPTY) for n in range(len(draft.squares)) if n not in set(kept)]
    draft.keep(kept)
