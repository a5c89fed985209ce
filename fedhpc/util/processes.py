"""Processes of this machine, and whether one that a file tells of is still there."""

from pathlib import Path


def born(pid: int) -> str:
    """When a process of this machine was started, in clock ticks since boot; empty where there is none.

    >>> import os
    >>> born(os.getpid()).isdecimal(), born(2**22 + 1)
    (True, '')
    """
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def boot_id() -> str:
    """What tells this start of this machine's kernel from every other; empty where the kernel does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
