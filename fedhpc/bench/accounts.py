"""The site ledgers that the runs of a benchmark are charged to: in its own folder, and no longer than it lasts.

A config that says `data.phantom` may name the shards of a hospital. So what is set here concerns shards of synthetic
patients alone: all others are charged, or refused, as in any run. Shards that a benchmark has made itself, of noise or
of a folder of images that it was given, are charged to its own accounts.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedhpc.privacy.places import SYNTHETIC_VARIABLE, VARIABLE


@contextmanager
def charged_to(folder: Path, *, own_shards: bool = False) -> Iterator[None]:
    """Charge the runs inside to accounts in `folder`; then to those of before.

    Args:
        folder: of the accounts.
        own_shards: whether the benchmark has made all shards itself; else those of synthetic patients alone.

    >>> with charged_to(Path("out")):
    ...     print(os.environ[SYNTHETIC_VARIABLE])
    out/{site}
    """
    variable = VARIABLE if own_shards else SYNTHETIC_VARIABLE
    before = os.environ.get(variable)
    os.environ[variable] = str(folder / "{site}")
    try:
        yield
    finally:
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before
