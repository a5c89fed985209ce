"""How updates become one: folded one at a time, in rank order, so that memory does not grow with the hospitals."""

from dataclasses import dataclass, field

import numpy as np

from fedhpc.compression.update import F32, SparseVector


@dataclass
class WeightedMean:
    """The running mean over sites, weighted by sample size (McMahan et al. 2017, Algorithm 1, last line).

    The fold is a plain loop in the order of the calls: the same order gives the same bits. An entry that a site did not
    send counts as zero.

    >>> mean = WeightedMean(2)
    >>> mean.fold(SparseVector(2, np.array([0]), np.array([4], np.float32)), 1)
    >>> mean.fold(SparseVector(2, np.array([0, 1]), np.array([8, 8], np.float32)), 3)
    >>> mean.result().tolist()
    [7.0, 6.0]
    """

    size: int
    total_weight: int = 0
    _sum: F32 = field(init=False)

    def __post_init__(self) -> None:
        self._sum = np.zeros(self.size, np.float32)

    def fold(self, entries: SparseVector, weight: int) -> None:
        """Add one site's update f32[size] with its public weight (> 0)."""
        if weight <= 0 or entries.size != self.size:
            raise ValueError(f"weight={weight}, size={entries.size}: allowed are weights above 0 and size {self.size}")
        self._sum[entries.indices] += np.float32(weight) * entries.values
        self.total_weight += weight

    def result(self) -> F32:
        """The mean, f32[size]; raises ValueError before the first fold."""
        if not self.total_weight:
            raise ValueError("the mean of no update; fold at least one")
        return self._sum / np.float32(self.total_weight)
