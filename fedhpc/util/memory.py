"""How much memory this process may still take, how much it has taken, and what it does with what it frees."""

import ctypes
import os
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, NEVER = -1, -3, -1
LARGEST_MMAP_THRESHOLD_BYTES = 32 * 2**20
"""Of mallopt(3)."""


def fits_in_memory(size_bytes: int) -> bool:
    """Return whether so much fills less than a quarter of the memory that this process may still take."""
    return size_bytes < available_bytes() / 4


def available_bytes() -> int:
    """Memory that this process may still take: the machine's, or its batch job's where that is less."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    for line in _lines(Path("/proc/self/cgroup")):
        if line.startswith("0::/"):
            own = Path("/sys/fs/cgroup") / line[4:]
            limits = [text for group in (own, *own.parents) for text in _lines(group / "memory.max")]
            free = min([free, *(int(text) for text in limits if text.isdecimal())])
    return free


def reset_peak() -> int:
    """Let the peak of this process's resident memory begin anew; return what it holds now, in bytes (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


def peak_bytes() -> int:
    """Return the most resident memory of this process since its start, or since `reset_peak`, in bytes (Linux)."""
    (peak,) = (line for line in _lines(Path("/proc/self/status")) if line.startswith("VmHWM:"))
    return int(peak.split()[1]) * 1024


def keep_freed_memory() -> None:
    """Make this process keep what it frees: the next step of a training asks for it again.

    It does nothing where the C library is not glibc. That gives the end of its heap back once a few MB of it are free,
    and maps larger blocks one by one, so that every step of training faults its activations in anew, 4 kB at a time.
    The most memory that is held at once stays about the same. Blocks above 32 MB, the highest limit that glibc allows,
    are mapped one by one still.
    """
    adjust = getattr(ctypes.CDLL(None), "mallopt", None)
    if adjust is not None:
        adjust(M_TRIM_THRESHOLD, NEVER)
        adjust(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD_BYTES)


def give_back_freed_memory() -> None:
    """Give the kernel back what this process has freed and does not need soon; nothing without glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
