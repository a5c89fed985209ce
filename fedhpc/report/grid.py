"""Several settings at once: the map of AUC over epsilon and density, its Pareto front, and lines over one key."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from fedhpc.report.block_charts import HeatMap, MapCell, heat_map
from fedhpc.report.line_chart import AUC_AXIS, Axis, Level, Line, LineChart, Point, alt_of, draw, legend_of
from fedhpc.report.parts import Column, Figure, Part, Table, Value
from fedhpc.report.rows import DATA, DENSITY, EPSILON, PART, SEED, Group, Row
from fedhpc.report.svg import STYLES
from fedhpc.util.text import count_of, data_size, shown

NO_PRIVACY = "no privacy"
MAP_NO_PRIVACY = "none"
MOST_MAPS = 4
STANDS_OUT = "The more a cell stands out from the page, the higher its AUC."


def grid_part(keys: Sequence[str], groups: Sequence[Group], rows: Sequence[Row]) -> Part:
    """AUC over the settings of a grid; nothing where there is one setting."""
    plain = [group for group in groups if "case" not in group.point]
    chart = chart_of(keys, plain)
    figures = _maps(plain)
    if chart is not None and sum(len(line.points) for line in chart.lines) > 1:
        figures.append(_lines(chart, rows))
    if not figures:
        return Part("grid", "Settings compared")
    seeds = len({row.seed for row in rows})
    lead = f"Means over {seeds} seeds." if seeds > 1 else "One seed: each number is one run."
    return Part("grid", "Settings compared", lead, figures=figures)


def chart_of(keys: Sequence[str], groups: Sequence[Group]) -> LineChart | None:
    """AUC against epsilon, or else against the grid's first key of numbers; None where there is nothing to draw."""
    done = [group for group in groups if group.auc is not None]
    axis = next((key for key in (EPSILON, *keys) if key != SEED and _is_axis(key, done)), None)
    if axis is None:
        return None
    series: dict[str, list[Group]] = {}
    for group in done:
        if not group.baseline:
            others = {key: value for key, value in group.point.items() if key != axis}
            label = ", ".join(f"{title_of(key)} {shown(value)}" for key, value in others.items()) or "federated"
            series.setdefault(label, []).append(group)
    numbers = sorted({group.point[axis] for line in series.values() for group in line if group.point[axis] is not None})
    has_none = any(group.point[axis] is None for line in series.values() for group in line)
    places = _places(numbers, has_none)
    lines = [Line(label, _points(label, line, axis, places), k) for k, (label, line) in enumerate(series.items())]
    levels = [
        Level(_level(group), group.auc, k)
        for k, group in enumerate(group for group in done if group.baseline in ("centralised", "local"))
        if group.auc is not None
    ]
    none = NO_PRIVACY if axis == EPSILON else "none"
    names = {places[value]: none if value is None else f"{value:g}" for value in places}
    x = Axis(title_of(axis), lambda at: names.get(at, f"{at:g}"), ticks=tuple(names), holds=(-0.3, len(names) - 0.7))
    return LineChart(x, AUC_AXIS, lines, levels, name=f"AUC by {title_of(axis)}")


def _places(numbers: Sequence[float], has_none: bool) -> dict[float | None, float]:
    """{value: its place on the axis}: the values of a grid side by side, `none` last."""
    values: list[float | None] = [*numbers, *([None] if has_none else [])]
    return {value: float(k) for k, value in enumerate(values)}


def _points(label: str, groups: Sequence[Group], axis: str, places: Mapping[float | None, float]) -> list[Point]:
    points = []
    for group in sorted(groups, key=lambda one: places[one.point[axis]]):
        low, high = (group.auc_lowest, group.auc_highest) if len(group.aucs) > 1 else (None, None)
        value = NO_PRIVACY if group.point[axis] is None else f"{group.point[axis]:g}"
        tip = f"{label}, {title_of(axis)} {value}: AUC {group.auc:.3f}, {count_of(group.finished, 'run')}"
        points.append(Point(places[group.point[axis]], group.auc or 0.0, low, high, tip))
    return points


def _level(group: Group) -> str:
    """Return the label of a baseline: with its data and its part of a study, where there are several."""
    return ", ".join([group.baseline, *(f"{key} {group.point[key]}" for key in (PART, DATA) if key in group.point)])


