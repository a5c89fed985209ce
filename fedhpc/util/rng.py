"""Randomness as a function of its purpose: no module state, so a resumed run draws what a straight run draws."""

import hashlib

import numpy as np


def seed_of(seed: int, *where: str | int) -> int:
    """A 63-bit seed that depends on the run's seed and on the place where it is used.

    Args:
        seed: the run's seed (public).
        where: round, site, purpose or whatever else tells two uses apart.

    >>> seed_of(1, "site1", 3, "shuffle") == seed_of(1, "site1", 3, "shuffle")
    True
    >>> seed_of(1, "site1", 3, "shuffle") == seed_of(1, "site2", 3, "shuffle")
    False
    """
    digest = hashlib.sha256(repr((seed, *where)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, *where: str | int) -> np.random.Generator:
    """A numpy generator for `seed_of(seed, *where)`. Reproducible, hence never the source of privacy noise."""
    return np.random.default_rng(seed_of(seed, *where))
