"""Centred clipping: the mean of the updates' differences from the last round's result, each shortened to a radius."""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from fedhpc.aggregation.base import Aggregated, Arrays, RuleRound
from fedhpc.aggregation.robust import RobustRule
from fedhpc.util.arrays import F64

CENTER = "center"


class CentredClipping(RobustRule):
    """Clip around the last result (Karimireddy et al. 2021, "Learning from History for Byzantine Robust ...", eq. 4).

    v <- v + mean_i (x_i - v) min(1, radius / |x_i - v|), from the v of the last round (0 in the first), which is kept.
    Its proof needs f <= n / 10; with fewer sites it still bounds what a site can do to `radius` / n in an iteration.
    It does not use f but in that statement and with `mixing`. Ignores the declared weights.
    """

    rule: Literal["centred_clipping"] = Field(
        default="centred_clipping",
        description="the mean of the differences from the last result, each shortened; every site counts once",
    )
    radius: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="the longest difference that counts whole; null: the median of the round's differences",
    )
    iterations: Annotated[int, Field(ge=1, le=1000)] = Field(default=3, description="how often the result is refined")

    def initial(self, size: int, sites: int) -> Arrays:
        """See `AggregationRule`: the last result, f32[size]."""
        return {CENTER: np.zeros(size, np.float32)}

    def notice(self, weights: tuple[int, ...]) -> str:
        """See `AggregationRule`."""
        beyond = (
            "" if 10 * self.faulty_sites <= len(weights) else ". Its proof does not hold here: it needs f <= n / 10"
        )
        return super().notice(weights) + beyond

    def combined(self, updates: F64, round: RuleRound) -> Aggregated:
        """See `RobustRule`."""
        center = round.kept[CENTER].astype(np.float64)
        for _ in range(self.iterations):
            apart = updates - center
            lengths = np.linalg.norm(apart, axis=1)
            radius = self.radius or float(np.median(lengths))
            shortened = np.minimum(1, radius / np.maximum(lengths, np.finfo(np.float64).tiny))
            center = center + shortened @ apart / len(updates)
        update = center.astype(np.float32)
        return Aggregated(update, {CENTER: update})
