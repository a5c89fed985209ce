"""The site ledgers that the runs of a benchmark are charged to: in its own folder, and no longer than it lasts."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedhpc.privacy.places import VARIABLE


@contextmanager
def charged_to(folder: Path) -> Iterator[None]:
    """Charge all runs inside to accounts in `folder`; then to those of before.

    >>> with charged_to(Path("out")):
    ...     print(os.environ[VARIABLE])
    out/{site}
    """
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = str(folder / "{site}")
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before
