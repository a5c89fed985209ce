"""What the user sees: a bar on a terminal, also through mpirun; plain lines everywhere else."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]

PROGRAM = """
import time
from fedhpc.run.display import Console
console = Console(speaks=True)
console.start_round(0, 3, 60.0)
for done in range(1, 4):
    console.step(done, 3)
    time.sleep(0.2)
console.say("round line")
"""
ON_A_TERMINAL = """
import os, pty, sys
seen = bytearray()
def read(fd):
    data = os.read(fd, 4096)
    seen.extend(data)
    return data
status = pty.spawn(sys.argv[2:], read)
open(sys.argv[1], "wb").write(seen)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def test_a_bar_with_the_time_left_on_a_terminal(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ON_A_TERMINAL, str(tmp_path / "seen"), sys.executable, "-c", PROGRAM]
    subprocess.run(command, cwd=REPO, timeout=100, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    text = (tmp_path / "seen").read_text(encoding="utf-8")
    assert "round 1/3, about 3 min 00 s left" in text
    assert "round line" in text


@pytest.mark.mpi
def test_no_bar_where_mpirun_writes_to_a_pipe(mpirun: Callable[..., tuple[int, str, str]]) -> None:
    status, out, err = mpirun(1, ["-c", PROGRAM], fresh=True)
    assert status == 0, err
    assert out.split() == ["round", "line"]
