"""What a run costs: privacy by round and site, bytes against dense and the entropy bound, seconds by phase and site."""

import json
import math
from collections.abc import Mapping, Sequence
from statistics import median

from fedhpc.compression.error_feedback import count_to_send
from fedhpc.report.block_charts import Bar, stacked
from fedhpc.report.line_chart import (
    BYTES_AXIS,
    ROUND_AXIS,
    Axis,
    Level,
    Line,
    LineChart,
    Point,
    alt_of,
    draw,
    legend_of,
)
from fedhpc.report.parts import Column, Figure, Legend, Part, Table, Value
from fedhpc.report.scale import LOG_FROM
from fedhpc.report.view import RunView, median_work

PHASES = ("train", "exchange", "aggregate", "evaluate", "checkpoint")
STRAGGLER = 1.5
MOST_RUNS = 12
MOST_SITES = 24


def privacy_part(view: RunView) -> Part:
    """Epsilon by round and site, against the target and the lifetime cap of the config."""
    p = view.config.privacy
    if p.epsilon is None or not view.records or view.row.insecure:
        return Part("privacy", "Privacy spent")
    lines: list[Line] = []
    rows: list[list[Value]] = []
    for k, (names, spent) in enumerate(_spent(view).items()):
        points = [Point(r, e, tip=f"{names}, round {r}: epsilon {e:.3f}") for r, e in spent]
        lines.append(Line(names, points, k))
        rows += [[names, r, e] for r, e in spent]
    if not lines:
        return Part("privacy", "Privacy spent")
    levels = [Level("target", p.epsilon, 0)]
    levels += [Level("lifetime cap", p.lifetime_epsilon, 1)] if p.lifetime_epsilon else []
    y = Axis("epsilon", lambda value: f"{value:.3g}", floor=0.0, holds=(0.0,))
    chart = LineChart(ROUND_AXIS, y, lines, levels, name="Privacy spent by round")
    columns = [Column("site", "Site"), Column("round", "Round", "count"), Column("epsilon", "Epsilon", "number")]
    figure = Figure(
        "Epsilon by round",
        alt_of(chart),
        draw(chart),
        Table("epsilon", "Epsilon by round", columns, rows),
        f"At delta {p.delta:g}, for every training {p.unit}, by each site's own ledger of this run.",
        legend_of(chart),
    )
    return Part("privacy", "Privacy spent", f"Run {view.name}.", figures=[figure], tables=[_budget(view)])


def _spent(view: RunView) -> dict[str, list[tuple[int, float]]]:
    """{sites that have spent the same: epsilon after each round}."""
    found: dict[str, list[str]] = {}
    for site in view.sites:
        series = [
            (r["round"], r["per_site"][site]["epsilon"])
            for r in view.records
            if r["per_site"].get(site, {}).get("epsilon") is not None
        ]
        if series:
            found.setdefault(json.dumps(series), []).append(site)
    return {_named(sites, len(view.sites)): json.loads(series) for series, sites in found.items()}


def _named(sites: Sequence[str], of: int) -> str:
    return "every site" if len(sites) == of > 1 else ", ".join(sites)


def _budget(view: RunView) -> Table:
    p, last = view.config.privacy, view.records[-1]["per_site"]
    rows: list[list[Value]] = []
    for site in view.sites:
        one = {**last.get(site, {}), **view.summary.get("per_site", {}).get(site, {})}
        left = None if one.get("epsilon") is None else round(max(0.0, (p.epsilon or 0.0) - one["epsilon"]), 6)
        rows.append([site, one.get("epsilon"), p.epsilon, left, one.get("evaluation_epsilon")])
    titles = {
        "epsilon": "Spent", "target": "Target", "left": "Left",
        "evaluation_epsilon": "Validation and test patients",
    }  # fmt: skip
    columns = [Column("site", "Site"), *(Column(key, title, "number") for key, title in titles.items())]
    return Table("budget", "Epsilon by site", columns, rows)


def costs_part(views: Sequence[RunView], detail: RunView) -> Part:
    """Bytes of each round, seconds by phase of each run, and seconds by site."""
    timed = [view for view in views if view.records][:MOST_RUNS]
    figures = [_bytes(detail), _by_phase(timed) if timed else None, _by_site(detail) if detail.work_s else None]
    found = [figure for figure in figures if figure is not None]
    lead = f"Bytes and seconds by site: run {detail.name}." if len(views) > 1 else ""
    return Part("costs", "Bytes and time", lead, figures=found)


