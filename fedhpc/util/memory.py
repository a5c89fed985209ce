"""How much memory this process may still take, and how much it has taken."""

import os
from pathlib import Path


def fits_in_memory(size_bytes: int) -> bool:
    """Whether so much fills less than a quarter of the memory that this process may still take."""
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
    """The most resident memory of this process since its start, or since `reset_peak`, in bytes (Linux)."""
    (peak,) = (line for line in _lines(Path("/proc/self/status")) if line.startswith("VmHWM:"))
    return int(peak.split()[1]) * 1024


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
