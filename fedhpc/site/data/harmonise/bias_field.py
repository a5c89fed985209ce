"""The slow shading that an MR coil lays over an image, estimated by SimpleITK's N4 and divided out (private)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedhpc.errors import InputError
from fedhpc.util.arrays import F32

RESOLUTIONS = 3
SHRINK_ABOVE_PIXELS = 96
"""The field is slow: it is estimated on every second pixel of larger images."""


def corrected(x: F32, mask: NDArray[np.bool_], iterations: int) -> F32:
    """Return `x` without its bias field, on the scale of its own smallest to largest value.

    Tustison et al. 2010, "N4ITK: Improved N3 Bias Correction". Each channel of each image by itself, in one thread.

    Raises:
        InputError: SimpleITK is not installed.
    """
    itk = _library()
    out = np.empty_like(x)
    for index in np.ndindex(x.shape[:2]):
        out[index] = _one(itk, x[index], mask[index], iterations)
    return out


def _one(itk: Any, pixels: F32, mask: NDArray[np.bool_], iterations: int) -> F32:
    ground = pixels.min()
    if not pixels.max() > ground:
        return pixels
    positive = itk.GetImageFromArray(pixels - ground + 1e-3 * (pixels.max() - ground))
    inside = itk.GetImageFromArray(mask.astype(np.uint8))
    filter = itk.N4BiasFieldCorrectionImageFilter()
    filter.SetMaximumNumberOfIterations([iterations] * RESOLUTIONS)
    filter.SetNumberOfThreads(1)  # other numbers of threads give other bits
    factor = 2 if min(pixels.shape) > SHRINK_ABOVE_PIXELS else 1
    filter.Execute(*(itk.Shrink(image, [factor] * pixels.ndim) for image in (positive, inside)))
    field = itk.GetArrayFromImage(itk.Exp(filter.GetLogBiasFieldAsImage(positive)))
    return np.asarray((pixels - ground) / field + ground, np.float32)


def _library() -> Any:
    try:
        import SimpleITK
    except ImportError as error:
        raise InputError(
            "harmonise: the step n4 needs SimpleITK, which is not installed. Install it with: pip install 'fedhpc[n4]'",
            code="environment",
        ) from error
    return SimpleITK
