"""A toy aggregation rule, whole in this file: the mean of the largest and the smallest update, entry by entry."""

from typing import Literal

import numpy as np

from fedhpc.aggregation import rules
from fedhpc.aggregation.base import AggregationRule, Aggregator, RuleRound
from fedhpc.compression.update import SparseVector
from fedhpc.util.arrays import F32


class MidrangeAggregator(Aggregator):
    """One round."""

    def __init__(self) -> None:
        self._updates: list[F32] = []

    def add(self, site: int, update: SparseVector, weight: int) -> None:
        """See `Aggregator`; weights do not count."""
        self._updates.append(update.dense())

    def result(self) -> F32:
        """See `Aggregator`."""
        return (np.max(self._updates, axis=0) + np.min(self._updates, axis=0)) / np.float32(2)


class Midrange(AggregationRule):
    """`aggregation.rule: midrange`."""

    rule: Literal["midrange"] = "midrange"

    def aggregator(self, round: RuleRound) -> MidrangeAggregator:
        """See `AggregationRule`."""
        return MidrangeAggregator()


def register() -> None:
    """Put it into the table."""
    rules.RULES = (*rules.RULES, Midrange)
