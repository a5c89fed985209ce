"""Memory: what a process frees it keeps, so that the next step does not fault it in anew."""

import subprocess
import sys

# Blocks of 4 MB, as the activations of a step: filled, then freed from the last to the first.
STEPS = """
import resource, sys
import numpy as np
from fedhpc.util.memory import keep_freed_memory
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
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    run = subprocess.run([sys.executable, "-c", STEPS, how], capture_output=True, text=True, check=True, timeout=60)
    return int(run.stdout)


def test_freed_memory_is_kept() -> None:
    given_back = faults("given back")
    assert given_back > 10 * 2**20 * 4 // 4096, "nothing to gain here: the test shows nothing"
    assert faults("kept") < given_back / 100
