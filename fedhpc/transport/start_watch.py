"""A child process that ends a rank whose MPI does not come up.

`MPI_Init` returns when all ranks have called it, and holds Python's lock meanwhile, so that no timer and no signal
handler of this process runs. Under `mpirun --with-ft ulfm` the launcher does not end the others where a rank has ended
before; and a rank that is stopped (SIGSTOP, a dead file system) ends under no launcher. Both would be waited for until
the time limit of the job.
"""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedhpc.transport.mpi_library import is_fault_tolerant, is_launched

LOOK_S, STDERR = 0.2, 2
GRACE_S = 3.0
"""For a launcher that is still starting the ranks."""
LOCAL_RANKS = "OMPI_COMM_WORLD_LOCAL_SIZE"
LAUNCHERS = ("mpirun", "mpiexec", "prterun", "prted", "prte")
"""Processes that end all ranks when they get SIGTERM."""


@contextmanager
def watched_start(limit_s: float | None) -> Iterator[None]:
    """End this rank, and under ULFM all others, where what is done inside takes too long or this process ends in it.

    Args:
        limit_s: how long it may take; None: for ever.
    """
    if not is_launched() or "mpi4py.MPI" in sys.modules:
        yield
        return
    parent, launcher = os.getpid(), os.getppid()
    child = os.fork()
    if not child:
        try:
            _watch(parent, launcher, limit_s)
        finally:
            os._exit(0)
    yield
    # Only where all went well: else it sees this process end, and ends the others.
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def _watch(parent: int, launcher: int, limit_s: float | None) -> None:
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    began_s = whole_s = time.monotonic()
    while os.getppid() == parent and time.monotonic() - whole_s < GRACE_S:
        whole_s = whole_s if _lacks_a_rank(launcher) else time.monotonic()
        if limit_s is not None and time.monotonic() - began_s > limit_s:
            _say(
                f"MPI has not come up for {limit_s:g} s (faults.join_timeout_s): a rank has ended or does not answer; "
                "this start ends, and the same command goes on after the last saved round"
            )
            _end_launcher(launcher)
            with suppress(ProcessLookupError):
                os.kill(parent, signal.SIGKILL)
            return
        time.sleep(LOOK_S)
    if is_fault_tolerant():
        _say("a rank has ended before MPI was up; the others, which would wait for it for ever, are ended")
        _end_launcher(launcher)


def _lacks_a_rank(launcher: int) -> bool:
    """Whether a launcher has fewer processes on this host than ranks; only where it does not end the others itself."""
    if not is_fault_tolerant() or _name(launcher) not in LAUNCHERS:
        return False
    try:
        lists = [path.read_text(encoding="ascii") for path in Path(f"/proc/{launcher}/task").glob("*/children")]
    except OSError:
        return False
    return bool(lists) and sum(len(one.split()) for one in lists) < int(os.environ.get(LOCAL_RANKS, "0"))


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _end_launcher(launcher: int) -> None:
    """Without fault tolerance it ends the others by itself, as a rank ends."""
    if is_fault_tolerant() and _name(launcher) in LAUNCHERS:
        with suppress(ProcessLookupError):
            os.kill(launcher, signal.SIGTERM)


def _say(text: str) -> None:
    with suppress(OSError):
        os.write(STDERR, f"error: {text}\n".encode())
