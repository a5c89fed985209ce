"""A line chart as inline SVG: AUC against one key of the grid, a line for each of the other settings."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 860, 440
LEFT, RIGHT, TOP, BOTTOM = 62, 210, 18, 52
# Okabe and Ito 2008: told apart by eyes of all kinds.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
DASHES = ("7 4", "2 3", "10 3 2 3", "1 5")
LEAST_SPAN = 0.02
"""Of the AUC axis, so that noise does not fill it."""
LOG_FROM = 5
"""An axis whose largest value is so many times its smallest is logarithmic."""


@dataclass(frozen=True)
class Mark:
    """One point: `x` None is the place for 'none', right of all numbers; `values` are those of the single runs."""

    x: float | None
    mean: float
    values: tuple[float, ...]


@dataclass(frozen=True)
class Chart:
    """What is drawn: {label: marks} as lines, {label: AUC} as level lines."""

    x_title: str
    none_title: str
    series: dict[str, list[Mark]]
    levels: dict[str, float]


@dataclass(frozen=True)
class Axes:
    """From values to pixels."""

    xs: tuple[float, ...]
    has_none: bool
    logarithmic: bool
    low: float
    high: float
    step: float

    def x(self, value: float | None) -> float:
        """Pixels from the left."""
        right = WIDTH - RIGHT - (42 if self.has_none else 18)
        numbers = right - (84 if self.has_none and self.xs else 0)
        if value is None:
            return right if self.xs else (LEFT + right) / 2
        first, last, at = (self._scaled(v) for v in (self.xs[0], self.xs[-1], value))
        share = 0.5 if first == last else (at - first) / (last - first)
        return LEFT + 24 + share * (numbers - LEFT - 24)

    def _scaled(self, value: float) -> float:
        return math.log(value) if self.logarithmic else value

    def y(self, value: float) -> float:
        """Pixels from the top."""
        return TOP + (self.high - value) / (self.high - self.low) * (HEIGHT - TOP - BOTTOM)


def draw(chart: Chart) -> str:
    """The chart as one <svg> element."""
    axes = _axes(chart)
    parts = [*_frame(chart, axes)]
    for number, (label, value) in enumerate(chart.levels.items()):
        parts += _level(axes.y(value), DASHES[number % len(DASHES)])
        parts += _key(len(chart.series) + number, f"{label} {value:.3f}", "#444", DASHES[number % len(DASHES)])
    for number, (label, marks) in enumerate(chart.series.items()):
        colour = COLOURS[number % len(COLOURS)]
        parts += [*_line(marks, axes, colour), *_key(number, label, colour, "")]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="AUC against {html.escape(chart.x_title)}" font-family="system-ui, sans-serif" font-size="13">'
        f"{''.join(parts)}</svg>"
    )


def _axes(chart: Chart) -> Axes:
    marks = [mark for line in chart.series.values() for mark in line]
    xs = tuple(sorted({mark.x for mark in marks if mark.x is not None}))
    ys = [*chart.levels.values(), *(value for mark in marks for value in (mark.mean, *mark.values))]
    step = tick_step(max(ys) - min(ys))
    low, high = math.floor(min(ys) / step) * step, math.ceil(max(ys) / step) * step
    if high - low < LEAST_SPAN:
        low, high = low - 2 * step, high + 2 * step
    has_none = any(mark.x is None for mark in marks)
    return Axes(xs, has_none, bool(xs) and xs[0] > 0 and xs[-1] >= LOG_FROM * xs[0], low, high, step)


def tick_step(span: float) -> float:
    """A round step that divides `span` into about five.

    >>> tick_step(0.3), tick_step(0.012), tick_step(0.0)
    (0.05, 0.005, 0.005)
    """
    rough = max(span, LEAST_SPAN) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    return min((factor * power for factor in (1, 2, 5, 10)), key=lambda step: abs(math.log(step / rough)))


def _frame(chart: Chart, axes: Axes) -> list[str]:
    right, floor = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for count in range(round((axes.high - axes.low) / axes.step) + 1):
        value = axes.low + count * axes.step
        y = axes.y(value)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{right}" stroke="#e4e4e4"/>')
        parts.append(_text(LEFT - 8, y + 4, f"{value:.3f}".rstrip("0").ljust(4, "0"), "end"))
    for x in (*axes.xs, *([None] if axes.has_none else [])):
        at = axes.x(x)
        parts.append(f'<path d="M{at:.1f} {floor}v5" stroke="#444"/>')
        parts.append(_text(at, floor + 20, chart.none_title if x is None else f"{x:g}", "middle"))
    parts.append(f'<path d="M{LEFT} {TOP}V{floor}H{right}" fill="none" stroke="#444"/>')
    scale = ", logarithmic" if axes.logarithmic else ""
    parts.append(_text((LEFT + right) / 2, HEIGHT - 10, f"{chart.x_title}{scale}", "middle"))
    middle = (TOP + floor) / 2
    parts.append(f'<text x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">AUC</text>')
    return parts


def _line(marks: Sequence[Mark], axes: Axes, colour: str) -> list[str]:
    numbers = sorted((mark for mark in marks if mark.x is not None), key=lambda mark: mark.x or 0.0)
    path = "L".join(f"{axes.x(mark.x):.1f} {axes.y(mark.mean):.1f}" for mark in numbers)
    parts = [f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>'] if len(numbers) > 1 else []
    for mark in marks:
        x = axes.x(mark.x)
        parts += [
            f'<circle cx="{x:.1f}" cy="{axes.y(value):.1f}" r="2.5" fill="none" stroke="{colour}" opacity="0.7"/>'
            for value in (mark.values if len(mark.values) > 1 else ())
        ]
        parts.append(f'<circle cx="{x:.1f}" cy="{axes.y(mark.mean):.1f}" r="4.5" fill="{colour}"/>')
    return parts


def _level(y: float, dash: str) -> list[str]:
    return [f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#444" stroke-width="1.5" stroke-dasharray="{dash}"/>']


def _key(place: int, label: str, colour: str, dash: str) -> list[str]:
    x, y = WIDTH - RIGHT + 14, TOP + 12 + 21 * place
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    return [
        f'<path d="M{x} {y - 4}h26" stroke="{colour}" stroke-width="2"{dashed}/>',
        _text(x + 33, y, label, "start"),
    ]


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'
