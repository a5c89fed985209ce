"""Being told to stop: from the first round on a signal sets a flag; nothing else happens until the run looks at it.

SLURM sends SIGUSR1 before the time limit (`--signal`) and SIGTERM when a job is preempted or requeued. A handler of
Python's never runs inside a blocked MPI call, and a rank that went on its own would leave the others waiting, so the
handler only notes the time. The run looks in two places: after each round all ranks vote on whether to go on; and
after each step of training a site whose time is up leaves the round, upon which all ranks do (see
`fedhpc.algorithms.fedavg.federate`). Either way what is on disk is the state after a whole round.

Before the first round there is nothing to save: there a signal ends the process at once, by `Stopped`, with status 143
(SIGTERM) or 75 (SIGUSR1, since a batch system sends it to have the job queued again). Ctrl-C ends a run at any time,
with status 130; rounds that are recorded stay.
"""

import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType

from fedhpc.errors import Interrupted, Stopped

LOG = logging.getLogger(__name__)

SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
STDERR = 2
HEEDED = "{} came: stopping after this round; what is finished is kept, and the same\n  command goes on from there\n"
STATUS = {signal.SIGUSR1: 75, signal.SIGTERM: 128 + signal.SIGTERM}
"""The exit status of a start that a signal ends before its first round."""
OnStep = Callable[[int, int], None]


@dataclass
class StopRequest:
    """Whether this process has been told to stop, and since when.

    Attributes:
        asked_s: the monotonic time of the first signal; None before it.
        by: the signal's name.
        in_rounds: whether a signal waits for the end of a round.
        speaks: whether this process says on stderr that a signal has come.
    """

    asked_s: float | None = None
    by: str = ""
    in_rounds: bool = False
    speaks: bool = False

    def listen(self) -> None:
        """Take the signals from now on; the main thread only."""
        for number in SIGNALS:
            signal.signal(number, self._note)

    def begin_rounds(self, *, speaks: bool) -> None:
        """From now on a signal is heeded after a round; where this process `speaks`, it says so as one comes."""
        self.in_rounds, self.speaks = True, speaks

    @property
    def given(self) -> bool:
        """Whether a signal has come."""
        return self.asked_s is not None

    def watched(self, on_step: OnStep, patience_s: float) -> OnStep:
        """`on_step`, which also leaves the training `patience_s` seconds after the signal.

        The function that it returns raises Interrupted.
        """

        def step(done: int, total: int) -> None:
            on_step(done, total)
            if self.asked_s is not None and time.monotonic() - self.asked_s >= patience_s and done < total:
                why = f"{self.by} came {patience_s:g} s ago (runtime.patience_s)"
                LOG.warning("%s: leaving the round after step %d of %d", why, done, total)
                raise Interrupted(why)

        return step

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked_s is None:
            self.asked_s, self.by = time.monotonic(), signal.Signals(number).name
            if not self.in_rounds:
                raise Stopped(self.by, STATUS[signal.Signals(number)])
            if self.speaks:
                # Not print: a handler may have interrupted one. A launcher that is gone reads no more.
                with suppress(OSError):
                    os.write(STDERR, HEEDED.format(self.by).encode())