def _bytes(view: RunView) -> Figure | None:
    """Bytes of each round, up and down, against dense float32 and the entropy bound."""
    sent = [record for record in view.records if record.get("bytes_up")]
    if not sent:
        return None
    lines, rows = [], []
    for k, (key, label) in enumerate((("bytes_up", "up, all sites"), ("bytes_down", "down, all sites"))):
        points = [Point(r["round"], r[key], tip=f"round {r['round']}, {label}: {r[key]:,} B") for r in sent]
        lines.append(Line(label, points, k))
    rows = [[r["round"], r["bytes_up"], r["bytes_down"]] for r in sent]
    levels = []
    if dense := view.summary.get("dense_bytes_per_round"):
        levels.append(Level("dense float32", dense, 0))
    if bound := entropy_bound(view):
        levels.append(Level("entropy bound", bound, 1))
    numbers = [*(r[key] for r in sent for key in ("bytes_up", "bytes_down")), *(level.value for level in levels)]
    far_apart = min(numbers) > 0 and max(numbers) > LOG_FROM * min(numbers)
    holds = () if far_apart else (0.0,)
    y = Axis("bytes a round", BYTES_AXIS.shown, floor=0.0, may_be_log=far_apart, holds=holds)
    chart = LineChart(ROUND_AXIS, y, lines, levels, name="Bytes by round")
    columns = [Column("round", "Round", "count"), Column("up", "Up", "bytes"), Column("down", "Down", "bytes")]
    note = "Lengths of the payloads as sent, before encryption."
    if dense and max(r["bytes_up"] for r in sent) > dense:
        note += " Each has a header, so a small update that is sent whole is longer than its numbers (dense)."
    if bound:
        note += (
            " Entropy bound: the places of the sent entries take at least log2 C(parameters, entries) bits, and each "
            f"entry its {view.config.exchange.value_bits} bits; levels that are not equally likely take less."
        )
    table = Table("bytes", "Bytes by round", columns, rows)
    return Figure("Bytes by round", alt_of(chart), draw(chart), table, note, legend_of(chart))


def entropy_bound(view: RunView) -> float | None:
    """Bytes up that a round needs over all sites, if places and levels are equally likely; None where it has no sense.

    log2 C(d, k) bits for the places of k of d entries, and `exchange.value_bits` for each.
    """
    config, d = view.config, view.summary.get("parameters")
    if not d or config.privacy.trust == "sites" or config.algorithm.name == "scaffold":
        return None
    k = count_to_send(d, config.exchange.density)
    places = (math.lgamma(d + 1) - math.lgamma(k + 1) - math.lgamma(d - k + 1)) / math.log(2)
    return len(view.sites) * (places + k * config.exchange.value_bits) / 8


def _by_phase(views: Sequence[RunView]) -> Figure:
    bars, rows = [], []
    for view in views:
        blocks = {phase: sum(r["seconds"].get(phase, 0.0) for r in view.records) for phase in PHASES}
        other = sum(r["seconds"].get("total", 0.0) for r in view.records) - sum(blocks.values())
        blocks["other"] = max(0.0, other)
        bars.append(Bar(view.name, blocks))
        line: list[Value] = [view.name, *blocks.values()]
        rows.append(line)
    names = [*PHASES, "other"]
    alt = "Seconds by phase. " + "; ".join(f"{bar.label}: {_told(bar.blocks)}" for bar in bars) + "."
    columns = [Column("run", "Run"), *(Column(name, name.capitalize(), "seconds") for name in names)]
    svg = stacked(bars, names, "seconds over all rounds, at rank 0", alt)
    legend = [Legend(name, k, block=True) for k, name in enumerate(names)]
    note = "Exchange includes waiting for the slowest site."
    return Figure("Seconds by phase", alt, svg, Table("phases", "Seconds by phase", columns, rows), note, legend)


def _told(blocks: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {seconds:.3g} s" for name, seconds in blocks.items() if seconds)


def _by_site(view: RunView) -> Figure:
    work = median_work(view)
    slowest, usual = max(work.values()), median(work.values())
    bars: list[Bar] = []
    rows: list[list[Value]] = []
    for site, seconds in list(work.items())[:MOST_SITES]:
        slow = seconds > STRAGGLER * usual
        bars.append(Bar(site, {"own work": seconds, "waiting": slowest - seconds}, "slow" if slow else "", seconds))
        rows.append([site, seconds, slowest - seconds, max(view.work_s[site]), "slow" if slow else ""])
    names = ["own work", "waiting"]
    alt = "Seconds of a round by site. " + "; ".join(f"{bar.label}: {_told(bar.blocks)} {bar.mark}" for bar in bars)
    columns = [
        Column("site", "Site"), Column("work", "Own work, median", "seconds"), Column("wait", "Waiting", "seconds"),
        Column("longest", "Longest round", "seconds"), Column("mark", "Mark"),
    ]  # fmt: skip
    svg = stacked(bars, names, "seconds of a round, median over the rounds", alt)
    legend = [Legend(name, k, block=True) for k, name in enumerate(names)]
    note = (
        "By each site's own egress log: until it said that it has trained. Waiting: until the slowest site "
        f"has. Numbers: own work. Slow: more than {STRAGGLER:g} times the median site."
    )
    table = Table("sites", "Seconds by site", columns, rows)
    return Figure("Seconds by site", alt, svg, table, note, legend, below=True)
