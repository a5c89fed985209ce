"""The weighted mean: updates are added one at a time, in site order, so that memory does not grow with the sites."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from pydantic import Field

from fedhpc.aggregation.base import AggregationRule, Aggregator, RuleRound
from fedhpc.compression.update import SparseVector
from fedhpc.util.arrays import F32


class Mean(AggregationRule):
    """The mean weighted by sample size: FedAvg (McMahan et al. 2017).

    With `bounded`, where the aggregator sees only the sum of all updates, a sum that is longer than noise and clipping
    of honest sites allow is shortened to that: a hostile site is then not named, but what it can do in a round has a
    limit.
    """

    rule: Literal["mean"] = Field(default="mean", description="the mean of the updates, weighted by sample size")
    bounded: bool = Field(
        default=False,
        description="shorten the mean to the longest that honest sites give; only with privacy.trust=sites, elsewhere "
        "screened_mean looks at each site",
    )

    def aggregator(self, round: RuleRound) -> "WeightedMean":
        """See `AggregationRule`."""
        return WeightedMean(round.size)


@dataclass
class WeightedMean(Aggregator):
    """The running mean over sites, weighted by sample size (McMahan et al. 2017, Algorithm 1, last line).

    The fold is a plain loop in the order of the calls: the same order gives the same bits. An entry that a site did not
    send counts as zero.

    >>> mean = WeightedMean(2)
    >>> mean.add(0, SparseVector(2, np.array([0]), np.array([4], np.float32)), 1)
    >>> mean.add(1, SparseVector(2, np.array([0, 1]), np.array([8, 8], np.float32)), 3)
    >>> mean.result().tolist()
    [7.0, 6.0]
    """

    size: int
    total_weight: int = 0
    _sum: F32 = field(init=False)

    def __post_init__(self) -> None:
        self._sum = np.zeros(self.size, np.float32)

    def add(self, site: int, update: SparseVector, weight: int) -> None:
        """See `Aggregator`; raises ValueError for a weight of 0 or less, or an update of another size."""
        if weight <= 0 or update.size != self.size:
            raise ValueError(f"weight={weight}, size={update.size}: allowed are weights above 0 and size {self.size}")
        update.add_to(self._sum, weight)
        self.total_weight += weight

    def result(self) -> F32:
        """Return the mean, f32[size]; raises ValueError before the first update."""
        if not self.total_weight:
            raise ValueError("the mean of no update; add at least one")
        return self._sum / np.float32(self.total_weight)
