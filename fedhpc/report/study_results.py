"""What the cells of a study have found that are no plain run, such as the legacy scanner and the audit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedhpc.records.study import Cell
from fedhpc.report.block_charts import ValueRow, intervals
from fedhpc.report.grid import MAP_NO_PRIVACY
from fedhpc.report.parts import Column, Figure, Legend, Part, Table, Value
from fedhpc.report.sites import contribution_of

WAYS = {"alone_auc": "alone", "federated_auc": "federated", "personal_auc": "personalised"}
GAINS = {
    "federated_over_alone_auc": "federated less alone", "gain_over_alone_auc": "personalised less alone",
    "gain_over_federated_auc": "personalised less federated",
}  # fmt: skip
EARLY_NAMES = {
    "auc": "AUC", "early": "early, common", "early_own": "early, own",
}  # fmt: skip
METHODS = {"shapley": "Shapley", "leave_one_out": "Leave one out", "cgsv": "CGSV", "cosine_shapley": "Cosine Shapley"}
MOST_SITES = 8
EPSILON_BOUND = "epsilon >="


@dataclass(frozen=True)
class CellResult:
    """A finished cell of a study, and what its command printed with --json."""

    cell: Cell
    found: Mapping[str, Any]


def result_parts(results: Sequence[CellResult]) -> list[Part]:
    """Build a part for each kind of cell that has a result, of all cells of the kind."""
    found: dict[str, list[CellResult]] = {}
    for one in results:
        found.setdefault(one.cell.kind, []).append(one)
    alone = {"legacy": _legacy, "early": _early, "codec": _codec, "audit": _audit, "planted": _planted}
    together = {"schedule": _schedule, "contribution": _contribution}
    parts: list[Part] = []
    for kind, cells in found.items():
        if kind in together:
            parts.append(together[kind](cells))
        elif kind in alone:
            for number, one in enumerate(cells):
                part = alone[kind](one)
                parts.append(_numbered(part, number, part.title in [other.title for other in parts]))
    return parts


def _numbered(part: Part, number: int, taken: bool) -> Part:
    """Return a part with an anchor of its own; `taken`: another part of the study has its title."""
    if not number:
        return part
    return replace(part, key=f"{part.key}-{number + 1}", title=f"{part.title} {number + 1}" if taken else part.title)


def _legacy(one: CellResult) -> Part:
    """AUC of each site alone, federated and personalised, and the paired gains over training alone."""
    rows = one.found.get("rows", [])
    title = "Legacy scanner" if one.cell.part == one.cell.kind else f"Legacy scanner, {one.cell.part}"
    bars, body = [], []
    for row in rows[:MOST_SITES]:
        for style, (key, way) in enumerate(WAYS.items()):
            if found := row.get(key):
                low, high = found["mean"] - found["half"], found["mean"] + found["half"]
                bars.append(ValueRow(f"{row['site']}, {way}", found["mean"], max(0.0, low), min(1.0, high), style))
                body.append([row["site"], way, found["mean"], low, high])
        for key, way in GAINS.items():
            if found := row.get(key):
                mean, half = found["mean"], found["half"]
                body.append([row["site"], way, mean, mean - half, mean + half])
    if not bars:
        return Part("legacy", title)
    told = "; ".join(f"{bar.label} {bar.value:.3f}" for bar in bars)
    alt = f"AUC of each site by kind of model. {told}."
    columns = [
        Column("site", "Site"), Column("model", "Model"), Column("auc", "AUC", "number"), *_ends(),
    ]  # fmt: skip
    legend = [Legend(way, k) for k, way in enumerate(WAYS.values())]
    table = Table("legacy", f"{title}: AUC by site and model", columns, body)
    figure = Figure("AUC alone, federated, personalised", alt, intervals(bars, "AUC", alt), table, "", legend)
    lead = "On new patients; differences are paired by patient. Intervals: 95 %, over patients and cohorts."
    return Part("legacy", title, lead, figures=[figure])


def _early(one: CellResult) -> Part:
    """Figures of both ways to train on new patients, and their paired differences."""
    bars, body = [], []
    for row in one.found.get("rows", []):
        name = EARLY_NAMES.get(row["figure"], row["figure"])
        for style, way in ((2, "centralised"), (0, "federated")):
            mean, half = row[way]["mean"], row[way]["half"]
            low, high = max(0.0, mean - half), min(1.0, mean + half)
            bars.append(ValueRow(f"{name}, {way}", mean, low, high, style))
            body.append([name, way, mean, low, high])
        difference = row["difference"]
        ends = (difference["mean"] - difference["half"], difference["mean"] + difference["half"])
        body.append([name, "federated less centralised", difference["mean"], *ends])
    if not bars:
        return Part("early", "Early stages")
    lead = (
        f"Both ways to train on {one.found['held_out']:,} new images, {one.found['early']:,} of an early stage, at "
        f"specificity {one.found['specificity']:g}: their sensitivity at a common threshold of all sites, and at each "
        "site's own. Differences are paired by patient."
    )
    alt = f"Figures by way to train. {'; '.join(f'{bar.label} {bar.value:.3f}' for bar in bars)}."
    columns = [Column("figure", "Figure"), Column("model", "Model"), Column("value", "Value", "number"), *_ends()]
    legend = [Legend("centralised", 2), Legend("federated", 0)]
    table = Table("early", "Figures on new patients", columns, body)
    figure = Figure("Federated and centralised on new patients", alt, intervals(bars, "share", alt), table, "", legend)
    return Part("early", "Early stages", lead, figures=[figure])


def _planted(one: CellResult) -> Part:
    """Return how often hospitals whose contribution is known beforehand are ranked right."""
    body: list[list[Value]] = [
        [
            row["case"],
            MAP_NO_PRIVACY if row["epsilon"] is None else f"{row['epsilon']:g}",
            *(_share(row, method) for method in METHODS),
            *(_apart(row, key) for key in ("right", "wrong")),
            row["of"],
            row["expected"],
        ]
        for row in one.found.get("rows", [])
    ]
    columns = [
        Column("case", "Planted"), Column("epsilon", "Epsilon"),
        *(Column(method, name, "number") for method, name in METHODS.items()),
        Column("apart", "Surely right", "number"), Column("wrong", "Surely wrong", "number"),
        Column("of", "Draws", "count"), Column("expected", "Right is"),
    ]  # fmt: skip
    lead = (
        "Share of the draws of the noise that rank a planted hospital right; without privacy one draw is all there is. "
        "Surely: the 95 % intervals of the Shapley values tell the hospitals apart; else they cannot be told apart."
    )
    table = Table("planted", "Ranked right", columns, body)
    return Part("planted", "Planted contributions", lead if body else "", tables=[table] if body else [])


def _apart(row: Mapping[str, Any], key: str) -> Value:
    apart = row.get("apart")
    return None if apart is None else apart[key] / row["of"]


def _share(row: Mapping[str, Any], method: str) -> Value:
    right = row["right"].get(method)
    return None if right is None else right / row["of"]


def _ends() -> tuple[Column, Column]:
    return Column("low", "95 % from", "number"), Column("high", "to", "number")


def _schedule(cells: Sequence[CellResult]) -> Part:
    """Return what a slow hospital costs under each policy, with and without privacy."""
    site, factor = cells[0].found.get("site"), cells[0].found.get("factor")
    body: list[list[Value]] = [
        [row.get("case"), _privacy(row.get("epsilon")), row.get("rounds_per_minute"), row.get("pace"), row.get("auc"),
         row.get("less_even")]
        for one in cells for row in one.found.get("rows", [])
    ]  # fmt: skip
    columns = [
        Column("policy", "Policy"), Column("epsilon", "Epsilon"),
        Column("rounds_per_minute", "Rounds a minute", "count"), Column("pace", "Pace against even", "number"),
        Column("auc", "AUC", "number"), Column("less_even", "AUC less even", "number"),
    ]  # fmt: skip
    lead = f"{site} is {factor:g} times as slow; even: as if it were not." if site and factor else ""
    return Part(
        "schedule", "Slow hospital", lead, tables=[Table("schedule", "Policies", columns, body)] if body else []
    )


def _privacy(epsilon: object) -> str:
    return "none" if epsilon is None else f"{epsilon:g}"


def _codec(one: CellResult) -> Part:
    """Bytes of an update of the paper's size."""
    keys = {"dense_bytes": "Dense float32", "payload_bytes": "Payload", "entropy_bound_bytes": "Entropy bound"}
    body: list[list[Value]] = [[name, one.found[key]] for key, name in keys.items() if key in one.found]
    columns = [Column("what", "What"), Column("bytes", "Bytes", "bytes")]
    size, density, bits = (one.found.get(key) for key in ("size", "density", "value_bits"))
    lead = f"One update of {size:,} parameters at density {density:g}, {bits} bits a value." if size and density else ""
    return Part("codec", "Size of an update", lead, tables=[Table("codec", "Bytes", columns, body)] if body else [])


