"""Charts of blocks: intervals one below the other, stacked bars, a map of cells, and a timeline."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from markupsafe import Markup

from fedhpc.report.scale import Scale, Span, scale_of
from fedhpc.report.svg import WIDTH, Area, box, line, marker, svg, text
from fedhpc.util.text import cut

LABELS, RIGHT, ROW, AXIS = 132, 16, 30, 44
LONGEST_LABEL, LONGEST_ROW = 19, 13
LONG_LABELS, LONGER_LABEL = 214, 30
MOST_LABELS = 6


@dataclass(frozen=True)
class ValueRow:
    """A value with the ends of its interval, and a value to compare with and its name, each None where unknown."""

    label: str
    value: float
    low: float | None
    high: float | None
    style: int
    reference: float | None = None
    reference_name: str = "paper"


def intervals(rows: Sequence[ValueRow], title: str, alt: str) -> Markup:
    """Return values with their intervals, a row each; a reference is an open ring."""
    values = [v for row in rows for v in (row.value, row.low, row.high, row.reference) if v is not None]
    long = max(len(row.label) for row in rows) > LONGEST_LABEL
    labels, longest = (LONG_LABELS, LONGER_LABEL) if long else (LABELS, LONGEST_LABEL)
    ceiling = 1.0 if max(values) <= 1 else math.inf
    x = scale_of(values, Span(labels, WIDTH - RIGHT - 60, 0.05, 0.0, ceiling))
    floor = 10 + ROW * len(rows)
    parts = [*_bottom(x, floor, title, lambda value: f"{value:.3g}")]
    for number, row in enumerate(rows):
        y = 10 + ROW * (number + 0.5)
        parts.append(text(labels - 10, y + 4, cut(row.label, longest), "end"))
        if row.low is not None and row.high is not None:
            parts.append(line(x.at(row.low), y, x.at(row.high), y, f"whisker wide s{row.style}"))
            tip = f"{row.label}: {row.value:.3f} ({row.low:.3f} to {row.high:.3f})"
        else:
            tip = f"{row.label}: {row.value:.3f}"
        if row.reference is not None:
            tip_of_reference = f"{row.label}, {row.reference_name}: {row.reference:.3g}"
            parts.append(
                f'<circle cx="{x.at(row.reference):.1f}" cy="{y:.1f}" r="6.5" class="ring" '
                f'data-tip="{Markup.escape(tip_of_reference)}"/>'
            )
        parts.append(marker(x.at(row.value), y, row.style, tip, 5))
        parts.append(text(WIDTH - RIGHT, y + 4, f"{row.value:.3f}", "end", "strong"))
    return svg(parts, alt, WIDTH, floor + AXIS)


@dataclass(frozen=True)
class Bar:
    """One bar: {name of a block: its length}, a mark at its end, and what is written there in place of its length."""

    label: str
    blocks: dict[str, float]
    mark: str = ""
    told: float | None = None


def stacked(bars: Sequence[Bar], names: Sequence[str], title: str, alt: str) -> Markup:
    """Return stacked bars, one below the other; block k of `names` has style k. Lengths are seconds."""
    longest = max(sum(bar.blocks.values()) for bar in bars)
    x = scale_of([0.0, longest], Span(LABELS, WIDTH - RIGHT - 54, floor=0.0))
    floor = 8 + ROW * len(bars)
    parts = [*_bottom(x, floor, title, lambda value: f"{value:g}")]
    for number, bar in enumerate(bars):
        y = 8 + ROW * number + 5
        parts.append(text(LABELS - 10, y + 14, cut(bar.label, LONGEST_LABEL), "end"))
        ends = [0.0, *accumulate(bar.blocks.get(name, 0.0) for name in names)]
        for k, name in enumerate(names):
            if bar.blocks.get(name):
                tip = f"{bar.label}, {name}: {bar.blocks[name]:.3g} s"
                parts.append(box(_stretch(x, ends[k : k + 2], y), f"b s{k % 6}", tip))
        total = f"{ends[-1] if bar.told is None else bar.told:.3g} s{' ' + bar.mark if bar.mark else ''}"
        parts.append(text(x.at(ends[-1]) + 5, y + 14, total, "start", "strong"))
    return svg(parts, alt, WIDTH, floor + AXIS)


def _stretch(x: Scale, ends: Sequence[float], y: float) -> Area:
    return Area(x.at(ends[0]), y, x.at(ends[1]) - x.at(ends[0]), ROW - 10)


def _bottom(x: Scale, floor: float, title: str, shown: object) -> Iterator[str]:
    ticks = x.ticks()
    # On a phone the labels are larger: of many every other one would touch the next.
    every = math.ceil(len(ticks) / MOST_LABELS)
    # Zero has a label, and otherwise the largest value.
    labelled = 0 if ticks[0] == 0 else len(ticks) - 1
    for number, value in enumerate(ticks):
        yield line(x.at(value), 4, x.at(value), floor, "grid")
        if (number - labelled) % every == 0:
            label = shown(value) if callable(shown) else f"{value:g}"
            yield text(x.at(value), floor + 16, label, "middle")
    yield line(x.first, floor, x.last, floor, "axis")
    yield text((x.first + x.last) / 2, floor + 36, title, "middle", "title")


@dataclass(frozen=True)
class MapCell:
    """One cell of a map: its number, None where there is none, its text, and whether it is on the Pareto front."""

    value: float | None
    words: str
    tip: str
    marked: bool = False


@dataclass(frozen=True)
class HeatMap:
    """Rows of cells. A cell stands out the more, the larger its value within `low` to `high`."""

    rows: Sequence[str]
    columns: Sequence[str]
    cells: Sequence[Sequence[MapCell]]
    low: float
    high: float
    row_title: str
    column_title: str


SHADES = 7


def heat_map(chart: HeatMap, alt: str) -> Markup:
    """Return the map; every cell shows its number, a cell on the Pareto front has a star and a frame."""
    names = max(map(len, chart.rows))
    left, height = 96 if names <= LONGEST_ROW else 140, 40
    width = (WIDTH - left - 8) / len(chart.columns)
    parts = [text((left + WIDTH - 8) / 2, 14, chart.column_title, "middle", "title")]
    parts += [
        text(left + width * (k + 0.5), 34, cut(name, max(4, int(width / 6))), "middle")
        for k, name in enumerate(chart.columns)
    ]
    for number, name in enumerate(chart.rows):
        y = 42 + height * number
        parts.append(
            text(left - 8, y + height / 2 + 4, cut(name, LONGEST_ROW if names <= LONGEST_ROW else LONGEST_LABEL), "end")
        )
        for k, cell in enumerate(chart.cells[number]):
            shade = "none" if cell.value is None else str(_shade(cell.value, chart.low, chart.high))
            css = f"cell h{shade}{' front' if cell.marked else ''}"
            parts.append(box(Area(left + width * k + 2, y + 2, width - 4, height - 4), css, cell.tip))
            words = f"{cell.words} ★" if cell.marked else cell.words
            parts.append(text(left + width * (k + 0.5), y + height / 2 + 4, words, "middle", f"on h{shade}"))
    parts.append(text(6, 34, chart.row_title, "start", "title"))
    return svg(parts, alt, WIDTH, 48 + height * len(chart.rows))


def _shade(value: float, low: float, high: float) -> int:
    if high <= low:
        return SHADES // 2
    return min(SHADES - 1, max(0, int((value - low) / (high - low) * SHADES)))


@dataclass(frozen=True)
class Event:
    """Something at a site in the rounds `first` to `last`; `style` is its kind."""

    row: str
    first: int
    last: int
    style: int
    tip: str


def timeline(rows: Sequence[str], rounds: int, events: Sequence[Event], alt: str) -> Markup:
    """Return the events of each row over the rounds; a stretch of rounds is a bar with a mark at both ends."""
    x = scale_of([1.0, float(max(rounds, 2))], Span(LABELS, WIDTH - RIGHT, whole=True), fit=True)
    floor = 8 + ROW * len(rows)
    parts = [*_bottom(x, floor, "round", lambda value: f"{value:.0f}")]
    for number, row in enumerate(rows):
        y = 8 + ROW * (number + 0.5)
        parts.append(text(LABELS - 10, y + 4, cut(row, LONGEST_LABEL), "end"))
        parts.append(line(x.first, y, x.last, y, "grid"))
        for event in (one for one in events if one.row == row):
            if event.last > event.first:
                parts.append(
                    box(Area(x.at(event.first), y - 3, x.at(event.last) - x.at(event.first), 6), f"b s{event.style}")
                )
            for end in sorted({event.first, event.last}):
                parts.append(marker(x.at(end), y, event.style, event.tip, 5))
    return svg(parts, alt, WIDTH, floor + AXIS)
