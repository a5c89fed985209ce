"""What the robust rules have in common: all updates of a round side by side, f of n sites that may send anything.

A robust rule needs all updates at once: rank 0 holds them dense, 4 n d bytes, and works on a copy in float64. It
counts every site once, since a weight that a site declares would be one more thing that it can lie about.
"""

from abc import abstractmethod
from dataclasses import replace
from typing import Annotated

import numpy as np
from pydantic import Field

from fedhpc.aggregation.base import Aggregated, AggregationRule, Aggregator, Flag, RuleRound
from fedhpc.aggregation.mixing import mixed
from fedhpc.compression.update import SparseVector
from fedhpc.errors import PayloadError
from fedhpc.util.arrays import F32, F64


def at_most(number: int) -> str:
    """Return what may be set where 0 is the least value.

    >>> at_most(0), at_most(2)
    ('0', '2 or less')
    """
    return f"{number} or less" if number else "0"


class RobustRule(AggregationRule):
    """A rule that holds where at most `faulty_sites` of all sites send something else than their update."""

    faulty_sites: Annotated[int, Field(ge=0)] = Field(
        default=1, description="f: how many of the sites may send anything at all"
    )
    mixing: bool = Field(
        default=False,
        description="first replace each update by the mean of the n - f nearest to it (nearest-neighbour mixing, "
        "Allouah et al. 2023)",
    )

    @abstractmethod
    def combined(self, updates: F64, round: RuleRound) -> Aggregated:
        """Return the update of all, from those of n sites, float64[n, d]."""

    def aggregator(self, round: RuleRound) -> "Stack":
        """See `AggregationRule`."""
        return Stack(self, round)

    def problem(self, sites: int, density: float) -> str:
        """See `AggregationRule`: without an honest majority no rule can tell which half is honest."""
        if 2 * self.faulty_sites >= sites:
            most = (sites - 1) // 2
            return (
                f"aggregation.faulty_sites={self.faulty_sites}: {self.rule} needs more than twice as many sites, and "
                f"there are {sites}. Set it to {at_most(most)}"
            )
        return ""

    def notice(self, weights: tuple[int, ...]) -> str:
        """See `AggregationRule`."""
        mixing = ", after nearest-neighbour mixing" if self.mixing else ""
        return (
            f"aggregation: {self.rule}{mixing}; {self.faulty_sites} of {len(weights)} sites may send anything. Every "
            f"site counts once: the declared weights ({', '.join(map(str, weights))}) are ignored. Rank 0 holds all "
            "updates at once"
        )


class Stack(Aggregator):
    """The updates of one round, all held, dense."""

    def __init__(self, rule: RobustRule, round: RuleRound) -> None:
        self._rule, self._round = rule, round
        self._updates: list[F32] = []
        self._flags: list[Flag] = []

    def refused(self, site: int, error: PayloadError) -> None:
        """See `Aggregator`: the site is one of the faulty ones, and counts as if it had sent zeros."""
        self._updates.append(np.zeros(self._round.size, np.float32))
        self._flags.append(Flag(self._round.sites[site], "payload", str(error)))

    def add(self, site: int, update: SparseVector, weight: int) -> None:
        """See `Aggregator`; weights do not count. Raises ValueError for an update of another size."""
        if update.size != self._round.size:
            raise ValueError(f"size={update.size}: allowed is {self._round.size}")
        self._updates.append(update.dense())

    def result(self) -> F32:
        """See `Aggregator`."""
        return self.aggregated().update

    def aggregated(self) -> Aggregated:
        """See `Aggregator`; raises ValueError where there are too few updates for the rule."""
        problem = self._rule.problem(len(self._updates), density=1.0)
        if problem:
            raise ValueError(problem)
        updates = np.array(self._updates, np.float64)
        updates = mixed(updates, self._rule.faulty_sites) if self._rule.mixing else updates
        found = self._rule.combined(updates, self._round)
        named = {flag.site for flag in self._flags}
        return replace(found, flags=(*self._flags, *(flag for flag in found.flags if flag.site not in named)))


def only(update: F64) -> Aggregated:
    """Return a result without state and flags, from the update of all, float64[d]."""
    return Aggregated(update.astype(np.float32))


def dense_problem(rule: RobustRule, density: float) -> str:
    """Return why a rule that sorts the values of each entry needs dense updates; empty where they are."""
    if density == 1:
        return ""
    return (
        f"exchange.density={density}: {rule.rule} looks at each entry by itself, and one that most sites did not send "
        "comes out as 0: what the others sent of it is lost, since they count it as received. Set exchange.density=1 "
        "(exchange.density_down may stay), or take another rule"
    )
