"""Diagnostic quality: AUC as the rounds go, ROC curves, calibration, and the operating point."""

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from fedhpc.privacy.evaluation_plan import counts_note
from fedhpc.records.curves import ALL_SITES
from fedhpc.records.metrics import METRICS
from fedhpc.report.block_charts import ValueRow, intervals
from fedhpc.report.line_chart import AUC_AXIS, BYTES_AXIS, ROUND_AXIS, Axis, Level, Line, LineChart, Point, alt_of, draw
from fedhpc.report.line_chart import legend_of as legend
from fedhpc.report.parts import Column, Figure, Legend, Part, Table, Value
from fedhpc.report.view import RunView
from fedhpc.util.text import capital

MOST_LINES, MOST_SITES = 6, 13
OUTSIDE = ", which are outside the privacy guarantee (evaluation.epsilon is null)."
SHARE_AXIS = Axis("", lambda value: f"{value:.1f}", floor=0.0, ceiling=1.0, holds=(0.0, 1.0))


def progress_part(views: Sequence[RunView], levels: Mapping[str, float]) -> Part:
    """AUC on the validation splits by round and by bytes; `levels` are the AUC of the baselines."""
    shown = [view for view in views if len(_validated(view)) > 1][:MOST_LINES]
    if not shown:
        return Part("progress", "Learning")
    drawn = [Level(name, value, k) for k, (name, value) in enumerate(levels.items())]
    figures = [_by_round(shown, drawn)]
    sent = [view for view in shown if view.is_federated and view.records[-1].get("bytes_up")]
    if sent:
        figures.append(_by_bytes(sent, drawn))
    rest = len([view for view in views if len(_validated(view)) > 1]) - len(shown)
    notes = [f"{rest} more runs are in the files only."] if rest > 0 else []
    return Part("progress", "Learning", figures=figures, notes=notes)


def _validated(view: RunView) -> list[Mapping[str, Any]]:
    return [record for record in view.records if record.get("auc_val") is not None]


def _labels(views: Sequence[RunView]) -> list[str]:
    """Return what the lines of runs are called: their settings where these tell them apart, else their names."""
    told = [
        f"{'no privacy' if view.row.epsilon_target is None else f'epsilon {view.row.epsilon_target:g}'}, density "
        f"{view.row.density:g}"
        for view in views
        if view.row.density is not None
    ]
    return told if len(views) > 1 and len(set(told)) == len(views) else [view.name for view in views]


def _by_round(views: Sequence[RunView], levels: Sequence[Level]) -> Figure:
    lines, rows, labels = [], [], _labels(views)
    for k, view in enumerate(views):
        found = [(record["round"], float(record["auc_val"])) for record in _validated(view)]
        points = [Point(r, auc, tip=f"{view.name}, round {r}: AUC {auc:.3f}") for r, auc in found]
        lines.append(Line(labels[k], points, k))
        rows += [[view.name, r, auc] for r, auc in found]
    chart = LineChart(ROUND_AXIS, AUC_AXIS, lines, levels, name="Validation AUC by round")
    columns = [Column("run", "Run"), Column("round", "Round", "count"), Column("auc_val", "AUC", "number")]
    note = "On the validation splits. " + ("Broken lines: test AUC of the baselines." if levels else "")
    table = Table("auc_by_round", "AUC by round", columns, rows)
    return Figure("AUC by round", alt_of(chart), draw(chart), table, note, legend(chart))


def _by_bytes(views: Sequence[RunView], levels: Sequence[Level]) -> Figure:
    lines, rows, labels = [], [], _labels(views)
    for k, view in enumerate(views):
        sent = list(accumulate(r["bytes_up"] + r["bytes_down"] for r in view.records))
        found = [(sent[r["round"] - 1], float(r["auc_val"])) for r in _validated(view)]
        points = [Point(b, a, tip=f"{view.name}: AUC {a:.3f} after {b:,} B") for b, a in found]
        lines.append(Line(labels[k], points, k))
        rows += [[view.name, b, a] for b, a in found]
    x = Axis("bytes exchanged so far, all sites, both ways", BYTES_AXIS.shown, may_be_log=True)
    chart = LineChart(x, AUC_AXIS, lines, levels, name="Validation AUC by bytes exchanged")
    columns = [Column("run", "Run"), Column("bytes", "Bytes so far", "bytes"), Column("auc_val", "AUC", "number")]
    table = Table("auc_by_bytes", "AUC by bytes", columns, rows)
    return Figure("AUC by bytes", alt_of(chart), draw(chart), table, "", legend(chart))


