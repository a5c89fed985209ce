"""The four hospitals of the default cohort: unequal in size, case mix and machines."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from data_prep.phantom.ct import CtProtocol
from data_prep.phantom.mri import MriProtocol


@dataclass(frozen=True)
class SiteProtocol:
    """One hospital.

    Attributes:
        images: its size relative to the others. prevalence: share of patients with a malignant lesion.
        ct_share: share of images that are CT, the others being MR. mri, ct: the protocols of its machines.
    """

    images: int
    prevalence: float
    ct_share: float
    mri: MriProtocol
    ct: CtProtocol


def default_sites() -> Mapping[str, SiteProtocol]:
    """Name -> protocol, largest site first.

    site1: university hospital, T1 with gadolinium; site2: 3 T, T2, CT with little contrast agent; site3: legacy scanner
    of low field, low SNR and broad point spread; site4: small and CT-heavy, MR between T2 and proton density weighting.
    """
    return MappingProxyType(
        {
            "site1": SiteProtocol(
                3200,
                0.45,
                0.30,
                MriProtocol(1.5, tr_ms=550, te_ms=14, gadolinium_mmol=0.5, snr=35, psf_fwhm_mm=2.0, bias=0.12),
                CtProtocol(40, noise_hu=3.0, kernel_per_mm=0.09, psf_fwhm_mm=2.0, window_hu=80, level_hu=40),
            ),
            "site2": SiteProtocol(
                2400,
                0.35,
                0.20,
                MriProtocol(3.0, tr_ms=4500, te_ms=95, gadolinium_mmol=0.0, snr=45, psf_fwhm_mm=1.5, bias=0.18),
                CtProtocol(15, noise_hu=2.0, kernel_per_mm=0.07, psf_fwhm_mm=2.5, window_hu=100, level_hu=35),
            ),
            "site3": SiteProtocol(
                1400,
                0.60,
                0.45,
                MriProtocol(0.5, tr_ms=450, te_ms=25, gadolinium_mmol=0.4, snr=15, psf_fwhm_mm=4.5, bias=0.20),
                CtProtocol(35, noise_hu=5.0, kernel_per_mm=0.12, psf_fwhm_mm=4.5, window_hu=150, level_hu=50),
            ),
            "site4": SiteProtocol(
                1000,
                0.50,
                0.70,
                MriProtocol(1.5, tr_ms=2200, te_ms=35, gadolinium_mmol=0.4, snr=28, psf_fwhm_mm=2.5, bias=0.15),
                CtProtocol(40, noise_hu=4.0, kernel_per_mm=0.10, psf_fwhm_mm=2.0, window_hu=120, level_hu=45),
            ),
        }
    )
