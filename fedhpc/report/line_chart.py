"""A chart of lines over two axes, with level lines and bands of uncertainty."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from fedhpc.report.parts import Legend
from fedhpc.report.scale import Scale, Span, scale_of
from fedhpc.report.svg import HEIGHT, WIDTH, line, marker, path, svg, target, text
from fedhpc.util.text import data_size, fixed

LEFT, RIGHT, TOP, BOTTOM = 56, 16, 28, 46
MOST_POINTS = 80
MOST_MARKERS, FEW_MARKERS = 25, 6


@dataclass(frozen=True)
class Point:
    """A point; `low` and `high` are the ends of its interval, `tip` is what the pointer shows."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    tip: str = ""


@dataclass(frozen=True)
class Line:
    """A line of points, in the order of `x`."""

    label: str
    points: Sequence[Point]
    style: int
    joined: bool = True


@dataclass(frozen=True)
class Level:
    """A level line."""

    label: str
    value: float
    style: int


@dataclass(frozen=True)
class Axis:
    """What an axis says.

    Attributes:
        title: with its unit.
        shown: a value as its label.
        least: the smallest difference that fills the axis.
        floor, ceiling: values that it does not pass.
        may_be_log: whether it may be logarithmic.
        holds: values that it must contain.
        ticks: the values with a label; None: round numbers.
        whole: whether only whole numbers have a label.
    """

    title: str
    shown: Callable[[float], str] = lambda value: f"{value:g}"
    least: float = 0.0
    floor: float = float("-inf")
    ceiling: float = float("inf")
    may_be_log: bool = False
    holds: tuple[float, ...] = ()
    ticks: tuple[float, ...] | None = None
    whole: bool = False


AUC_AXIS = Axis("AUC", lambda value: f"{value:.3g}", least=0.05, floor=0.0, ceiling=1.0)
ROUND_AXIS = Axis("round", lambda value: f"{value:.0f}", whole=True)
BYTES_AXIS = Axis("bytes", lambda value: data_size(value).replace(".0 ", " "), floor=0.0)


@dataclass(frozen=True)
class LineChart:
    """What is drawn."""

    x: Axis
    y: Axis
    lines: Sequence[Line]
    levels: Sequence[Level] = ()
    diagonal: bool = False
    name: str = field(default="")


def draw(chart: LineChart) -> Markup:
    """Return the chart as an <svg> element."""
    x, y = _scales(chart)
    parts = [*_frame(chart, x, y)]
    if chart.diagonal:
        parts.append(line(x.at(0), y.at(0), x.at(1), y.at(1), "level d5"))
    for level in chart.levels:
        parts.append(line(x.first, y.at(level.value), x.last, y.at(level.value), f"level d{level.style}"))
    for one in chart.lines:
        parts += _line(one, x, y)
    return svg(parts, alt_of(chart))


def legend_of(chart: LineChart) -> list[Legend]:
    """Return an entry for each line and level."""
    lines = [Legend(one.label, one.style) for one in chart.lines]
    return [*lines, *(Legend(f"{one.label} {chart.y.shown(one.value)}", one.style, True) for one in chart.levels)]


def alt_of(chart: LineChart) -> str:
    """Say in words where each line begins and ends."""
    told = []
    for one in chart.lines:
        first, last = one.points[0], one.points[-1]
        ends = f"{chart.y.shown(first.y)} at {chart.x.shown(first.x)}"
        if len(one.points) > 1:
            ends += f" to {chart.y.shown(last.y)} at {chart.x.shown(last.x)}"
        told.append(f"{one.label}: {ends}")
    told += [f"{one.label}: {chart.y.shown(one.value)}" for one in chart.levels]
    return f"{chart.name or chart.y.title}. {chart.y.title} against {chart.x.title}. " + "; ".join(told) + "."


def thinned(points: Sequence[Point]) -> list[Point]:
    """Return at most about `MOST_POINTS` points, the last one always."""
    every = -(-len(points) // MOST_POINTS)
    return [point for at, point in enumerate(points) if (len(points) - 1 - at) % every == 0]


def _scales(chart: LineChart) -> tuple[Scale, Scale]:
    points = [point for one in chart.lines for point in one.points]
    xs = [*(point.x for point in points), *chart.x.holds]
    ends = [end for point in points for end in (point.low, point.high) if end is not None]
    ys = [*(point.y for point in points), *ends, *(level.value for level in chart.levels), *chart.y.holds]
    across = Span(LEFT, WIDTH - RIGHT, chart.x.least, chart.x.floor, chart.x.ceiling, chart.x.may_be_log, chart.x.whole)
    up = Span(HEIGHT - BOTTOM, TOP, chart.y.least, chart.y.floor, chart.y.ceiling, chart.y.may_be_log)
    return scale_of(xs, across, fit=True), scale_of(ys, up)


def _frame(chart: LineChart, x: Scale, y: Scale) -> Iterator[str]:
    for value in y.ticks():
        yield line(x.first, y.at(value), x.last, y.at(value), "grid")
        yield text(x.first - 7, y.at(value) + 4, chart.y.shown(value), "end")
    for value in chart.x.ticks or x.ticks():
        yield line(x.at(value), y.first, x.at(value), y.first + 4, "axis")
        yield text(x.at(value), y.first + 18, chart.x.shown(value), "middle")
    yield line(x.first, y.first, x.last, y.first, "axis")
    title = f"{chart.x.title}, logarithmic" if x.logarithmic else chart.x.title
    yield text((x.first + x.last) / 2, HEIGHT - 8, title, "middle", "title")
    y_title = f"{chart.y.title}, logarithmic" if y.logarithmic else chart.y.title
    yield text(4, 14, y_title, "start", "title")


def _line(one: Line, x: Scale, y: Scale) -> Iterator[str]:
    points = thinned(one.points)
    if one.joined and len(points) > 1:
        yield path((x.at(p.x) for p in points), (y.at(p.y) for p in points), f"l s{one.style % 6}")
    every = 1 if len(points) <= MOST_MARKERS else len(points) // FEW_MARKERS
    for number, p in enumerate(points):
        if p.low is not None and p.high is not None:
            yield line(x.at(p.x), y.at(p.low), x.at(p.x), y.at(p.high), f"whisker s{one.style % 6}")
        tip = p.tip or f"{one.label}: {fixed(p.y)} at {p.x:g}"
        # The markers of lines of many points are spread, and those of two lines do not lie over each other.
        if number % every == (one.style * 2) % every:
            yield marker(x.at(p.x), y.at(p.y), one.style, tip, 3.8)
        else:
            yield target(x.at(p.x), y.at(p.y), tip)
