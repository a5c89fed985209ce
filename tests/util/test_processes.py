"""Processes and memory, beside what the kernel itself says of them."""

import os
import signal
import subprocess
from pathlib import Path

from fedhpc.util.processes import available_memory_bytes, exists, resident_bytes, session, total_memory_bytes


def test_session_is_the_leader_and_its_children() -> None:
    started = subprocess.Popen(
        ["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert started.stdout is not None
    with started:
        child = int(started.stdout.readline())
        assert sorted(session(started.pid)) == sorted([started.pid, child])
        pages = int(Path(f"/proc/{child}/statm").read_text(encoding="ascii").split()[1])
        assert resident_bytes([child]) == pages * os.sysconf("SC_PAGE_SIZE") > 0
        os.killpg(started.pid, signal.SIGKILL)
        os.waitid(os.P_PID, started.pid, os.WEXITED | os.WNOWAIT)
        # Ended and not waited for: there, and of no session.
        assert exists(started.pid) and started.pid not in session(started.pid)
        started.wait()
        assert not exists(started.pid)
    assert resident_bytes([2**22 + 1]) == 0


def test_memory_is_the_kernels() -> None:
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    kilobytes = {line.partition(":")[0]: int(line.split()[1]) for line in lines}
    assert total_memory_bytes() == 1024 * kilobytes["MemTotal"]
    assert 0 < available_memory_bytes() <= total_memory_bytes()
