"""The two seams of the aggregator: how updates become one, and how the global model steps along it.

Both are values of the config: a class holds its own parameters and is chosen by its name (`fedhpc.aggregation.rules`).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Protocol

from fedhpc.compression.update import SparseVector
from fedhpc.util.arrays import F32, Array
from fedhpc.util.section import Section

Arrays = Mapping[str, Array]
"""Named arrays that are kept from round to round."""


class Aggregator(Protocol):
    """One round at the aggregator: it takes the sites' updates one after the other, in site order."""

    def add(self, site: int, update: SparseVector, weight: int) -> None:
        """Take the update of a site.

        Args:
            site: its index.
            update: f32[d], sparse; an entry that was not sent is zero.
            weight: its public weight, above 0.
        """

    def result(self) -> F32:
        """Return the update of all, f32[d]."""


class AggregationRule(Section, ABC):
    """`aggregation.rule` with its parameters. A subclass narrows `rule` to the literal of its name."""

    rule: str

    @abstractmethod
    def aggregator(self, size: int) -> Aggregator:
        """Return the aggregator of one round, for updates of `size` entries."""


class ServerStep(Section, ABC):
    """`server.optimizer` with its parameters. A subclass narrows `optimizer` to the literal of its name.

    What it keeps from round to round are named arrays: they are saved with every round and given back at a resume.
    """

    optimizer: str

    def initial(self, size: int) -> Arrays:
        """Return what is kept before the first round, for a model of `size` parameters."""
        return {}

    @abstractmethod
    def step(self, mean: F32, kept: Arrays, round: int) -> tuple[F32, Arrays]:
        """Return the step of the global model, f32[d], and what is kept for the next round.

        Args:
            mean: what the rule made of the sites' updates, f32[d].
            kept: what `initial` or the step of the last round returned.
            round: the number of rounds done.
        """
