"""Which pixels of an image show the patient: the largest piece above Otsu's threshold, its holes filled (private)."""

import numpy as np
from numpy.typing import NDArray

from fedhpc.util.arrays import F32

BINS = 256
LEAST_SHARE = 0.02
"""A foreground of less than this share of the image is no body: all pixels count."""


def otsu(pixels: F32) -> float:
    """Return the threshold that separates two classes best (Otsu 1979); of a constant image its value.

    Where several thresholds are equally good, the middle one.
    """
    low, high = float(pixels.min()), float(pixels.max())
    if not high > low:
        return low
    counts, edges = np.histogram(pixels, BINS, (low, high))
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = pixels.size - below
    sum_below = np.cumsum(counts * centres)
    with np.errstate(invalid="ignore", divide="ignore"):
        between = below * above * (sum_below / below - (sum_below[-1] - sum_below) / above) ** 2
    between = np.nan_to_num(between[:-1])
    best = np.flatnonzero(between >= between.max() * (1 - 1e-9))
    return float(edges[1 + round((best[0] + best[-1]) / 2)])


def foreground(images: F32) -> NDArray[np.bool_]:
    """Return the foreground of each channel of each image.

    Args:
        images: float32 [b, C, H, W], or [b, C, D, H, W], whose foreground is one piece of the volume (private).

    Returns:
        bool of the same shape, never empty (private).
    """
    masks = np.empty(images.shape, np.bool_)
    for index in np.ndindex(images.shape[:2]):
        masks[index] = _largest(images[index])
    return masks


def _largest(pixels: F32) -> NDArray[np.bool_]:
    from scipy import ndimage

    pieces, count = ndimage.label(pixels > otsu(pixels))
    if not count:
        return np.ones(pixels.shape, np.bool_)
    sizes = np.bincount(pieces.reshape(-1))
    body: NDArray[np.bool_] = ndimage.binary_fill_holes(pieces == 1 + int(sizes[1:].argmax()))
    return body if body.mean() >= LEAST_SHARE else np.ones(pixels.shape, np.bool_)
