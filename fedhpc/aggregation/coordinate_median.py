"""The coordinate-wise median of the updates."""

from typing import Literal

import numpy as np
from pydantic import Field

from fedhpc.aggregation.base import Aggregated, RuleRound
from fedhpc.aggregation.robust import RobustRule, dense_problem, only
from fedhpc.util.arrays import F64


class CoordinateMedian(RobustRule):
    """The median of each entry (Yin et al. 2018, "Byzantine-Robust Distributed Learning", Definition 1).

    Assumes f < n / 2, and updates sent whole (exchange.density 1). Ignores the declared weights. With four sites it is
    the mean of the middle two values, as the trimmed mean of one is.
    """

    rule: Literal["coordinate_median"] = Field(
        default="coordinate_median", description="the median of each entry; every site counts once"
    )

    def problem(self, sites: int, density: float) -> str:
        """See `AggregationRule`."""
        return super().problem(sites, density) or dense_problem(self, density)

    def combined(self, updates: F64, round: RuleRound) -> Aggregated:
        """See `RobustRule`.

        >>> CoordinateMedian().combined(np.array([[1.0, 9.0], [2.0, -5.0], [50.0, 4.0]]), RuleRound(2)).update.tolist()
        [2.0, 4.0]
        """
        return only(np.median(updates, axis=0))
