"""From a scanner's units to the pixel scale of a shard: CT windows, or percentiles of one volume (private)."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedhpc.errors import ShardError
from fedhpc.util.arrays import F32

CT_WINDOWS = {
    "wide": (0.0, 2000.0),
    "lung": (-600.0, 1500.0),
    "mediastinum": (50.0, 350.0),
    "soft": (40.0, 400.0),
    "bone": (400.0, 1800.0),
    "brain": (40.0, 80.0),
    "subdural": (75.0, 215.0),
    "stroke": (40.0, 40.0),
    "liver": (60.0, 160.0),
}
"""Centre and width in Hounsfield units; the usual presets of a reading station."""
HOUNSFIELD = "hu"
"""No window: float32 in Hounsfield units, for `harmonise` to window at training time."""
HOUNSFIELD_RANGE = (-1024.0, 3071.0)
PERCENTILES = (0.5, 99.5)
SAMPLE = 2**20


@dataclass(frozen=True)
class Scale:
    """The two ends of a scanner's units that become the ends of the pixel scale."""

    low: float
    high: float

    def apply(self, pixels: F32) -> npt.NDArray[np.uint8]:
        """Return uint8: `low` and below is 0, `high` and above 255."""
        stretched = (pixels - np.float32(self.low)) * np.float32(255 / (self.high - self.low))
        return np.asarray(np.rint(np.clip(stretched, 0, 255)), np.uint8)


def windows(names: tuple[str, ...]) -> tuple[Scale, ...]:
    """Return the scales of CT presets; none for Hounsfield units.

    Raises:
        ShardError: an unknown name, or Hounsfield units beside a window.
    """
    if names == (HOUNSFIELD,):
        return ()
    unknown = [name for name in names if name not in CT_WINDOWS]
    if unknown or not names:
        raise ShardError(
            f"window={' '.join(names)}: allowed: {HOUNSFIELD} alone, or one or more of {', '.join(CT_WINDOWS)}",
            code="prepare",
        )
    return tuple(Scale(centre - width / 2, centre + width / 2) for centre, width in (CT_WINDOWS[n] for n in names))


def percentile_scale(pixels: F32) -> Scale | None:
    """Return the scale from the 0.5th to the 99.5th percentile of one volume or image; None of a constant one.

    Of large volumes a regular sample of about a million pixels counts.
    """
    flat = pixels.reshape(-1)
    sample = flat[:: max(1, len(flat) // SAMPLE)]
    low, high = np.percentile(sample, PERCENTILES)
    if high <= low:  # a small object on an even ground: all intensities count
        low, high = flat.min(), flat.max()
    return Scale(float(low), float(high)) if high > low else None
