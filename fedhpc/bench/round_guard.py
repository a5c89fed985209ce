"""Ends the processes of `run.py bench round` where that has ended itself: stopped ones would stay for ever.

`python -m fedhpc.bench.round_guard` reads lines `PID BORN` and, at the end of its input, kills those processes and all
below them. Its input is a pipe that only the bench holds open: it ends with the bench, however that ends, SIGKILL
included. A process that a signal has stopped can neither notice that its parent is gone nor be told so by MPI.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import IO

from fedhpc.errors import InputError
from fedhpc.sweep.environment import CHECKOUT, SAFE_PATH
from fedhpc.util.processes import born, tree


class Guard:
    """The bench's end of the pipe to a guard."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe

    def watch(self, pids: Iterable[int]) -> None:
        """Have these processes, and all that will be below them, ended with this one.

        Raises:
            InputError: the guard has ended.
        """
        there = [(pid, since) for pid in pids if (since := born(pid))]
        try:
            self._pipe.write("".join(f"{pid} {since}\n" for pid, since in there).encode())
            self._pipe.flush()
        except BrokenPipeError:
            raise InputError("bench round: the process that ends all others has ended", code="bench.failed") from None


@contextmanager
def guarded() -> Iterator[Guard]:
    """Start a guard, and let it end. What it watches is ended then too, where any is left."""
    command = [sys.executable, "-m", "fedhpc.bench.round_guard"]
    # In a session of its own, so that Ctrl-C and a terminal that closes do not end it first.
    found = {**os.environ, **SAFE_PATH, "PYTHONPATH": str(CHECKOUT)}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True, env=found)
    if process.stdin is None:
        raise ValueError("the guard has no input")
    try:
        yield Guard(process.stdin)
    finally:
        with suppress(BrokenPipeError):
            process.stdin.close()
        process.wait()


def main(lines: Iterable[str]) -> None:
    """Read to the end of `lines`, then kill what they name and still is what it was."""
    watched = dict(line.split() for line in lines)
    there = [int(pid) for pid, since in watched.items() if born(int(pid)) == since]
    for pid in {one for root in there for one in tree(root)}:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.stdin)
