"""Computed tomography of a map of tissue fractions: Hounsfield units, point spread, correlated noise, window.

Sources: Hounsfield units of brain, CSF, oedema and bone as in Bushberg et al., The Essential Physics of Medical Imaging
(3rd ed., ch. 10), rounded. Noise power of filtered back projection: Riederer, Pelc and Chesler, Phys Med Biol 23:446
(1978): the ramp of the reconstruction filter makes it proportional to the frequency, the kernel cuts it off.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.phantom.anatomy import ENHANCING, TISSUES
from data_prep.phantom.fields import PixelGrid, detect, mix, to_uint8
from fedhpc.util.arrays import F32

AIR_HU = -1000.0
TISSUE_HU = {
    "scalp": 10.0,  # skin and muscle about 50, fat -90
    "bone": 1000.0,
    "marrow": 400.0,
    "csf": 5.0,
    "grey": 37.0,
    "white": 25.0,
    "oedema": 15.0,
    "solid": 35.0,
    "enhancing": 35.0,
    "necrosis": 13.0,
}


@dataclass(frozen=True)
class CtProtocol:
    """How a site takes its CT.

    Attributes:
        iodine_hu: rise of enhancing tissue after contrast agent. noise_hu: standard deviation in a picture pixel.
        kernel_per_mm: frequency at which the noise spectrum is cut to 1/e. psf_fwhm_mm: point spread.
        window_hu, level_hu: width and middle of the window that becomes 0..255.
    """

    iodine_hu: float
    noise_hu: float
    kernel_per_mm: float
    psf_fwhm_mm: float
    window_hu: float
    level_hu: float


def tissue_hu(protocol: CtProtocol) -> NDArray[np.float64]:
    """Hounsfield units of pure tissue in the order of TISSUES: (10,)."""
    values = np.array([TISSUE_HU[name] for name in TISSUES])
    values[ENHANCING] += protocol.iodine_hu
    return values


def attenuation_hu(fractions: F32, grid: PixelGrid, protocol: CtProtocol) -> F32:
    """Noise-free image in HU, (size, size), of tissue fractions (10, fine_size, fine_size); the rest is air."""
    above_air = mix(tissue_hu(protocol) - AIR_HU, fractions)
    return detect(above_air + np.float32(AIR_HU), grid, protocol.psf_fwhm_mm)


def noise_hu(rng: np.random.Generator, grid: PixelGrid, protocol: CtProtocol) -> F32:
    """Noise (size, size) with power spectrum ~ f exp(-(f / kernel)^2): no power at zero, correlated neighbours."""
    across, down = np.fft.rfftfreq(grid.size, grid.pixel_mm), np.fft.fftfreq(grid.size, grid.pixel_mm)
    frequency_per_mm = np.hypot(down[:, None], across[None, :])
    power = frequency_per_mm * np.exp(-((frequency_per_mm / protocol.kernel_per_mm) ** 2))
    white = rng.standard_normal((grid.size, grid.size))
    coloured = np.fft.irfft2(np.fft.rfft2(white) * np.sqrt(power), s=white.shape)
    weight = np.full(power.shape, 2.0)  # columns that stand for two conjugate frequencies
    weight[:, 0] = 1.0
    if grid.size % 2 == 0:
        weight[:, -1] = 1.0
    deviation = np.sqrt(np.sum(weight * power) / white.size)
    noise: F32 = (coloured * (protocol.noise_hu / deviation)).astype(np.float32)
    return noise


def ct_image(rng: np.random.Generator, fractions: F32, grid: PixelGrid, protocol: CtProtocol) -> NDArray[np.uint8]:
    """Windowed picture uint8 (size, size) of tissue fractions (10, fine_size, fine_size)."""
    image = attenuation_hu(fractions, grid, protocol) + noise_hu(rng, grid, protocol)
    half = protocol.window_hu / 2
    return to_uint8(image, protocol.level_hu - half, protocol.level_hu + half)
