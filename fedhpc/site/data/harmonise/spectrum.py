"""Amplitudes of the lowest spatial frequencies: of an image, and replaced by those of a public reference (private)."""

import numpy as np
from numpy.typing import NDArray

from fedhpc.util.arrays import F32


def amplitude_of(x: F32, size: int) -> NDArray[np.float64]:
    """Return the amplitudes of the `size` x `size` lowest frequencies of each channel, a pixel: [b, C, size, size]."""
    spectrum = np.fft.fftshift(np.fft.fft2(x.astype(np.float64)), axes=(2, 3))
    rows, columns = _middle(x.shape, size)
    return np.asarray(np.abs(spectrum[:, :, rows, columns]) / (x.shape[2] * x.shape[3]))


def with_amplitude(x: F32, amplitude: NDArray[np.float64]) -> F32:
    """Return `x` with the amplitudes [k, k] of its lowest frequencies, and its own phases."""
    spectrum = np.fft.fftshift(np.fft.fft2(x.astype(np.float64)), axes=(2, 3))
    rows, columns = _middle(x.shape, len(amplitude))
    part = spectrum[:, :, rows, columns]
    spectrum[:, :, rows, columns] = np.exp(1j * np.angle(part)) * amplitude * (x.shape[2] * x.shape[3])
    back = np.fft.ifft2(np.fft.ifftshift(spectrum, axes=(2, 3)))
    return np.asarray(back.real, np.float32)


def _middle(shape: tuple[int, ...], size: int) -> tuple[slice, slice]:
    """Where frequency 0 and its neighbours lie after `fftshift`."""
    if size % 2 == 0 or size > min(shape[2:]):
        raise ValueError(f"harmonise: amplitude of {size} frequencies a side; allowed: odd, and no more than pixels")
    starts = [side // 2 - size // 2 for side in shape[2:]]
    return slice(starts[0], starts[0] + size), slice(starts[1], starts[1] + size)
