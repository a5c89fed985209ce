"""The geometric median of the updates, by the smoothed Weiszfeld algorithm."""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from fedhpc.aggregation.base import Aggregated, RuleRound
from fedhpc.aggregation.robust import RobustRule, only
from fedhpc.util.arrays import F64


class GeometricMedian(RobustRule):
    """The point with the least sum of distances to all updates (Pillutla et al. 2022, RFA, Algorithm 2).

    Assumes f < n / 2. Ignores the declared weights, by which RFA counts sites. Weiszfeld's iteration starts from the
    coordinate-wise median. A distance below `smoothing` times the median one counts as that, so that an update on which
    the iteration stands does not stop it.
    """

    rule: Literal["geometric_median"] = Field(
        default="geometric_median",
        description="the point with the least sum of distances to all updates; every site counts once",
    )
    smoothing: Annotated[float, Field(gt=0, le=0.1)] = Field(
        default=1e-6, description="the least distance of an update that counts, as a share of the median one"
    )
    iterations: Annotated[int, Field(ge=1, le=10_000)] = Field(default=100, description="iterations at most")

    def combined(self, updates: F64, round: RuleRound) -> Aggregated:
        """See `RobustRule`.

        >>> rule = GeometricMedian()
        >>> rule.combined(np.array([[0.0, 0.0], [3.0, 0.0], [900.0, 0.0]]), RuleRound(2)).update.round(3).tolist()
        [3.0, 0.0]
        """
        center = np.median(updates, axis=0)
        least = self.smoothing * float(np.median(np.linalg.norm(updates - center, axis=1)))
        if least == 0:
            return only(center)
        for _ in range(self.iterations):
            pull = 1 / np.maximum(np.linalg.norm(updates - center, axis=1), least)
            moved = pull @ updates / pull.sum()
            done = np.linalg.norm(moved - center) <= least
            center = moved
            if done:
                break
        return only(center)
