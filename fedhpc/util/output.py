"""Standard output: closed by its reader before the work is done, or written to by a library in C++."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

STDOUT = 1


def stop_printing() -> None:
    """Send all further standard output nowhere: its reader has gone, and the flush at exit must not fail either."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


@contextmanager
def nothing_printed() -> Iterator[None]:
    """Drop what is written to standard output, also by C++ code, which does not go through `sys.stdout`."""
    sys.stdout.flush()
    kept, nowhere = os.dup(STDOUT), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, STDOUT)
    try:
        yield
    finally:
        sys.stdout.flush()
        ctypes.CDLL(None).fflush(None)
        os.dup2(kept, STDOUT)
        for fd in (kept, nowhere):
            os.close(fd)
