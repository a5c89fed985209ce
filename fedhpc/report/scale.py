"""From values to pixels, and the round numbers that an axis shows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

LOG_FROM = 8.0
"""An axis of positive values whose largest is so many times its smallest is logarithmic where that is allowed."""
MOST_LABELS = 7


def tick_step(span: float) -> float:
    """A round step that divides `span` into about five.

    >>> tick_step(0.3), tick_step(0.012), tick_step(10)
    (0.05, 0.002, 2.0)
    """
    rough = max(span, 1e-12) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    return min((factor * power for factor in (1, 2, 5, 10)), key=lambda step: abs(math.log(step / rough)))


@dataclass(frozen=True)
class Scale:
    """An axis: values from `low` to `high` lie between the pixels `first` and `last`."""

    low: float
    high: float
    first: float
    last: float
    logarithmic: bool = False
    step: float = 0.0

    def at(self, value: float) -> float:
        """Return the pixel of a value; one beyond the axis lies at its end.

        >>> Scale(1.0, 1.0, 0.0, 10.0).at(1.0)
        5.0
        """
        if self._scaled(self.high) == self._scaled(self.low):
            return (self.first + self.last) / 2
        value = min(max(value, self.low), self.high)
        share = (self._scaled(value) - self._scaled(self.low)) / (self._scaled(self.high) - self._scaled(self.low))
        return self.first + share * (self.last - self.first)

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.logarithmic else value

    def ticks(self) -> list[float]:
        """Return the values with a label."""
        if not self.logarithmic:
            first = math.ceil(self.low / self.step - 1e-9)
            return [round(k * self.step, 12) for k in range(first, math.floor(self.high / self.step + 1e-9) + 1)]
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        factors = (1, 2, 5) if len(decades) <= 4 else (1,)
        found = [f * 10.0**k for k in decades for f in factors if self.low * 0.999 <= f * 10.0**k <= self.high * 1.001]
        return found[:: math.ceil(len(found) / MOST_LABELS)] if found else [self.low, self.high]


@dataclass(frozen=True)
class Span:
    """Where an axis lies: its pixels, and what limits its values.

    Attributes:
        first, last: pixels of the lowest and the highest value.
        least: the smallest difference that fills the axis, so that noise does not.
        floor, ceiling: values that the axis does not pass.
        may_be_log: whether it may be logarithmic.
        whole: whether its labels are whole numbers.
    """

    first: float
    last: float
    least: float = 0.0
    floor: float = -math.inf
    ceiling: float = math.inf
    may_be_log: bool = False
    whole: bool = False


def scale_of(values: Sequence[float], span: Span, *, fit: bool = False) -> Scale:
    """Return the axis of some values; with `fit` it ends at them, else at round numbers."""
    low, high = min(values), max(values)
    if span.may_be_log and low > 0 and high / low >= LOG_FROM:
        return Scale(low / 1.25, high * 1.25, span.first, span.last, logarithmic=True)
    room = max(high - low, span.least, abs(high) * 1e-9, 1e-9)
    step = max(1.0, tick_step(room)) if span.whole else tick_step(room)
    if fit and high > low:
        return Scale(low, high, span.first, span.last, step=step)
    middle = (low + high) / 2
    low, high = min(low, middle - room / 2), max(high, middle + room / 2)
    low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    return Scale(max(low, span.floor), min(high, span.ceiling), span.first, span.last, step=step)
