"""Patches around points of one plane: where they lie, and how they are cut out (private)."""

from collections.abc import Iterator

import numpy as np

from data_prep.importers.resample import Square, to_square
from data_prep.importers.volume import Bool, Pixel, Plane
from fedhpc.util.arrays import F32

PATCH_TRIES = 64


def sides_of(plane: Plane, side_mm: float) -> Pixel:
    """Return the rows and columns of a patch of so many millimetres."""
    return Pixel(max(2, round(side_mm / plane.millimetres.down)), max(2, round(side_mm / plane.millimetres.right)))


def cut_out(plane: Plane, centre: Pixel, side_mm: float, size: int) -> F32:
    """Return a patch around a pixel as f32[size, size]; what lies outside of the plane is its smallest value."""
    rows, columns = sides_of(plane, side_mm)
    top, left = centre[0] - rows // 2, centre[1] - columns // 2
    padded = np.full((rows, columns), plane.pixels.min(), np.float32)
    height, width = plane.pixels.shape
    down = slice(min(max(top, 0), height), min(max(top + rows, 0), height))
    right = slice(min(max(left, 0), width), min(max(left + columns, 0), width))
    padded[down.start - top : down.stop - top, right.start - left : right.stop - left] = plane.pixels[down, right]
    return to_square(Plane(padded, plane.spacing_mm), Square(size))


def beside(plane: Plane, taken: Bool, sides: Pixel, wanted: int) -> Iterator[Pixel]:
    """Yield centres of patches inside the body that touch nothing `taken`; the same for the same plane."""
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