def curves_part(view: RunView) -> Part:
    """ROC curves and calibration of the final model, over all sites and at each."""
    found = view.curves.get("curves", {})
    names = [name for name in (ALL_SITES, *view.sites) if found.get(name, {}).get("sensitivities")]
    if not names:
        return Part("curves", "ROC and calibration")
    figures = [_roc(view, names[:MOST_LINES])]
    if found.get(ALL_SITES, {}).get("calibration"):
        figures.append(_calibration(found[ALL_SITES]["calibration"]))
    noise = view.curves.get("evaluation_epsilon")
    exact = "From exact score histograms of the test patients" + (OUTSIDE if view.config.private else ".")
    noisy = f"From counts that were released with the noise of evaluation epsilon {noise or 0:g}: they contain it."
    hidden = [site for site in view.sites if site not in names]
    notes = [exact if noise is None else noisy]
    if hidden:
        notes.append(f"Not shown: {', '.join(hidden)}. Too few test images of a class, or no release by site.")
    if len(names) > MOST_LINES:
        notes.append(f"{len(names) - MOST_LINES} more sites are in the files only.")
    return Part("curves", "ROC and calibration", f"Final model of {view.name}.", figures=figures, notes=notes)


def _roc(view: RunView, names: Sequence[str]) -> Figure:
    rates, lines, rows = view.curves["false_positive_rates"], [], []
    for k, name in enumerate(names):
        values = view.curves["curves"][name]["sensitivities"]
        label = "all sites" if name == ALL_SITES else name
        pairs = list(zip(rates, values, strict=True))
        lines.append(
            Line(label, [Point(x, y, tip=f"{label}: {y:.3f} at {x:.2f} false positives") for x, y in pairs], k)
        )
        rows += [[label, x, y] for x, y in pairs]
    x_axis = Axis("false-positive rate", SHARE_AXIS.shown, floor=0.0, ceiling=1.0, holds=(0.0, 1.0))
    y_axis = Axis("sensitivity", SHARE_AXIS.shown, floor=0.0, ceiling=1.0, holds=(0.0, 1.0))
    chart = LineChart(x_axis, y_axis, lines, diagonal=True, name="ROC curves")
    at = view.curves["specificity"]
    told = "; ".join(f"{one.label} {_at(one.points, 1 - at):.3f}" for one in lines)
    columns = [
        Column("site", "Site"), Column("rate", "False-positive rate", "number"), Column("s", "Sensitivity", "number"),
    ]  # fmt: skip
    table = Table("roc", "ROC curves", columns, rows)
    note = f"Broken line: chance. Sensitivity at specificity {at:g}: {told}."
    return Figure(
        "ROC by site",
        f"ROC curves. Sensitivity at specificity {at:g}: {told}.",
        draw(chart),
        table,
        note,
        legend(chart),
    )


def _at(points: Sequence[Point], rate: float) -> float:
    return next((point.y for point in points if math.isclose(point.x, rate, abs_tol=1e-6)), float("nan"))


