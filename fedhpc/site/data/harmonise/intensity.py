"""Steps on intensities: z-score, windows, percentiles, landmarks; float32 [b, C, H, W] or [b, C, D, H, W] in and out.

All is private. A volume is one image: mean, percentiles and foreground are of all its voxels.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, cat
from torch import where as choose

from fedhpc.util.arrays import F32

PERCENTILES = (1.0, *(10.0 * tenth for tenth in range(1, 10)), 99.0)
"""Of the foreground, that Nyul's landmarks stand for."""


def location_and_scale(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each channel of each image, [b, C, 1, ...] both; 1 for a deviation of 0.

    Both are a function of the image alone. PyTorch divides one large sum among its threads, and of several sums gives
    each to one thread: without company an image would be rounded otherwise than in a block, so that one patient more or
    less would move another's score.
    """
    if x.shape[:2].numel() == 1:
        location, scale = location_and_scale(cat([x, x]))
        return location[:1], scale[:1]
    pixels = tuple(range(2, x.ndim))
    location = x.mean(dim=pixels, keepdim=True)
    scale = (x - location).square().mean(dim=pixels, keepdim=True).sqrt()
    return location, choose(scale > 0, scale, 1.0)


def zscore(x: Tensor) -> Tensor:
    """Return each channel of each image with mean 0 and standard deviation 1; a constant one is 0."""
    location, scale = location_and_scale(x)
    return (x - location) / scale


def zscore_inside(x: F32, mask: NDArray[np.bool_]) -> F32:
    """Return `x` minus the mean, over the standard deviation, of the pixels inside `mask`."""
    pixels = tuple(range(2, x.ndim))
    count = mask.sum(axis=pixels, keepdims=True)
    centred = x - (x * mask).sum(axis=pixels, keepdims=True) / count
    scale = np.sqrt((centred**2 * mask).sum(axis=pixels, keepdims=True) / count)
    return np.asarray(centred / np.where(scale > 0, scale, 1), np.float32)


def windowed(x: F32, centre: float, width: float) -> F32:
    """Return 0 for values below the window, 1 above it."""
    return np.asarray(np.clip((x - (centre - width / 2)) / width, 0, 1), np.float32)


def clipped(x: F32, low: float, high: float) -> F32:
    """Return `x` between two percentiles of each image's channel."""
    ends = np.percentile(x, (low, high), axis=tuple(range(2, x.ndim)), keepdims=True)
    return np.asarray(np.clip(x, *ends), np.float32)


def landmarks_of(x: F32, mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the percentiles of the foreground of each channel of each image: [b, C, 11]."""
    found = [np.percentile(x[index][mask[index]], PERCENTILES) for index in np.ndindex(x.shape[:2])]
    return np.array(found, np.float64).reshape(*x.shape[:2], len(PERCENTILES))


def onto_landmarks(x: F32, mask: NDArray[np.bool_], landmarks: Sequence[float]) -> F32:
    """Return `x` with the percentiles of its foreground on `landmarks`, straight in between and beyond."""
    own, wanted = landmarks_of(x, mask), np.asarray(landmarks, np.float64)
    out = np.empty_like(x)
    for index in np.ndindex(x.shape[:2]):
        out[index] = _piecewise(x[index], own[index], wanted)
    return out


def _piecewise(pixels: F32, own: NDArray[np.float64], wanted: NDArray[np.float64]) -> F32:
    steps = np.diff(own)
    if not (steps > 0).all():
        # Equal percentiles, as in an image of few grey values: only the ends are matched.
        own, wanted = own[[0, -1]], wanted[[0, -1]]
        if not own[1] > own[0]:
            return pixels - np.float32(own[0]) + np.float32(wanted.mean())
    slopes = np.diff(wanted) / np.diff(own)
    piece = np.clip(np.searchsorted(own, pixels) - 1, 0, len(slopes) - 1)
    return np.asarray(wanted[piece] + (pixels - own[piece]) * slopes[piece], np.float32)
