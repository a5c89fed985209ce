"""A process that ends a launcher which lives on after its last rank.

Open MPI's `mpirun --with-ft ulfm` (its process is `prterun`) may wait for ever once ranks were killed (seen with
5.0.11). A rank that learns of a lost rank starts a guard, `python -m fedhpc.transport.launcher_guard PID BORN NAMESPACE
PATIENCE_S`, in a session of its own and without MPI. It ends with the launcher; where that has had no living rank on
this host for some seconds, it is sent SIGTERM, then SIGKILL, and the guard reports so on the launcher's stderr.
Ranks on other hosts have nothing left to do by then: a guard is started on the host of rank 0 only, without which none
goes on (`fedhpc.run.start.membership.guard_launcher`).

A process is signalled only if it is of this user, its executable is `prterun`, it has started a rank of this very job,
and it still is the process that it was then (process id and start time). So a daemon that serves several jobs (`prte`,
`prted`), a launcher in another process namespace, and a launcher on another host are never signalled; nor is one under
a system without /proc (macOS), where it has to be ended by hand. Any living rank of the job on the launcher's host, of
whatever program, keeps the launcher.
"""

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path

from fedhpc.util.processes import born, children, is_running

LOG = logging.getLogger(__name__)

LAUNCHER = "prterun"
"""What mpirun and mpiexec of Open MPI 5 become; it serves one job."""
NAMESPACE = "PMIX_NAMESPACE"
"""Names the job in each of its ranks' environments: `prterun-HOST-PID@1`."""
RANK = "PMIX_RANK"
KILL_AFTER_S, LOOKS, SHORTEST_S, LONGEST_S = 5.0, 20, 0.05, 1.0
"""Seconds between SIGTERM and SIGKILL; how often to look within the patience, and how long to sleep in between."""


@dataclass(frozen=True)
class Launcher:
    """A launcher on this host: its process id, its start time in clock ticks since boot, and the job of its ranks."""

    pid: int
    born: str
    job: str

    def is_there(self) -> bool:
        """Return whether it has not ended; its process id may be another's by now."""
        return is_running(self.pid, self.born)

    def has_rank(self) -> bool:
        """Return whether a rank that it has started here is alive."""
        return any(_is_of(self.job, pid) for pid in children(self.pid))

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it has not ended; never to a later process of the same id."""
        try:
            process = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        except (OSError, AttributeError):
            # Before Linux 5.3, in a container that forbids it, or a Python built for older systems (conda's): in the
            # moment after this look the id may become another's.
            if self.is_there():
                with suppress(ProcessLookupError):
                    os.kill(self.pid, number)
            return
        try:
            if self.is_there():
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(process, number)
        finally:
            os.close(process)

    def report(self, text: str) -> None:
        """Write a line to its stderr; none where that is closed or cannot be written to at once."""
        with suppress(OSError):
            stderr = os.open(f"/proc/{self.pid}/fd/2", os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY)
            try:
                os.write(stderr, f"{text}\n".encode())
            finally:
                os.close(stderr)


def start_guard(patience_s: float | None) -> None:
    """Start a guard of this rank's launcher, unless it has one.

    Args:
        patience_s: how long the launcher may live on without a rank here; None: for ever.
    """
    launcher = None if patience_s is None else launcher_of(os.environ.get(NAMESPACE, ""))
    if launcher is None:
        return
    command = [sys.executable, "-S", "-m", "fedhpc.transport.launcher_guard", *map(str, astuple(launcher))]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PMIX_", "OMPI_"))}
    # Its standard streams are not the rank's: a launcher waits until those are closed.
    try:
        starter = subprocess.Popen(
            [*command, str(patience_s)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={**inherited, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
            start_new_session=True,
        )
    except OSError as error:  # no more processes are allowed: the ranks that are left go on nevertheless
        LOG.warning("the launcher has no guard (%s); end it by hand should it live on without ranks", error.strerror)
        return
    starter.wait()  # it leaves the guard behind at once


def launcher_of(job: str) -> Launcher | None:
    """Return the launcher of a job's ranks on this host; None where none can be told for certain.

    Args:
        job: the job's name in the environment of this rank; empty outside of Open MPI.
    """
    named = re.fullmatch(rf"{LAUNCHER}-.+-(\d+)@\d+", job)
    if named is None:
        return None
    found = Launcher(int(named[1]), born(int(named[1])), job)
    try:
        executable = Path(os.readlink(f"/proc/{found.pid}/exe")).name
        is_ours = os.stat(f"/proc/{found.pid}").st_uid == os.geteuid()
    except OSError:
        return None
    return found if is_ours and executable == LAUNCHER and found.has_rank() else None


def _is_of(job: str, pid: int) -> bool:
    """Whether a process is a rank of the job, or may be one. What keeps daemons on other hosts (ssh, srun) is none."""
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return False
    except OSError:
        return True
    return variables == [b""] or f"{NAMESPACE}={job}".encode() in variables


def is_rank(pid: int, rank: int) -> bool:
    """Return whether a process of this host is certain to be the one that this process's job has started as `rank`."""
    job = os.environ.get(NAMESPACE)
    if pid <= 1 or pid == os.getpid() or not job:
        return False
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return {f"{NAMESPACE}={job}".encode(), f"{RANK}={rank}".encode()} <= set(variables)


def watch(launcher: Launcher, patience_s: float) -> None:
    """Wait until the launcher ends; end it where it has had no rank here for `patience_s`."""
    pause_s, ranks_s = min(LONGEST_S, max(SHORTEST_S, patience_s / LOOKS)), time.monotonic()
    while launcher.is_there():
        time.sleep(pause_s)
        if launcher.has_rank():
            ranks_s = time.monotonic()
        elif time.monotonic() - ranks_s >= patience_s and launcher.is_there():
            launcher.report(
                f"fedhpc: mpirun (process {launcher.pid}) has had no rank for {patience_s:g} s and is ended "
                "(faults.launcher_patience_s); its exit status says nothing of the run: see `run.py watch RUN`, or "
                "start the same command again"
            )
            _end(launcher)
            return


def _end(launcher: Launcher) -> None:
    launcher.send(signal.SIGTERM)
    until_s = time.monotonic() + KILL_AFTER_S
    while launcher.is_there() and time.monotonic() < until_s:
        time.sleep(SHORTEST_S)
    launcher.send(signal.SIGKILL)


def main(words: list[str]) -> None:
    """Leave a guard behind and end; the guard ends at once where the launcher has one already."""
    pid, since, job, patience_s = words
    if os.fork():
        return
    lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        # A name without a file, which is free again as soon as its process ends.
        lock.bind(f"\0fedhpc-launcher-guard-{os.geteuid()}-{pid}-{since}")
    except OSError:
        return
    with lock:
        watch(Launcher(int(pid), since, job), float(patience_s))


if __name__ == "__main__":
    main(sys.argv[1:])