def _is_axis(key: str, groups: Sequence[Group]) -> bool:
    values = [group.point[key] for group in groups if not group.baseline and key in group.point]
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    own = [group for group in groups if not group.baseline]
    return bool(values) and len(values) == len(own) and len(numbers) + values.count(None) == len(values)


def title_of(key: str) -> str:
    """Return the last word of a dotted key, in words."""
    return key.rpartition(".")[2].replace("_", " ")


def _lines(chart: LineChart, rows: Sequence[Row]) -> Figure:
    drawn = LineChart(chart.x, chart.y, chart.lines[:STYLES], chart.levels, name=chart.name)
    columns = [Column("line", "Setting"), Column("at", chart.x.title), *_AUC]
    body: list[list[Value]] = [
        [line.label, chart.x.shown(p.x), p.y, p.low, p.high] for line in chart.lines for p in line.points
    ]
    note = "Upright lines: lowest to highest over the seeds." if len({row.seed for row in rows}) > 1 else ""
    note += " Broken lines: the baselines." if chart.levels else ""
    table = Table("auc_by_setting", "AUC by setting", columns, body)
    return Figure(chart.name, alt_of(drawn), draw(drawn), table, note.strip(), legend_of(drawn))


_AUC = (Column("auc", "AUC", "number"), Column("low", "lowest", "number"), Column("high", "highest", "number"))


def _maps(groups: Sequence[Group]) -> list[Figure]:
    """A map for each setting of the other keys that has several epsilons and densities."""
    done = [g for g in groups if not g.baseline and g.auc is not None and {EPSILON, DENSITY} <= g.point.keys()]
    together: dict[str, list[Group]] = {}
    for group in done:
        others = {key: value for key, value in group.point.items() if key not in (EPSILON, DENSITY)}
        label = ", ".join(f"{title_of(key)} {shown(value)}" for key, value in others.items())
        together.setdefault(label, []).append(group)
    found = [_map(label, number, those) for number, (label, those) in enumerate(together.items())]
    return [figure for figure in found if figure is not None][:MOST_MAPS]


def _map(label: str, number: int, done: Sequence[Group]) -> Figure | None:
    epsilons = sorted({g.point[EPSILON] for g in done}, key=_strictness)
    densities = sorted({g.point[DENSITY] for g in done}, reverse=True)
    if len(epsilons) < 2 or len(densities) < 2:
        return None
    at = {(g.point[EPSILON], g.point[DENSITY]): g for g in done}
    front = pareto_front(done)
    cells = [[_cell(at.get((e, d)), front) for e in epsilons] for d in densities]
    aucs = [g.auc for g in done if g.auc is not None]
    columns = [MAP_NO_PRIVACY if e is None else f"{e:g}" for e in epsilons]
    chart = HeatMap([f"{d:g}" for d in densities], columns, cells, min(aucs), max(aucs), "density", "epsilon")
    told = "; ".join(f"density {g.point[DENSITY]:g}, epsilon {shown(g.point[EPSILON])}: {g.auc:.3f}" for g in done)
    title = f"AUC over epsilon and density{f': {label}' if label else ''}"
    alt = f"{title}. {told}. On the Pareto front: {len(front)} settings."
    table = Table(f"grid{number or ''}", title, _MAP_COLUMNS, [_map_row(g, front) for g in done])
    note = "★ Pareto front: no other setting has a higher AUC with no more epsilon and no more bytes. " + STANDS_OUT
    return Figure(title, alt, heat_map(chart, alt), table, note)


_MAP_COLUMNS = (
    Column("epsilon", "Epsilon"), Column("density", "Density", "number"), *_AUC,
    Column("up", "Up a round", "bytes"), Column("front", "Pareto front"),
)  # fmt: skip


def _map_row(group: Group, front: Sequence[Group]) -> list[Value]:
    epsilon = group.point[EPSILON]
    ends = (group.auc, group.auc_lowest, group.auc_highest)
    return [
        shown(epsilon), group.point[DENSITY], *ends, group.bytes_up, "yes" if group in front else "no",
    ]  # fmt: skip


def _cell(group: Group | None, front: Sequence[Group]) -> MapCell:
    if group is None or group.auc is None:
        return MapCell(None, "-", "not finished")
    sent = "" if group.bytes_up is None else f", {data_size(group.bytes_up)} up a round"
    tip = f"epsilon {shown(group.point[EPSILON])}, density {group.point[DENSITY]:g}: AUC {group.auc:.3f}{sent}"
    return MapCell(group.auc, f"{group.auc:.3f}", tip, group in front)


