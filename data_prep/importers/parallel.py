"""Work over many files by one process a core, in order, a bounded number ahead, with the time left."""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from fedhpc.errors import ShardError
from fedhpc.util.progress import progress

Item = TypeVar("Item")
Result = TypeVar("Result")
FEW = 1024
"""Up to so many items one process is faster than to start others."""
BATCH, AHEAD = 64, 3


def each(
    work: Callable[[Item], Result], items: Sequence[Item], what: str, unit: str, *, few: int = FEW
) -> Iterator[Result]:
    """Yield `work(item)` for each item in order.

    Args:
        work: a function that can be pickled, and raises only what ends the import.
        items: that can be pickled.
        what: for the line of progress.
        unit: of the items.
        few: up to so many items are done by this process.

    Raises:
        ShardError: a process was killed, mostly for want of memory.
    """
    cores = len(os.sched_getaffinity(0))
    if cores == 1 or len(items) <= few:
        yield from progress(map(work, items), len(items), what, unit=unit)
        return
    size = max(1, min(BATCH, len(items) // (8 * cores)))
    yield from progress(_spread(work, items, cores, size), len(items), what, unit=unit)


def _spread(work: Callable[[Item], Result], items: Sequence[Item], cores: int, size: int) -> Iterator[Result]:
    # Not forked: this process has threads of libraries, whose locks a fork would copy in whatever state they are.
    context = multiprocessing.get_context("spawn")
    waiting: deque[Future[list[Result]]] = deque()
    with ProcessPoolExecutor(cores, mp_context=context, initializer=_leave_signals) as pool:
        try:
            for first in range(0, len(items), size):
                waiting.append(pool.submit(_batch, work, items[first : first + size]))
                if len(waiting) >= AHEAD * cores:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        except BrokenProcessPool as error:
            raise ShardError(
                "a process that reads files was killed, mostly for want of memory. Free some, and start "
                "again: what is finished is kept",
                code="prepare",
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _leave_signals() -> None:
    """Ctrl-C goes to every process of a terminal: this one's end is the main process's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _batch(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    return [work(item) for item in items]
