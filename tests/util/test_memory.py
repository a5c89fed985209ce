"""Memory: what a process frees it keeps, so that the next step does not fault it in anew."""

import subprocess
import sys

# Blocks of 4 MB, as the activations of a step: filled, then freed from the last to the first. In pages of 4 kB: whether
# and how a kernel takes huge ones would decide how many faults there are.
STEPS = """
import ctypes, resource, sys
PR_SET_THP_DISABLE = 41
assert ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) == 0
import numpy as np
from fedhpc.util.memory import give_back_freed_memory, keep_freed_memory, reset_peak
if sys.argv[1] == "kept":
    keep_freed_memory()
def step():
    blocks = [np.full(2**20, 1, np.float32) for _ in range(8)]
    while blocks:
        blocks.pop()
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
held = reset_peak()
give_back_freed_memory()
print(faults, held - reset_peak())
"""


def faults_and_given_back(how: str) -> list[int]:
    """Page faults of ten steps, and by how many bytes the process is smaller when it gives back what it has freed."""
    run = subprocess.run([sys.executable, "-c", STEPS, how], capture_output=True, text=True, check=True, timeout=60)
    return [int(number) for number in run.stdout.split()]


def test_freed_memory_is_kept() -> None:
    (without, _), (faults, given_back) = (faults_and_given_back(how) for how in ("as usual", "kept"))
    assert without > 10 * 2**20 * 4 // 4096, "nothing to gain here: the test shows nothing"
    assert faults < without / 100
    assert given_back > 7 * 4 * 2**20