def _strictness(epsilon: float | None) -> float:
    return math.inf if epsilon is None else epsilon


def _costs(group: Group) -> tuple[float, float]:
    sent = group.bytes_up if group.bytes_up is not None else group.point[DENSITY]
    return _strictness(group.point[EPSILON]), float(sent)


def pareto_front(groups: Sequence[Group]) -> list[Group]:
    """Return the settings that no other beats: with as high an AUC, as little epsilon and as few bytes, one better."""
    return [one for one in groups if not any(_beats(other, one) for other in groups)]


def _beats(other: Group, one: Group) -> bool:
    mine, theirs = (*_costs(one), -(one.auc or 0.0)), (*_costs(other), -(other.auc or 0.0))
    return theirs != mine and all(b <= a for a, b in zip(mine, theirs, strict=True))


@dataclass(frozen=True)
class Case:
    """What a run is tried with: a case of `stress`, empty for none, and an aggregation rule."""

    name: str
    rule: str


def stress_part(rows: Sequence[Row], cases: Mapping[str, Case]) -> Part:
    """AUC less that of the same run without the fault, by case and aggregation rule.

    Args:
        rows: of all runs.
        cases: {run: its case}.
    """
    clean = [row for row in rows if row.name in cases and not cases[row.name].name and row.auc is not None]
    stressed = [row for row in rows if row.name in cases and cases[row.name].name]
    pairs = {row.name: _clean(row, clean, cases) for row in stressed}
    if not any(one is not None for one in pairs.values()):
        return Part("stress", "Stress tests")
    names = list(dict.fromkeys(cases[row.name].name for row in stressed))
    rules = list(dict.fromkeys(cases[row.name].rule for row in stressed))
    at = {one: [row for row in stressed if cases[row.name] == one] for one in cases.values()}
    cells = [[_stress_cell(at.get(Case(case, rule), []), pairs) for rule in rules] for case in names]
    losses = [cell.value for line in cells for cell in line if cell.value is not None]
    chart = HeatMap(names, rules, cells, min([-0.1, *losses]), max([0.0, *losses]), "", "aggregation rule")
    body: list[list[Value]] = [
        [
            cases[row.name].name,
            cases[row.name].rule,
            row.auc,
            other.auc if (other := pairs[row.name]) else None,
            row.state,
        ]
        for row in stressed
    ]
    columns = [
        Column("case", "Case"), Column("rule", "Rule"), Column("auc", "AUC", "number"),
        Column("clean", "AUC without the fault", "number"), Column("state", "State"),
    ]  # fmt: skip
    told = "; ".join(
        f"{case} under {rule}: {cell.words}"
        for case, line in zip(names, cells, strict=True)
        for rule, cell in zip(rules, line, strict=True)
    )
    alt = f"Change of AUC under stress. {told}."
    note = f"AUC less that of the run without the fault. {STANDS_OUT} Positive: noise of the runs."
    figure = Figure(
        "Change of AUC by case",
        alt,
        heat_map(chart, alt),
        Table("stress", "Stress tests", columns, body),
        note,
        wide=True,
    )
    return Part("stress", "Stress tests", figures=[figure])


def _clean(row: Row, clean: Sequence[Row], cases: Mapping[str, Case]) -> Row | None:
    same = [one for one in clean if _kind(one) == _kind(row)]
    return min(same, key=lambda one: (cases[one.name].rule != "mean", one.seed != row.seed), default=None)


def _kind(row: Row) -> tuple[Any, ...]:
    return row.epsilon_target, row.density, row.mode, row.point.get(PART)


def _stress_cell(rows: Sequence[Row], pairs: Mapping[str, Row | None]) -> MapCell:
    """Return the mean over the seeds of one case under one rule."""
    measured = [
        (row, row.auc, clean.auc)
        for row in rows
        if row.auc is not None and (clean := pairs[row.name]) is not None and clean.auc is not None
    ]
    if not measured:
        return MapCell(None, "stopped" if any(row.state == "failed" for row in rows) else "-", "no result")
    less = fmean(auc - clean for _, auc, clean in measured)
    told = "; ".join(f"{row.name}: AUC {auc:.3f}, without the fault {clean:.3f}" for row, auc, clean in measured)
    return MapCell(less, f"{less:+.3f}", told)
