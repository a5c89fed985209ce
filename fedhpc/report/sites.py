"""What is known of each hospital, and what went wrong in which round."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedhpc.config.harmonise import chain_text
from fedhpc.report.block_charts import Event, timeline
from fedhpc.report.line_chart import AUC_AXIS, Axis, Line, LineChart, Point, alt_of, draw
from fedhpc.report.parts import Card, Column, Figure, Legend, Part, Table, Value
from fedhpc.report.view import RunView
from fedhpc.util.text import data_size, fixed

MOST_CARDS = 48
KINDS = ("absent", "left out of a round", "flagged and left out", "flagged and shortened", "late", "restart")
RUN = "whole run"
PERSONAL = (
    "The AUC of each hospital's personal model is not here: the model is trained without noise on its patients, and a "
    "metric of it would be one more release about them, which no epsilon covers. The hospital finds it in "
    "sites/<site>/personal.json."
)


def sites_part(view: RunView, local: RunView | None) -> Part:
    """A card for each site; `local` is a local-only run on the same data."""
    cards = [_card(view, site, local) for site in view.sites[:MOST_CARDS]]
    rows = [_line(view, site, local) for site in view.sites]
    titles: list[Column] = [
        Column("site", "Site"), Column("weight", "Declared weight", "count"), Column("modality", "Declared modality"),
        Column("lifetime_cap", "Declared lifetime cap", "number"), Column("node", "Node"),
        Column("auc_alone", "AUC alone", "number"), Column("auc", "AUC federated", "number"),
        Column("epsilon", "Epsilon", "number"), Column("up", "Up, last round", "bytes"),
        Column("contribution", "Contribution", "number"),
    ]  # fmt: skip
    notes = [
        "Weight, modality and lifetime cap are what each hospital has declared in the config (data.sites); what it has "
        "not declared is not recorded outside it, and neither are its scanners."
    ]
    if view.config.personalisation.method != "none":
        notes.append(PERSONAL)
    table = Table("sites", "All sites", titles, rows)
    return Part("sites", "Hospitals", f"Run {view.name}.", cards=cards, tables=[table], notes=notes)


def _line(view: RunView, site: str, local: RunView | None) -> list[Value]:
    one = _of(view, site)
    declared = next(s for s in view.config.data.sites if s.name == site)
    alone = None if local is None else _of(local, site).get("auc")
    value = _contribution(view).get(site, {}).get("value")
    return [
        site, declared.weight, declared.modality, declared.lifetime_cap, declared.node, alone, one.get("auc"),
        one.get("epsilon"), one.get("bytes_up") or None, value,
    ]  # fmt: skip


def _of(view: RunView, site: str) -> dict[str, Any]:
    last = view.records[-1]["per_site"].get(site, {}) if view.records else {}
    return {**last, **view.summary.get("per_site", {}).get(site, {})}


def _contribution(view: RunView) -> Mapping[str, Any]:
    return _values(view.contribution)


def _values(contribution: Mapping[str, Any]) -> Mapping[str, Any]:
    """Shapley values by site, or where nothing was judged the cosines."""
    kinds: Mapping[str, Mapping[str, Any]] = contribution.get("values", {})
    return kinds.get("shapley") or kinds.get("cgsv", {})


def _card(view: RunView, site: str, local: RunView | None) -> Card:
    one = _of(view, site)
    declared = next(s for s in view.config.data.sites if s.name == site)
    alone = None if local is None else _of(local, site).get("auc")
    facts = [("Declared weight", f"{declared.weight:,}" if declared.weight else "number of its training images")]
    facts += [("Declared modality", declared.modality)] if declared.modality else []
    facts += [("Declared lifetime cap", f"epsilon {declared.lifetime_cap:g}")] if declared.lifetime_cap else []
    facts += [("Node", declared.node)] if declared.node else []
    facts += [("Declared speed", f"{declared.speed:g}")] if declared.speed else []
    facts += [("Harmonised by its own chain", chain_text(declared.harmonise))] if declared.harmonise else []
    if alone is not None:
        facts.append(("AUC alone → federated", f"{fixed(alone)} → {fixed(one.get('auc'))}"))
    elif one.get("auc") is not None:
        facts.append(("AUC", fixed(one["auc"])))
    if one.get("epsilon") is not None and not view.row.insecure:
        facts.append(("Epsilon spent", fixed(one["epsilon"])))
    if one.get("bytes_up"):
        facts.append(("Up, last round", data_size(one["bytes_up"])))
    value = _contribution(view).get(site)
    if value:
        low, high = value["ci95"]
        facts.append(("Contribution", f"{value['value']:+.3f} ({low:+.3f} to {high:+.3f})"))
    return Card(site, facts, _marks(view, site))


def _marks(view: RunView, site: str) -> list[str]:
    marks = [f"{len(rounds)} {kind}" for kind, rounds in _site_events(view, site).items() if rounds]
    stressed = view.config.stress and site in view.config.stress.sites
    return [*marks, *([f"stress test: {view.config.stress.case}"] if stressed and view.config.stress else [])]


def _site_events(view: RunView, site: str) -> dict[str, list[int]]:
    flags = [(r["round"], f) for r in view.records for f in r.get("flags", ()) if f["site"] == site]
    return {
        "rounds absent": [r["round"] for r in view.records if site in r.get("absent", ())],
        "rounds left out": [r["round"] for r in view.records if site in r.get("dropped", ())],
        "flags, left out": [number for number, flag in flags if flag["excluded"]],
        "flags, counts less": [number for number, flag in flags if not flag["excluded"]],
        "rounds late": [r["round"] for r in view.records if site in r.get("late", ())],
    }


def events_part(view: RunView) -> Part:
    """Faults and flags as a timeline; nothing where nothing happened."""
    events: list[Event] = []
    rows: list[list[Value]] = []
    for site in view.sites:
        for style, (kind, rounds) in enumerate(_site_events(view, site).items()):
            for first, last in _stretches(rounds):
                said = f"{site}, {KINDS[style]}, round {first}" + (f" to {last}" if last > first else "")
                events.append(Event(site, first, last, style, said))
                rows.append([site, KINDS[style], first, last, _detail(view, site, first, kind)])
    for start in view.starts[1:]:
        after = int(start["after_round"])
        events.append(Event(RUN, max(1, after), max(1, after), 5, f"started again after round {after}"))
        rows.append([RUN, KINDS[5], after, after, str(start.get("time", ""))])
    if not events:
        return Part("events", "Faults and flags")
    shown = list(dict.fromkeys(event.row for event in events))
    alt = "Faults and flags. " + "; ".join(event.tip for event in events[:40]) + "."
    columns = [
        Column("where", "Where"), Column("what", "What"), Column("first", "From round", "count"),
        Column("last", "To round", "count"), Column("detail", "Detail"),
    ]  # fmt: skip
    used = sorted({event.style for event in events})
    figure = Figure(
        "Faults and flags by round",
        alt,
        timeline(shown, len(view.records), events, alt),
        Table("events", "Faults and flags", columns, rows),
        legend=[Legend(KINDS[k], k) for k in used],
        wide=True,
    )
    return Part("events", "Faults and flags", f"Run {view.name}.", figures=[figure])


def _stretches(rounds: Sequence[int]) -> list[tuple[int, int]]:
    """Rounds that follow each other, as pairs of the first and the last.

    >>> _stretches([1, 2, 3, 7])
    [(1, 3), (7, 7)]
    """
    found: list[tuple[int, int]] = []
    for number in rounds:
        if found and found[-1][1] == number - 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found


def _detail(view: RunView, site: str, number: int, kind: str) -> str:
    if not kind.startswith("flags"):
        return ""
    flags = view.records[number - 1].get("flags", ())
    return "; ".join(f"{flag['reason']}: {flag['detail']}" for flag in flags if flag["site"] == site)


def contribution_part(view: RunView) -> Part:
    """Every site's contribution with its interval, as `run.py contribution` has found it."""
    return contribution_of(view.contribution)


