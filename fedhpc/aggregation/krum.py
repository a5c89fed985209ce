"""Krum and Multi-Krum: the updates that lie nearest to their neighbours."""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from fedhpc.aggregation.base import Aggregated, RuleRound
from fedhpc.aggregation.mixing import distances
from fedhpc.aggregation.robust import RobustRule, at_most, only
from fedhpc.util.arrays import F64, I64


def scores(updates: F64, faulty: int) -> F64:
    """Return Krum's score of each update: the sum of squared distances to the n - f - 2 others nearest to it.

    >>> scores(np.array([[0.0], [1.0], [3.0], [7.0], [90.0]]), faulty=1).tolist()
    [10.0, 5.0, 13.0, 52.0, 14458.0]
    """
    near = np.sort(distances(updates) ** 2, axis=1)[:, 1 : len(updates) - faulty - 1]
    out: F64 = near.sum(axis=1)
    return out


def best(updates: F64, faulty: int, count: int) -> I64:
    """Return the indices of the `count` updates with the least scores, ascending; of equal ones the first."""
    return np.sort(np.argsort(scores(updates, faulty), kind="stable")[:count])


def too_few(rule: RobustRule, sites: int) -> str:
    """Return why Krum's proof does not hold for so many sites; empty where it does (Blanchard et al. 2017)."""
    f = rule.faulty_sites
    if sites >= 2 * f + 3:
        return ""
    most = (sites - 3) // 2
    remedy = f"Set it to {at_most(most)}" if most >= 0 else "Take another rule"
    return (
        f"aggregation.faulty_sites={f}: {rule.rule} needs 2 f + 3 = {2 * f + 3} sites or more (Blanchard et al. 2017, "
        f"Proposition 4.2), and there are {sites}. {remedy}"
    )


class Krum(RobustRule):
    """The one update that is nearest to its n - f - 2 neighbours (Blanchard et al. 2017, "Machine Learning with ...").

    Assumes n >= 2 f + 3, so with one faulty site five hospitals. Ignores the declared weights, and in each round all
    updates but one.
    """

    rule: Literal["krum"] = Field(
        default="krum", description="the update nearest to its n - f - 2 neighbours; needs 2 f + 3 sites"
    )

    def problem(self, sites: int, density: float) -> str:
        """See `AggregationRule`."""
        return too_few(self, sites)

    def combined(self, updates: F64, round: RuleRound) -> Aggregated:
        """See `RobustRule`."""
        return only(updates[best(updates, self.faulty_sites, 1)[0]])


class MultiKrum(RobustRule):
    """The mean of the `selected` updates with Krum's least scores (Blanchard et al. 2017, section 4).

    Assumes n >= 2 f + 3, and at most n - f - 2 selected ones (Damaskinos et al. 2019, AggregaThor). Ignores the
    declared weights.
    """

    rule: Literal["multi_krum"] = Field(
        default="multi_krum", description="the mean of the updates nearest to their neighbours; needs 2 f + 3 sites"
    )
    selected: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="of how many updates the mean is; null: n - f - 2, the most for which there is a proof",
    )

    def problem(self, sites: int, density: float) -> str:
        """See `AggregationRule`."""
        most = sites - self.faulty_sites - 2
        if not too_few(self, sites) and (self.selected or 1) > most:
            return (
                f"aggregation.selected={self.selected}: of {sites} sites with {self.faulty_sites} faulty ones at most "
                f"n - f - 2 = {most} may be selected. Lower it, or leave it out"
            )
        return too_few(self, sites)

    def combined(self, updates: F64, round: RuleRound) -> Aggregated:
        """See `RobustRule`."""
        count = self.selected or len(updates) - self.faulty_sites - 2
        return only(updates[best(updates, self.faulty_sites, count)].mean(axis=0))
