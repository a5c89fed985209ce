"""Minimum-diameter averaging: the mean of the n - f updates that lie closest together."""

import itertools
import math
from dataclasses import replace
from typing import Literal

import numpy as np
from pydantic import Field

from fedhpc.aggregation.base import Aggregated, Flag, RuleRound
from fedhpc.aggregation.mixing import distances
from fedhpc.aggregation.robust import RobustRule, only
from fedhpc.util.arrays import F64

MOST_SUBSETS = 200_000


class MinimumDiameter(RobustRule):
    """The mean of the n - f updates with the least largest distance between two (MDA; El Mhamdi et al. 2020).

    Assumes f < n / 2. All n over f subsets are looked at, which bounds n and f. Ignores the declared weights. With
    f = 0 it is the mean in which every site counts once. Under local noise it leaves out the smallest hospital by
    construction, since its noise is the largest. Whom it leaves out is flagged in every round.
    """

    rule: Literal["mda"] = Field(
        default="mda", description="the mean of the n - f updates that lie closest together; every site counts once"
    )

    def problem(self, sites: int, density: float) -> str:
        """See `AggregationRule`."""
        subsets = math.comb(sites, self.faulty_sites)
        if subsets > MOST_SUBSETS:
            return (
                f"aggregation.faulty_sites={self.faulty_sites}: mda would look at {subsets} subsets of {sites} sites; "
                f"at most {MOST_SUBSETS} are allowed. Lower it, or take geometric_median"
            )
        return super().problem(sites, density)

    def combined(self, updates: F64, round: RuleRound) -> Aggregated:
        """See `RobustRule`; of equal diameters the subset with the least sum of distances counts.

        >>> MinimumDiameter().combined(np.array([[1.0], [4.0], [9.0]]), RuleRound(1)).update.tolist()
        [2.5]
        """
        apart = distances(updates)
        subsets = itertools.combinations(range(len(updates)), len(updates) - self.faulty_sites)
        chosen = min(subsets, key=lambda subset: _spread(apart[np.ix_(subset, subset)]))
        found = only(updates[list(chosen)].mean(axis=0))
        if self.mixing:
            return found  # What is left out then is a mean of several sites.
        out = [name for site, name in enumerate(round.sites) if site not in chosen]
        detail = (
            f"diameter {float(apart[np.ix_(chosen, chosen)].max()):.3g} without it, {float(apart.max()):.3g} with it"
        )
        return replace(found, flags=tuple(Flag(name, "diameter", detail) for name in out))


def _spread(apart: F64) -> tuple[float, float]:
    """Largest and total distance, without the last digits: after mixing, equal ones differ by rounding only."""
    return float(f"{apart.max():.9g}"), float(f"{apart.sum():.9g}")
