"""What both kinds of evaluation read: the classes of a task, and a site's counts, checked."""

import numpy as np

from fedhpc.compression.update import ArraySpec, unpack_arrays
from fedhpc.errors import PayloadError
from fedhpc.run.session import Session
from fedhpc.util.arrays import I64


def tasks_of(session: Session) -> int:
    """Return how many one-vs-rest tasks there are."""
    return len(session.task.measured)


def read_array(site: str, payload: bytes, shape: tuple[int, ...], largest: int) -> I64:
    """Return the integers int64[shape] that a site's payload must be.

    Raises:
        PayloadError: another shape or type, or a value beyond `largest`.
    """
    expected = {"counts": ArraySpec("<i8", shape)}
    try:
        counts: I64 = unpack_arrays(payload, expected, 8 * int(np.prod(shape)))["counts"].astype(np.int64)
    except PayloadError as error:
        raise PayloadError(f"site {site}, metrics: {error}", code=error.code) from None
    if (np.abs(counts.astype(np.float64)) > largest).any():
        raise PayloadError(f"site {site}, metrics: counts beyond {largest}")
    return counts