def _audit(one: CellResult) -> Part:
    """Return the verdict, the lower bounds of epsilon against what is claimed, and all findings.

    A finding without figures was measured on patients without noise: its figures stay at the hospital.
    """
    keys = {
        "attack": "Attack", "setting": "Setting", "kind": "Kind", "quantity": "Quantity", "measured": "Measured",
        "proven": "Proven", "limit": "Limit", "verdict": "Verdict",
    }  # fmt: skip
    rows = one.found.get("findings", ())
    body: list[list[Value]] = [[_plain(row.get(key)) for key in keys] for row in rows]
    numbers = ("measured", "proven", "limit")
    columns = [Column(key, title, "number" if key in numbers else "text") for key, title in keys.items()]
    tables = [Table("audit", "What was attacked", columns, body)] if body else []
    bounds = [row for row in rows if row.get("quantity") == EPSILON_BOUND]
    figures = [_bounds(bounds)] if bounds else []
    return Part("audit-cell", "Privacy audit", str(one.found.get("verdict", "")), figures=figures, tables=tables)


def _bounds(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Lower bounds of epsilon; one that is broken on purpose must lie above its limit, the others below."""
    bars, body = [], []
    for row in rows:
        label, style = f"{row['attack']}, {row['setting']}", 0 if row["kind"] == "claim" else 1
        bars.append(ValueRow(label, float(row["proven"]), None, None, style, float(row["limit"]), "claimed"))
        body.append([label, row["kind"], row["proven"], row["limit"]])
    columns = [
        Column("attack", "Attack"), Column("kind", "Kind"), Column("bound", "Epsilon, at least", "number"),
        Column("claimed", "Claimed", "number"),
    ]  # fmt: skip
    told = "; ".join(f"{bar.label}: at least {bar.value:.2f}, claimed {bar.reference:.2f}" for bar in bars)
    alt = f"Lower bounds of epsilon. {told}."
    legend = [Legend("as it is", 0), Legend("broken on purpose", 1)]
    note = "Rings: what is claimed. As it is, a bound must lie below its ring; broken on purpose it should lie above."
    svg = intervals(bars, "epsilon, at least", alt)
    return Figure("Lower bounds of epsilon", alt, svg, Table("bounds", "Lower bounds", columns, body), note, legend)


def _plain(value: object) -> Value:
    return value if isinstance(value, str | float | int) and not isinstance(value, bool) else None


def _contribution(cells: Sequence[CellResult]) -> Part:
    """Every site's contribution, a chart for each epsilon."""
    found = [(_privacy(one.cell.epsilon), contribution_of(one.found)) for one in cells]
    figures = [
        replace(
            figure,
            title=title,
            table=replace(figure.table, key=f"contribution-{epsilon}", title=title),
            wide=len(cells) == 1,
        )
        for epsilon, part in found
        for title in [f"Contribution by site, {'without privacy' if epsilon == 'none' else f'epsilon {epsilon}'}"]
        for figure in part.figures
    ]
    notes = dict.fromkeys(f"Epsilon {epsilon}: {note}" for epsilon, part in found for note in part.notes)
    return Part("contribution", "Contribution", figures=figures, notes=list(notes))
