"""The two seams of the aggregator: how updates become one, and how the global model steps along it.

Both are values of the config: a class holds its own parameters and is chosen by its name (`fedhpc.aggregation.rules`).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from fedhpc.compression.update import SparseVector
from fedhpc.errors import PayloadError
from fedhpc.util.arrays import F32, Array
from fedhpc.util.section import Section

Arrays = Mapping[str, Array]
"""Named arrays that are kept from round to round."""


@dataclass(frozen=True)
class UpdateScale:
    """What an honest site's update of a round may be: a signal and Gaussian noise (public, known before the round).

    Attributes:
        noise: standard deviation of the privacy noise in each entry.
        longest: bound on the norm of the signal.
        exact: whether the update is sent whole and as it is; else it is rounded or sparse, and what is not sent of it
            comes in later rounds (error feedback), so that both numbers are of its training and not of what is sent.
    """

    noise: float
    longest: float
    exact: bool = True


@dataclass(frozen=True)
class RuleRound:
    """What a rule knows of a round before the first update (public).

    Attributes:
        size: entries of an update.
        round: the number of rounds done.
        sites: their names, by index.
        kept: what the rule kept after the last round, or its `initial`.
        scales: of each site by index; None where they are not known.
    """

    size: int
    round: int = 0
    sites: tuple[str, ...] = ()
    kept: Arrays = field(default_factory=dict)
    scales: tuple[UpdateScale, ...] | None = None


@dataclass(frozen=True)
class Flag:
    """A site whose update a rule found far out (public).

    Attributes:
        site: its name.
        reason: which test it failed, in one word.
        detail: the numbers of the test, for a person.
        excluded: whether its update is not in the result; else it was only shortened, or has a lower weight.
    """

    site: str
    reason: str
    detail: str
    excluded: bool = True

    def line(self) -> str:
        """Return the flag as one line."""
        return f"{self.site} {'left out' if self.excluded else 'counts less'} ({self.reason}: {self.detail})"


@dataclass(frozen=True)
class Aggregated:
    """What a rule made of the updates of a round.

    Attributes:
        update: the update of all, f32[d].
        kept: what the rule keeps for the next round.
        flags: the sites that are far out.
    """

    update: F32
    kept: Arrays = field(default_factory=dict)
    flags: tuple[Flag, ...] = ()


class Aggregator(ABC):
    """One round at the aggregator: it takes the sites' updates one after the other, in site order."""

    @abstractmethod
    def add(self, site: int, update: SparseVector, weight: int) -> None:
        """Take the update of a site.

        Args:
            site: its index.
            update: f32[d], sparse; an entry that was not sent is zero.
            weight: its public weight, above 0.
        """

    def refused(self, site: int, error: PayloadError) -> None:
        """Take note of a site that sent what is no update. Raises the error, where a rule does not bear such a site."""
        raise error

    @abstractmethod
    def result(self) -> F32:
        """Return the update of all, f32[d]."""

    def aggregated(self) -> Aggregated:
        """Return the update of all, with what the rule keeps and whom it flags; both are empty by default."""
        return Aggregated(self.result())


class AggregationRule(Section, ABC):
    """`aggregation.rule` with its parameters. A subclass narrows `rule` to the literal of its name.

    What it keeps from round to round are named arrays: they are saved with every round and given back at a resume.
    """

    rule: str
    keeps_rows: ClassVar[bool] = False
    """Whether each array that it keeps has a row for each declared site, present or absent."""

    def initial(self, size: int, sites: int) -> Arrays:
        """Return what is kept before the first round, for a model of `size` parameters and so many declared sites."""
        return {}

    @abstractmethod
    def aggregator(self, round: RuleRound) -> Aggregator:
        """Return the aggregator of one round."""

    def problem(self, sites: int, density: float) -> str:
        """Return why the rule cannot be used with so many sites and this density of updates; empty where it can."""
        return ""

    def notice(self, weights: tuple[int, ...]) -> str:
        """Return what a user must know of the rule before the run, for sites of these weights; may be empty."""
        return ""


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
