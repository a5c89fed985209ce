"""Items made by a thread while those before them are used: for reading, which lets go of Python's lock."""

import contextlib
import queue
import threading
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

DEPTH = 2
"""How many items may wait, beside the one in use and the one in the making."""


@dataclass(frozen=True)
class _Failed:
    """What the items ended with."""

    error: BaseException


class _End:
    """Behind the last item."""


def read_ahead(items: Iterable[T], depth: int = DEPTH) -> Generator[T, None, None]:
    """Yield the items in their order; what making one raises comes in its place.

    Close the iterator (`contextlib.closing`) where it may be left before its end: that ends the thread.

    Args:
        items: made by the thread alone, one after another.
        depth: how many may wait.
    """
    made: queue.Queue[T | _Failed | _End] = queue.Queue(depth)
    left = threading.Event()
    thread = threading.Thread(target=_make, args=(items, made, left), name="read ahead", daemon=True)
    thread.start()
    try:
        while not isinstance(item := made.get(), _End):
            if isinstance(item, _Failed):
                raise item.error
            yield item
    finally:
        left.set()
        thread.join()


def _make(items: Iterable[T], made: "queue.Queue[T | _Failed | _End]", left: threading.Event) -> None:
    """Put all items, and then their end or failure, unless the reader has left."""
    try:
        for item in items:
            _put(item, made, left)
            if left.is_set():
                return
    except BaseException as error:
        _put(_Failed(error), made, left)
    else:
        _put(_End(), made, left)


def _put(item: T | _Failed | _End, made: "queue.Queue[T | _Failed | _End]", left: threading.Event) -> None:
    while not left.is_set():
        with contextlib.suppress(queue.Full):
            made.put(item, timeout=0.1)
            return
