"""The coordinate-wise trimmed mean of the updates."""

from typing import Literal

import numpy as np
from pydantic import Field

from fedhpc.aggregation.base import Aggregated, RuleRound
from fedhpc.aggregation.robust import RobustRule, dense_problem, only
from fedhpc.util.arrays import F64


class TrimmedMean(RobustRule):
    """The mean of each entry without its f largest and f smallest values (Yin et al. 2018, Definition 2).

    Assumes f < n / 2, and updates sent whole (exchange.density 1). Ignores the declared weights. With f = 0 it is the
    mean in which every site counts once.
    """

    rule: Literal["trimmed_mean"] = Field(
        default="trimmed_mean",
        description="the mean of each entry without its f largest and f smallest values; every site counts once",
    )

    def problem(self, sites: int, density: float) -> str:
        """See `AggregationRule`."""
        return super().problem(sites, density) or dense_problem(self, density)

    def combined(self, updates: F64, round: RuleRound) -> Aggregated:
        """See `RobustRule`.

        >>> rule = TrimmedMean(faulty_sites=1)
        >>> rule.combined(np.array([[1.0], [2.0], [4.0], [50.0]]), RuleRound(1)).update.tolist()
        [3.0]
        """
        f, n = self.faulty_sites, len(updates)
        return only(np.sort(updates, axis=0)[f : n - f].mean(axis=0))
