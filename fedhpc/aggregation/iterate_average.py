"""The mean of the last global models as the result of a run (Polyak and Juditsky 1992).

The noise of private training is another in every round, so the mean of several released models has less of it than the
last one. It is post-processing of what has been released: it costs no privacy.
"""

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from fedhpc.aggregation.base import Arrays
from fedhpc.util.arrays import F32, Array


@dataclass(frozen=True)
class IterateAverage:
    """A running mean over rounds (public; the same bits at every rank).

    Attributes:
        start: rounds after this many are counted.
        last: the number of the last round.
        total: float64[d], the sum of the models counted so far; of none, and of the last model alone, float64[0].
        count: how many.

    >>> average = IterateAverage.over_last(0.5, rounds=4)
    >>> for round in (1, 2, 3, 4):
    ...     average = average.after(round, np.array([round], np.float32))
    >>> average.released(np.array([9], np.float32)).tolist()
    [3.5]
    """

    start: int
    last: int
    total: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    count: int = 0

    @classmethod
    def over_last(cls, share: float, rounds: int) -> "IterateAverage":
        """Over the last `share` of a run of so many rounds; a share of 0 is the last model alone."""
        return cls(rounds - max(1, round(share * rounds)), rounds)

    def arrays(self) -> dict[str, Array]:
        """As named arrays, to be saved."""
        return {
            "average_total": self.total,
            "average_count": np.array(self.count),
            "average_start": np.array(self.start),
        }

    def resumed(self, saved: Arrays) -> "IterateAverage":
        """Go on from what `arrays` gave; anew where that was over other rounds, as in a continued run."""
        if "average_total" not in saved or int(saved["average_start"]) != self.start:
            return self
        count = int(saved["average_count"])
        if not count or self._is_last_alone:
            return replace(self, count=count)
        return replace(self, total=saved["average_total"].astype(np.float64, copy=False), count=count)

    def after(self, round: int, params: F32) -> "IterateAverage":
        """With the global model f32[d] after round number `round`."""
        if round <= self.start:
            return self
        if self._is_last_alone:
            return replace(self, count=1)
        total = self.total + params if self.count else np.add(0.0, params, dtype=np.float64)
        return replace(self, total=total, count=self.count + 1)

    def released(self, params: F32) -> F32:
        """Return what the run would release now: the mean, or before its first round the current model f32[d]."""
        if not self.count:
            return params
        if self._is_last_alone:
            return params + np.float32(0)  # as from a sum: no -0.0
        return (self.total / self.count).astype(np.float32)

    @property
    def _is_last_alone(self) -> bool:
        return self.start == self.last - 1
