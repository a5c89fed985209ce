"""How far long work is: a bar with the time left on a terminal, a line every 20 s elsewhere, nothing below 5 s."""

import contextlib
import math
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO, TypeVar

from tqdm import tqdm

FIRST_S, EVERY_S, REDRAW_S = 5.0, 20.0, 1.0
CLEAR_LINE = "\r\x1b[K"
Item = TypeVar("Item")


def progress(items: Iterable[Item], total: int, what: str, unit: str = "image") -> Iterator[Item]:
    """Yield `items`, saying on standard error how many of `total` are done and what is left.

    For counts that may be seen; `progress_in_tenths` is for those of a hospital's shard.
    """
    out = sys.stderr
    if out.isatty():
        # mpirun may give its ranks a terminal without a size, where tqdm would draw nothing.
        size = shutil.get_terminal_size()
        shape = {"ncols": min(100, size.columns), "nrows": size.lines}
        yield from tqdm(items, what, total, unit=unit, leave=False, delay=FIRST_S, file=out, **shape)
        return
    beat = Beat(what)
    for done, item in enumerate(items, 1):
        yield item
        beat.at(done, total)


def progress_in_tenths(items: Iterable[Item], total: int, what: str, stream: TextIO | None = None) -> Iterator[Item]:
    """Yield `items`, saying on `stream` which tenth is reached: neither `total`, which is private, nor a count."""
    beat = Beat(what, stream, counted=False)
    for done, item in enumerate(items, 1):
        yield item
        beat.at(done, total)


class Beat:
    """Says now and then how far work is that is no loop over items; in tenths where it is not `counted`."""

    def __init__(self, what: str, stream: TextIO | None = None, *, counted: bool = True) -> None:
        self._what, self._out = what, sys.stderr if stream is None else stream
        self._counted = counted
        self._start_s = time.monotonic()
        self._next_s = self._start_s + FIRST_S

    def at(self, done: float, total: float) -> None:
        """So much of `total` is done: a line, if the last one was EVERY_S ago."""
        now_s = time.monotonic()
        if now_s < self._next_s or not 0 < done < total:
            return
        left_s = (now_s - self._start_s) / done * (total - done)
        if self._counted:
            state, left = f"{done:,.0f} of {total:,.0f}", f"{left_s:.0f}"
        else:
            state, left = f"{10 * int(10 * done / total)} %", f"{10 * math.ceil(left_s / 10)}"
        print(f"{self._what}: {state}, about {left} s left", file=self._out, flush=True)
        self._next_s = now_s + EVERY_S


@contextlib.contextmanager
def at_work(what: str, stream: TextIO | None = None) -> Iterator[Callable[[str], None]]:
    """Report on `stream` (standard error by default) that work goes on whose steps last unequally long.

    Yields a function that takes what is done next. A thread writes the lines, also within a step: a line that it
    overwrites on a terminal, a new one every EVERY_S elsewhere.
    """
    out = sys.stderr if stream is None else stream
    live, steps, finished = out.isatty(), [""], threading.Event()
    start_s = time.monotonic()

    def report() -> None:
        if finished.wait(FIRST_S):
            return
        while True:
            text = f"{what}{': ' if steps[-1] else ''}{steps[-1]}, {time.monotonic() - start_s:.0f} s"
            print(f"{CLEAR_LINE}{text}" if live else text, end="" if live else "\n", file=out, flush=True)
            if finished.wait(REDRAW_S if live else EVERY_S):
                break
        if live:
            print(CLEAR_LINE, end="", file=out, flush=True)

    thread = threading.Thread(target=report, name=f"progress of {what}", daemon=True)
    thread.start()
    try:
        yield steps.append
    finally:
        finished.set()
        thread.join()
