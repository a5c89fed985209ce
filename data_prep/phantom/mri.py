"""Spin-echo magnetic resonance images of a map of tissue fractions.

Sources:
    Signal: S = PD (1 - exp(-TR / T1)) exp(-TE / T2), the spin echo for TE << TR.
    T1 of grey and white matter and CSF at 1.5 T and their growth with the field, T1 ~ B0^0.38: Rooney et al., Magn
    Reson Med 57:308 (2007). T2 of grey and white matter: Stanisz et al., Magn Reson Med 54:507 (2005). Proton density
    of grey, white, CSF and fat, T1 and T2 of fat: the BrainWeb phantom, Kwan et al., IEEE Trans Med Imaging 18:1085
    (1999).
    Oedema and tumour: rounded from Just and Thelen, Radiology 169:779 (1988).
    Contrast agent: 1/T1' = 1/T1 + r1 C and the same for T2, r1 = 4.5 and r2 = 5.5 per s per mmol/l.
    Noise: Gudbjartsson and Patz, Magn Reson Med 34:910 (1995): the magnitude of a complex Gaussian is Rician.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from data_prep.phantom.anatomy import TISSUES, WHITE
from data_prep.phantom.fields import PixelGrid, detect, draw_coefficients, mix, smooth_fields, to_uint8
from fedhpc.util.arrays import F32, F64

# T1 at 1.5 T in ms, exponent of the field, T2 in ms, proton density relative to water
RELAXATION = {
    "scalp": (350.0, 0.20, 70.0, 0.90),
    "bone": (250.0, 0.0, 1.0, 0.10),
    "marrow": (380.0, 0.20, 60.0, 0.60),
    "csf": (4300.0, 0.0, 329.0, 1.00),
    "grey": (1188.0, 0.376, 95.0, 0.86),
    "white": (656.0, 0.382, 72.0, 0.77),
    "oedema": (1300.0, 0.35, 170.0, 0.90),
    "solid": (1250.0, 0.35, 95.0, 0.86),
    "enhancing": (1250.0, 0.35, 95.0, 0.86),
    "necrosis": (2400.0, 0.20, 300.0, 0.95),
}
R1_PER_MS_MMOL = 4.5e-3
R2_PER_MS_MMOL = 5.5e-3
REFERENCE_FIELD_T = 1.5


@dataclass(frozen=True)
class MriProtocol:
    """How a site takes its spin echoes.

    Attributes:
        field_t: tesla. tr_ms, te_ms: repetition and echo time. gadolinium_mmol: mmol/l in enhancing tissue.
        snr: white matter signal over the noise's standard deviation in one channel.
        psf_fwhm_mm: point spread. bias: standard deviation of the log of the receive field.
        level_percentile: the picture's percentile that becomes white.
    """

    field_t: float
    tr_ms: float
    te_ms: float
    gadolinium_mmol: float
    snr: float
    psf_fwhm_mm: float
    bias: float
    level_percentile: float = 99.5


def spin_echo(pd: F64, t1_ms: F64, t2_ms: F64, protocol: MriProtocol) -> F64:
    """PD (1 - exp(-TR / T1)) exp(-TE / T2), elementwise."""
    signal: F64 = pd * (1.0 - np.exp(-protocol.tr_ms / t1_ms)) * np.exp(-protocol.te_ms / t2_ms)
    return signal


def tissue_signals(protocol: MriProtocol) -> F64:
    """Signal of pure tissue, relative to fully relaxed water, in the order of TISSUES: (10,)."""
    t1_ms, exponent, t2_ms, pd = np.array([RELAXATION[name] for name in TISSUES]).T
    t1_ms = t1_ms * (protocol.field_t / REFERENCE_FIELD_T) ** exponent
    agent_mmol = np.array([protocol.gadolinium_mmol if name == "enhancing" else 0.0 for name in TISSUES])
    t1_ms = 1.0 / (1.0 / t1_ms + R1_PER_MS_MMOL * agent_mmol)
    t2_ms = 1.0 / (1.0 / t2_ms + R2_PER_MS_MMOL * agent_mmol)
    return spin_echo(pd, t1_ms, t2_ms, protocol)


def rician(rng: np.random.Generator, signal: F32, sigma: float) -> F32:
    """|signal + complex Gaussian noise| with standard deviation sigma in each of the two channels.

    Where there is no signal, the law is Rayleigh: mean / standard deviation = sqrt(pi / (4 - pi)) = 1.913.
    """
    real, imaginary = rng.standard_normal((2, *signal.shape), dtype=np.float32) * np.float32(sigma)
    magnitude: F32 = np.hypot(signal + real, imaginary)
    return magnitude


def bias_field(rng: np.random.Generator, size: int, strength: float) -> F32:
    """A smooth receive field of geometric mean about 1, float32 (size, size)."""
    field: F32 = np.exp(np.float32(strength) * smooth_fields(draw_coefficients(rng, 1), size)[0])
    return field


def mri_image(rng: np.random.Generator, fractions: F32, grid: PixelGrid, protocol: MriProtocol) -> NDArray[np.uint8]:
    """Picture uint8 (size, size) of tissue fractions (10, fine_size, fine_size); TR and TE vary by 5 %."""
    jitter = np.exp(0.05 * rng.standard_normal(2))
    scan = replace(protocol, tr_ms=protocol.tr_ms * jitter[0], te_ms=protocol.te_ms * jitter[1])
    signals = tissue_signals(scan)
    received = detect(mix(signals, fractions), grid, scan.psf_fwhm_mm)
    received = received * bias_field(rng, grid.size, scan.bias)
    noisy = rician(rng, received, float(signals[WHITE]) / scan.snr)
    return to_uint8(noisy, 0.0, float(np.percentile(noisy, scan.level_percentile)))
