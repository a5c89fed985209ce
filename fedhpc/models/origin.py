"""Whence a model comes: the runs that its parameters have gone through, and what each has promised its patients."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass as checked

from fedhpc.config.schema import RunConfig


@checked(frozen=True, config=ConfigDict(extra="forbid"))
class Ancestor:
    """A run that a model goes back to (public).

    Attributes:
        run: its name.
        sites: the names of its sites.
        data: see `fedhpc.config.data.Data.identity`.
        private: whether it had privacy.
        seeded: whether its noise came from privacy.noise_seed, so that it can be taken off.
        synthetic: whether none of its patients exist.
    """

    run: str
    sites: tuple[str, ...]
    data: str
    private: bool
    seeded: bool
    synthetic: bool


ANCESTORS = TypeAdapter(tuple[Ancestor, ...])


@dataclass(frozen=True)
class Origin:
    """Whence a model comes.

    Attributes:
        config: of its run.
        synthetic: whether the patients of its run do not exist (the built-in cohort).
        before: the runs that this one started from, or whose network is its backbone, and those before them.
    """

    config: RunConfig
    synthetic: bool
    before: tuple[Ancestor, ...] = ()

    @property
    def runs(self) -> tuple[Ancestor, ...]:
        """All runs that are in the model: its own, and those before."""
        config, p = self.config, self.config.privacy
        own = Ancestor(
            run=config.name,
            sites=config.site_names,
            data=config.data.identity,
            private=config.private,
            seeded=p.noise_seed is not None,
            synthetic=self.synthetic,
        )
        return (own, *self.before)


def each_once(runs: Sequence[Ancestor]) -> tuple[Ancestor, ...]:
    """Return the runs without repetitions: one may be in a model by its start and by its backbone."""
    return tuple(dict.fromkeys(runs))
