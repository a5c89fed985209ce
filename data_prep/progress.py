"""How far a long import is: a bar with the time left on a terminal, a line every 20 s elsewhere, nothing below 5 s."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

from tqdm import tqdm

FIRST_S, EVERY_S = 5.0, 20.0
Item = TypeVar("Item")


def progress(items: Iterable[Item], total: int, what: str, stream: TextIO | None = None) -> Iterator[Item]:
    """Yield `items`, saying on `stream` (standard error by default) how many of `total` are done and what is left."""
    out = sys.stderr if stream is None else stream
    if out.isatty():
        yield from tqdm(items, what, total, unit="image", leave=False, delay=FIRST_S, file=out)
        return
    start_s = time.monotonic()
    next_s = start_s + FIRST_S
    for done, item in enumerate(items, 1):
        yield item
        now_s = time.monotonic()
        if now_s >= next_s and done < total:
            left_s = (now_s - start_s) / done * (total - done)
            print(f"{what}: {done:,} of {total:,}, about {left_s:.0f} s left", file=out, flush=True)
            next_s = now_s + EVERY_S
