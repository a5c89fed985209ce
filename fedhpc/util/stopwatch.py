"""Seconds by phase of a round."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Stopwatch:
    """Seconds by phase of one round, by the monotonic clock; those of a phase inside another are not the outer's."""

    seconds: dict[str, float] = field(default_factory=dict)
    _inner_s: float = 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time spent inside to `name`."""
        start, before_s = time.monotonic(), self._inner_s
        self._inner_s = 0.0
        yield
        spent_s = time.monotonic() - start
        self.seconds[name] = self.seconds.get(name, 0.0) + spent_s - self._inner_s
        self._inner_s = before_s + spent_s
