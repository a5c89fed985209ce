"""Noise-adaptive smoothing: a Wiener filter whose strength is the noise that the image itself shows (private)."""

import numpy as np
from numpy.typing import NDArray

from fedhpc.util.arrays import F32

LAPLACIANS = np.array([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]])


def noise_of(x: F32) -> NDArray[np.float64]:
    """Return the standard deviation of the noise of each channel of each image: [b, C, 1, 1].

    Immerkaer 1996, "Fast Noise Variance Estimation": the difference of two Laplacians, which edges hardly show in.
    """
    from scipy import ndimage

    edges = ndimage.convolve(x.astype(np.float64), LAPLACIANS[None, None])[:, :, 1:-1, 1:-1]
    mean = np.abs(edges).mean(axis=(2, 3), keepdims=True)
    return np.asarray(np.sqrt(np.pi / 2) / 6 * mean)


def smoothed(x: F32, size: int, strength: float) -> F32:
    """Return `x` pulled to its local mean by the share of the local variance that is noise (Lim 1990, ch. 9)."""
    from scipy import ndimage

    wide = x.astype(np.float64)
    window = (1, 1, size, size)
    mean = ndimage.uniform_filter(wide, window, mode="reflect")
    variance = np.maximum(ndimage.uniform_filter(wide**2, window, mode="reflect") - mean**2, 0)
    noise = (strength * noise_of(x)) ** 2
    kept = np.maximum(variance - noise, 0) / np.maximum(variance, np.maximum(noise, 1e-30))
    return np.asarray(mean + kept * (wide - mean), np.float32)
