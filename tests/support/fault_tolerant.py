"""A run under `mpirun --with-ft ulfm`, one rank of which gets a signal in mid-run."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPO, Outcome, kill_session, missing
from tests.support.preloaded import STANDS_FOR


@dataclass(frozen=True)
class Blow:
    """What one rank gets, and when (a function that says that the time has come)."""

    rank: int
    signal: signal.Signals
    when: Callable[[], bool]

    def strike(self, pid: int) -> None:
        """Give it to a process."""
        os.kill(pid, self.signal)


@dataclass(frozen=True)
class OutOfMemory(Blow):
    """The process is put into a control group with no memory left, and its next page ends it.

    Attributes:
        group: the folder of the control group (version 1).
    """

    group: Path = Path()

    def strike(self, pid: int) -> None:
        """See `Blow`."""
        (self.group / "memory.limit_in_bytes").write_text("2M", encoding="ascii")
        (self.group / "cgroup.procs").write_text(str(pid), encoding="ascii")


@contextlib.contextmanager
def memory_group(name: str) -> Iterator[Path]:
    """A control group of this machine; the test is skipped where none can be made."""
    group = Path("/sys/fs/cgroup/memory") / name
    if not (group.parent / "memory.limit_in_bytes").exists() or not os.access(group.parent, os.W_OK):
        missing("no control group for memory can be made here")
    group.mkdir()
    try:
        yield group
    finally:
        with contextlib.suppress(OSError):
            group.rmdir()


def rank_of(pid: int) -> int | None:
    """The MPI rank of a process; None for another process."""
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    prefix = b"OMPI_COMM_WORLD_RANK="
    return next((int(one.removeprefix(prefix)) for one in variables if one.startswith(prefix)), None)


def process_of(session: int, rank: int) -> int:
    """The process id of a rank of the mpirun that leads a session; of what it stands for, where it is `preloaded`."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        pid = int(stat.parent.name)
        try:
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and rank_of(pid) == rank:
            name = (stat.parent / "comm").read_text(encoding="utf-8").strip()
            return int(name.removeprefix(STANDS_FOR)) if name.startswith(STANDS_FOR) else pid
    raise LookupError(f"no process of rank {rank} in session {session}")


def struck(
    mpi: Any, ranks: int, words: list[str], *blows: Blow, timeout: float = 280, python: list[str] | None = None
) -> Outcome:
    """Start the program, give the blows in turn, wait for the end; the status is the launcher's.

    Args:
        blows: the first must come; the others need not, where the program ends before.
        python: what stands in for the interpreter (`preloaded`).
    """
    command = [mpi.launcher, "--with-ft", "ulfm", *mpi.command(ranks, words, python)[1:]]
    process = subprocess.Popen(
        command,
        cwd=REPO,
        env={**os.environ, **mpi.start_env()},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    until = time.monotonic() + timeout
    try:
        for blow in blows:
            while not blow.when() and process.poll() is None and time.monotonic() < until:
                time.sleep(0.002)
            if process.poll() is None and time.monotonic() < until:
                blow.strike(process_of(process.pid, blow.rank))
            elif blow is blows[0]:
                out, err = process.communicate(timeout=5)
                pytest.fail(f"ended ({process.returncode}) or took {timeout} s before the blow\n{out}\n{err}")
        out, err = process.communicate(timeout=max(1.0, until - time.monotonic()))
    finally:
        kill_session(process.pid)
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
    return Outcome(process.returncode, out, err)
