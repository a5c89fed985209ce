"""One plane to the square that a shard stores: a fixed number of pixels, or a fixed number of millimetres a pixel."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from data_prep.importers.volume import Plane
from fedhpc.util.arrays import F32


@dataclass(frozen=True)
class Square:
    """The stored square.

    Attributes:
        size: pixels a side.
        pixel_mm: millimetres a pixel, the middle of the field of view cut out or padded; None: the whole field of view
            fits in.
    """

    size: int
    pixel_mm: float | None = None


def to_square(plane: Plane, square: Square) -> F32:
    """Return float32 [size, size] of `plane`, with true proportions, padded by its smallest value (private)."""
    rows, columns = plane.pixels.shape
    ground = plane.pixels.min()
    row_mm, column_mm = plane.millimetres
    height_mm, width_mm = rows * row_mm, columns * column_mm
    pixel_mm = square.pixel_mm or max(height_mm, width_mm) / square.size
    height, width = (max(1, round(side_mm / pixel_mm)) for side_mm in (height_mm, width_mm))
    if (height, width) == (rows, columns):
        scaled = _middle(plane.pixels, square.size)
    else:
        # Of a fine grid only the middle is computed: the whole may be thousands of times as large.
        product = lanczos(rows, height, square.size) @ plane.pixels @ lanczos(columns, width, square.size).T
        # The filter overshoots at edges: beyond the image's own values there is nothing.
        scaled = np.asarray(product, np.float32).clip(ground, plane.pixels.max())
    if scaled.shape == (square.size, square.size):
        return scaled
    return _padded(scaled, square.size, float(ground))


@lru_cache(maxsize=64)
def lanczos(side: int, wanted: int, most: int) -> F32:
    """Return the middle of Pillow's Lanczos filter from `side` to `wanted` pixels, [min(wanted, most), side].

    Two products of matrices give what Pillow gives, in a third of the time.
    """
    start, count = _cut(wanted, most)
    box = (0, start * side / wanted, side, (start + count) * side / wanted)
    unit = Image.fromarray(np.eye(side, dtype=np.float32))
    return np.ascontiguousarray(unit.resize((side, count), Image.Resampling.LANCZOS, box), np.float32)


def _middle(pixels: F32, most: int) -> F32:
    (row, rows), (column, columns) = (_cut(side, most) for side in pixels.shape)
    return pixels[row : row + rows, column : column + columns]


def _cut(side: int, most: int) -> tuple[int, int]:
    """Where the middle of `side` pixels begins, and how many it has: at most `most`."""
    return max(0, (side - most) // 2), min(side, most)


def _padded(pixels: F32, size: int, ground: float) -> F32:
    out = np.full((size, size), ground, np.float32)
    rows, columns = pixels.shape
    row, column = (size - rows) // 2, (size - columns) // 2
    out[row : row + rows, column : column + columns] = pixels
    return out
