"""Processes and memory of this machine, and whether a process that a file tells of is still there.

psutil is imported where a sweep asks for it. `born` and `boot_id` do without: every rank calls them before it trains,
and psutil's start time moves with the clock of the machine, which would tell a process apart from itself.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path


def born(pid: int) -> str:
    """When a process of this machine was started, in clock ticks since boot; empty where there is none.

    >>> import os
    >>> born(os.getpid()).isdecimal(), born(2**22 + 1)
    (True, '')
    """
    return _stat(pid)[19]


def is_running(pid: int, since: str) -> bool:
    """Return whether a process of this machine that was started at `since` (see `born`) has not ended."""
    fields = _stat(pid)
    return fields[19] == since and fields[0] not in "ZX"


def children(pid: int) -> list[int]:
    """The processes that a process of this machine has started and that have not ended, without those below them."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        state, parent = _stat(int(folder.name))[:2]
        if parent == str(pid) and state not in "ZX":
            found.append(int(folder.name))
    return found


def _stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state on; empty ones where there is no such process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return [""] * 20
    return text.rpartition(")")[2].split()


def boot_id() -> str:
    """Return what tells this start of this machine's kernel from every other; empty where the kernel does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def exists(pid: int) -> bool:
    """Return whether a process is there, one that has ended and was not waited for included."""
    import psutil

    return psutil.pid_exists(pid)


def session(leader: int) -> list[int]:
    """Return the processes of a session that have not ended.

    Args:
        leader: the process that began it; it may have ended.
    """
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def resident_bytes(pids: Sequence[int]) -> int:
    """Memory that processes hold, shared pages counted for each; a process that has ended holds none."""
    import psutil

    total = 0
    for pid in pids:
        try:
            total += psutil.Process(pid).memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def total_memory_bytes() -> int:
    """Return the memory of this machine."""
    import psutil

    return psutil.virtual_memory().total


def available_memory_bytes() -> int:
    """Return the memory of this machine that can be had without swapping."""
    import psutil

    return psutil.virtual_memory().available


def cpu_s(pid: int) -> float:
    """CPU seconds (user and system) of a process, of its children those that have ended; 0 where it has ended."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        return sum(psutil.Process(pid).cpu_times()[:4])
    return 0.0


def tree(root: int) -> list[int]:
    """A process and all below it that have not ended; none where it has."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(root)
        return [process.pid, *(one.pid for one in process.children(recursive=True))]
    return []


def tree_pss_bytes(root: int) -> int:
    """Proportional set size of a process and all below it: a page that several share counts once in all."""
    total = 0
    for pid in tree(root):
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
            total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total
