"""The voxels of 3-D patches, and how the slices of a scan count in the planes of a patch."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_prep.importers.volume import EVEN_SHARE
from fedhpc.util.arrays import F32

OVERHANG = 0.25
"""A row of patches may leave so much of a side uncovered, half of it at each end."""


@dataclass(frozen=True)
class Voxels:
    """The grid of a patch.

    Attributes:
        planes, size: D, and H and W.
        slice_mm, pixel_mm: from one voxel to the next, along the slices' normal and in their planes.
    """

    planes: int
    size: int
    slice_mm: float
    pixel_mm: float

    @property
    def depth_mm(self) -> float:
        """Of a patch."""
        return self.planes * self.slice_mm

    @property
    def side_mm(self) -> float:
        """Of a patch, in its planes."""
        return self.size * self.pixel_mm


def weights_of(z_mm: float, voxels: Voxels, positions_mm: npt.NDArray[np.float64], usual_mm: float) -> F32:
    """Return how much each slice counts in each plane of a patch, f32[planes, slices]; rows of 0 beyond the volume.

    Straight lines between two slices where the patch is as fine as the scan; where it is coarser, a triangle as wide as
    the patch's own distance, so that no slice is skipped.

    Args:
        z_mm: of the middle of the patch.
        voxels: its grid.
        positions_mm: of the slices, ascending.
        usual_mm: between two of them.

    >>> voxels = Voxels(2, 8, 1.0, 1.0)
    >>> weights_of(2.0, voxels, np.array([0.0, 2.0, 4.0]), 2.0).tolist()
    [[0.25, 0.75, 0.0], [0.0, 0.75, 0.25]]
    """
    wanted = z_mm + (np.arange(voxels.planes) - (voxels.planes - 1) / 2) * voxels.slice_mm
    if voxels.slice_mm > usual_mm * (1 + EVEN_SHARE) and len(positions_mm) > 1:
        near = np.maximum(0, 1 - np.abs(wanted[:, None] - positions_mm) / voxels.slice_mm)
        weights = near * np.gradient(positions_mm)  # where slices lie closer each of them counts less
        weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-12)
    else:
        weights = np.array([np.interp(wanted, positions_mm, one) for one in np.eye(len(positions_mm))]).T
    outside = np.abs(wanted[:, None] - positions_mm).min(axis=1) > max(voxels.slice_mm, usual_mm)
    weights[outside] = 0
    return np.asarray(weights, np.float32)


def offsets(length_mm: float, side_mm: float) -> list[float]:
    """Return the middles of patches side by side that cover a length, from the length's own middle.

    >>> offsets(100.0, 40.0), offsets(30.0, 40.0)
    ([-40.0, 0.0, 40.0], [0.0])
    """
    count = max(1, int(np.ceil(length_mm / side_mm - OVERHANG)))
    return [(number - (count - 1) / 2) * side_mm for number in range(count)]