def _calibration(bins: Sequence[Mapping[str, Any]]) -> Figure:
    points, rows = [], []
    for one in sorted(bins, key=lambda b: (b["low"] + b["high"]) / 2):
        x = one["predicted"] if one["predicted"] is not None else (one["low"] + one["high"]) / 2
        low, high = (min(1.0, max(0.0, one["observed"] + side * 1.96 * one["deviation"])) for side in (-1, 1))
        tip = f"predicted {one['low']:.2f} to {one['high']:.2f}: observed {one['observed']:.2f} of {one['images']:.0f}"
        points.append(Point(x, one["observed"], low, high, tip))
        row: list[Value] = [one["low"], one["high"], one["predicted"], one["observed"], low, high, one["images"]]
        rows.append(row)
    x_axis = Axis("predicted probability", SHARE_AXIS.shown, floor=0.0, ceiling=1.0, holds=(0.0, 1.0))
    y_axis = Axis("observed share of positives", SHARE_AXIS.shown, floor=0.0, ceiling=1.0, holds=(0.0, 1.0))
    chart = LineChart(x_axis, y_axis, [Line("all sites", points, 0)], diagonal=True, name="Calibration")
    titles = (
        ("low", "From"), ("high", "To"), ("predicted", "Mean predicted"), ("observed", "Observed"),
        ("ci_low", "95 % from"), ("ci_high", "to"),
    )  # fmt: skip
    columns = [*(Column(key, title, "number") for key, title in titles), Column("images", "Images", "count")]
    table = Table("calibration", "Calibration", columns, rows)
    told = "; ".join(f"{p.y:.2f} observed at {p.x:.2f}" for p in points)
    between = any(one["predicted"] is None for one in bins)
    note = "On the broken line a probability means what it says."
    note += " A point stands in the middle of its bin of scores." if between else ""
    return Figure("Calibration, all sites", f"Calibration. {told}.", draw(chart), table, note)


def operating_part(view: RunView) -> Part:
    """Sensitivity at the operating point, early lesions apart; and the other metrics of each site."""
    per_site = view.summary.get("per_site", {})
    keys = [
        ("auc", "AUC"), ("f1", "F1"), ("sensitivity", "Sensitivity"), ("sensitivity_early", "Early-stage sensitivity"),
    ]  # fmt: skip
    rows: list[list[Value]] = [["all sites", *(view.summary.get(key) for key, _ in keys), None]]
    rows += [[site, *(one.get(key) for key, _ in keys), one.get("n_test")] for site, one in per_site.items()]
    used = [k for k in range(len(keys)) if any(row[k + 1] is not None for row in rows)]
    if not used:
        return Part("operating", "Operating point")
    columns = [Column("site", "Site"), *(Column(*keys[k], "number") for k in used)]
    tested = any(row[-1] is not None for row in rows)
    columns += [Column("n_test", "Test images", "count")] if tested else []
    kept = [[row[0], *(row[k + 1] for k in used), *([row[-1]] if tested else [])] for row in rows]
    specificity = view.config.evaluation.specificity
    names = {metric.key: metric.name for metric in METRICS}
    reasons = [f"{capital(names.get(key, key))}: {why}." for key, why in view.summary.get("reasons", {}).items()]
    note = f"Sensitivity at the lowest threshold whose specificity is at least {specificity:g}; test splits."
    note = f"{note} {counts_note(view.config)}".strip() if tested else note
    tables = [Table("metrics", "Metrics by site", columns, kept, note)]
    figure = _sensitivities(view, rows)
    findings = view.summary.get("per_finding", {})
    if findings:
        found = [[name, *(one.get(keys[k][0]) for k in used)] for name, one in findings.items()]
        tables.append(
            Table("findings", "Metrics by finding", [Column("finding", "Finding"), *columns[1 : len(used) + 1]], found)
        )
    figures = [] if figure is None else [figure]
    return Part(
        "operating", "Operating point", f"Final model of {view.name}.", figures=figures, tables=tables, notes=reasons
    )


def _sensitivities(view: RunView, metrics: Sequence[Sequence[Value]]) -> Figure | None:
    """Sensitivity of all lesions and of early ones, over all sites and at each."""
    bars, rows = [], []
    for site, _, _, every, early, _ in metrics[:MOST_SITES]:
        for value, label, style in ((every, str(site), 0), (early, f"{site}, early", 1)):
            if isinstance(value, float):
                bars.append(ValueRow(label, value, None, None, style))
                rows.append([str(site), "early" if style else "all lesions", value])
    if not bars:
        return None
    specificity = view.config.evaluation.specificity
    told = "; ".join(f"{bar.label} {bar.value:.3f}" for bar in bars)
    alt = f"Sensitivity at specificity {specificity:g}. {told}."
    columns = [Column("site", "Site"), Column("lesions", "Lesions"), Column("sensitivity", "Sensitivity", "number")]
    return Figure(
        "Sensitivity at the operating point",
        alt,
        intervals(bars, f"sensitivity at specificity {specificity:g}", alt),
        Table("sensitivity", "Sensitivity", columns, rows),
        legend=[Legend("all lesions", 0), Legend("early-stage lesions", 1)],
    )
