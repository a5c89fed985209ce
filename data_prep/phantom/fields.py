"""Smooth random fields and the picture's grid: what anatomy, lesions and both modalities share."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from fedhpc.util.arrays import F32

FIELD_OF_VIEW_MM = 224.0  # a head with scalp is about 170 x 200 mm
OVERSAMPLING = 2  # rendering is finer than the picture, so that a pixel averages over its area
ORDER = 5


@dataclass(frozen=True)
class PixelGrid:
    """A square picture of `size` pixels over the field of view; rendered OVERSAMPLING times finer."""

    size: int

    @property
    def fine_size(self) -> int:
        return self.size * OVERSAMPLING

    @property
    def fine_pixel_mm(self) -> float:
        return FIELD_OF_VIEW_MM / self.fine_size

    @property
    def pixel_mm(self) -> float:
        return FIELD_OF_VIEW_MM / self.size

    def fine_positions_mm(self) -> F32:
        """Distance in mm of each fine row or column from the middle of the picture, float32 (fine_size,)."""
        half = (self.fine_size - 1) / 2
        return ((np.arange(self.fine_size) - half) * self.fine_pixel_mm).astype(np.float32)


@lru_cache(maxsize=8)
def cosine_basis(size: int) -> F32:
    """Cosines of 0 to ORDER - 1 half periods over `size` samples, float32 (size, ORDER)."""
    place = (np.arange(size) + 0.5) / size
    return np.cos(np.pi * place[:, None] * np.arange(ORDER)).astype(np.float32)


def draw_coefficients(rng: np.random.Generator, fields: int) -> F32:
    """Normal weights of `fields` cosine fields of unit variance without a mean, float32 (fields, ORDER, ORDER)."""
    wave = np.hypot(*np.mgrid[:ORDER, :ORDER])
    spread = np.where(wave > 0, 1.0 / (1.0 + wave**2), 0.0)
    weight = np.where(np.arange(ORDER) > 0, 0.5, 1.0)  # mean square of a cosine
    spread /= np.sqrt(np.sum(spread**2 * np.outer(weight, weight)))
    return (rng.standard_normal((fields, ORDER, ORDER)) * spread).astype(np.float32)


def smooth_fields(coefficients: F32, size: int) -> F32:
    """Evaluate cosine fields on a square: (fields, ORDER, ORDER) -> (fields, size, size)."""
    basis = cosine_basis(size)
    fields = basis @ coefficients @ basis.T
    return fields.astype(np.float32, copy=False)


def speckle(rng: np.random.Generator, grid: PixelGrid, sigma_mm: float) -> F32:
    """Gaussian noise of unit variance, smoothed by a Gaussian of sigma_mm, float32 (fine_size, fine_size)."""
    white = rng.standard_normal((grid.fine_size, grid.fine_size), dtype=np.float32)
    sigma = sigma_mm / grid.fine_pixel_mm
    smooth: F32 = ndimage.gaussian_filter(white, sigma, mode="wrap", truncate=3.0)
    unit: F32 = smooth / np.float32(smooth.std())
    return unit


def mix(values: NDArray[np.float64], fractions: F32) -> F32:
    """Partial volume: the sum of tissue values (T,) weighted by fractions (T, P, P) -> float32 (P, P)."""
    mixed: F32 = (values.astype(np.float32) @ fractions.reshape(len(values), -1)).reshape(fractions.shape[1:])
    return mixed


def detect(fine: F32, grid: PixelGrid, psf_fwhm_mm: float) -> F32:
    """Blur by the point spread (Gaussian, full width at half maximum in mm) and average to picture pixels.

    (fine_size, fine_size) -> (size, size); the Gaussian point spread of MRI with a smooth k-space filter and of CT.
    """
    sigma = psf_fwhm_mm / 2.3548 / grid.fine_pixel_mm
    blurred = ndimage.gaussian_filter(fine, sigma, mode="nearest", truncate=3.0)
    blocks = blurred.reshape(grid.size, OVERSAMPLING, grid.size, OVERSAMPLING)
    averaged: F32 = blocks.mean(axis=(1, 3), dtype=np.float32)
    return averaged


def to_uint8(image: F32, low: float, high: float) -> NDArray[np.uint8]:
    """Map [low, high] to [0, 255] by rounding, clipping what lies outside."""
    scaled = (image - np.float32(low)) * np.float32(255.0 / (high - low))
    grey: NDArray[np.uint8] = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    return grey
