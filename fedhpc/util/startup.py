"""Where the seconds before the first step of training go, for the one line that a run prints about it."""

import os
import time
from pathlib import Path


class Startup:
    """Marks on the way from the start of this process to its first step.

    Attributes:
        note: what else the line says, such as cores and threads.
    """

    def __init__(self) -> None:
        self._last_s = time.monotonic()
        self._before_s = process_age_s()
        self._parts: dict[str, float] = {"Python": self._before_s}
        self.note = ""

    def mark(self, part: str) -> None:
        """All since the last mark was `part`."""
        now_s = time.monotonic()
        self._parts[part] = self._parts.get(part, 0.0) + now_s - self._last_s
        self._last_s = now_s

    @property
    def line(self) -> str:
        """All parts, in seconds; and the note, if there is one."""
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self._parts.items())
        return f"ready {sum(self._parts.values()):.1f} s after the start of this process: {parts}" + (
            f"; {self.note}" if self.note else ""
        )


def process_age_s() -> float:
    """Seconds since the kernel started this process; 0 where it does not tell."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return 0.0
    started_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started_s)