def contribution_of(contribution: Mapping[str, Any]) -> Part:
    """Return the part of what `run.py contribution --json` prints."""
    values = _values(contribution)
    if not values:
        return Part("contribution", "Contribution")
    kind = "Shapley value" if contribution["values"].get("shapley") else "CGSV"
    points, rows = [], []
    for number, (site, one) in enumerate(values.items()):
        low, high = one["ci95"]
        points.append(
            Point(number + 1, one["value"], low, high, f"{site}: {one['value']:+.4f} ({low:+.4f} to {high:+.4f})")
        )
        rows.append([site, one["value"], low, high])
    names = list(values)
    x = Axis(
        "site",
        lambda v: names[round(v) - 1],
        holds=(0.5, len(names) + 0.5),
        ticks=tuple(map(float, range(1, len(names) + 1))),
    )
    y = Axis(kind, AUC_AXIS.shown, holds=(0.0,))
    chart = LineChart(x, y, [Line(kind, points, 0, joined=False)], name="Contribution by site")
    columns = [
        Column("site", "Site"),
        *(Column(k, t, "number") for k, t in (("value", kind), ("low", "95 % from"), ("high", "to"))),
    ]
    table = Table("contribution", "Contribution by site", columns, rows)
    note = f"Utility: {contribution.get('utility', '')}."
    pairs = [" and ".join(pair) for pair in contribution.get("not_apart", [])]
    notes = [f"Cannot be told apart: {', '.join(pairs)}."] if pairs else []
    figure = Figure("Contribution by site", alt_of(chart), draw(chart), table, note, wide=True)
    return Part("contribution", "Contribution", figures=[figure], notes=notes)
