"""What rank 0 says when it waits for long: for whom, and since when. It never ends the run."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

LOG = logging.getLogger(__name__)

FIRST_S, MOST_USUAL_S, SHOWN = 60.0, 600.0, 8
VARIABLE = "FEDHPC_WAIT_NOTICE_S"


def first_notice_s() -> float:
    """Seconds before the first notice: FEDHPC_WAIT_NOTICE_S, or 60 where it is not set or no number above 0."""
    try:
        asked = float(os.environ.get(VARIABLE, FIRST_S))
    except ValueError:
        return FIRST_S
    return asked if asked > 0 else FIRST_S


def one_of(names: Sequence[str]) -> str:
    """Ranks of which at least one is late: a collective does not tell which.

    >>> one_of(["site2 (rank 1 on a)", "site3 (rank 2 on b)"])
    'site2 (rank 1 on a) or site3 (rank 2 on b)'
    """
    more = [f"{len(names) - SHOWN} others"] if len(names) > SHOWN else []
    return " or ".join([*names[:SHOWN], *more])


def rest_of(names: Sequence[str]) -> str:
    """The rest of a message that has begun, by its possible senders.

    >>> rest_of(["site2 (rank 1 on a)"])
    'the rest of a message of site2 (rank 1 on a)'
    """
    return f"the rest of a message of {one_of(names)}"


class Waiting:
    """The notices of one process.

    The first comes after `first_notice_s`, or after twice the longest wait so far, up to 10 minutes, since ranks that
    take longer than others to train are no fault; each further one after twice the time.
    """

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self._say = say or LOG.warning
        self._first_s, self._usual_s = first_notice_s(), 0.0

    @contextmanager
    def begun(self) -> Iterator[Callable[[Sequence[str]], float]]:
        """One wait, to the end of the block; while it lasts, call what this gives with those who are missing.

        It returns the seconds waited so far.
        """
        start_s, first_s = time.monotonic(), max(self._first_s, min(2 * self._usual_s, MOST_USUAL_S))
        next_s = [first_s]

        def look(missing: Sequence[str]) -> float:
            waited_s = time.monotonic() - start_s
            if missing and waited_s >= next_s[0]:
                next_s[0] = 2 * waited_s
                self._say(notice(missing, waited_s))
            return waited_s

        yield look
        self._usual_s = max(self._usual_s, time.monotonic() - start_s)


def notice(missing: Sequence[str], waited_s: float) -> str:
    """Return the text of a notice.

    >>> print(notice(["site3 (rank 2 on node7)"], 61.2))
    waiting for 61 s: site3 (rank 2 on node7); the run goes on when it answers. Look there: is it training, or stopped?
    """
    shown = "; ".join(missing[:SHOWN]) + (f"; and {len(missing) - SHOWN} more" if len(missing) > SHOWN else "")
    return (
        f"waiting for {waited_s:.0f} s: {shown}; the run goes on when it answers. Look there: is it training, or "
        "stopped?"
    )
