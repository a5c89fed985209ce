"""The report as one self-contained HTML page."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fedhpc.records.metrics import shown_metrics
from fedhpc.records.rounds import GIVEN_AWAY
from fedhpc.report.chart import Chart, Mark, draw
from fedhpc.report.rows import DATA, EPSILON, FINISHED, Group, Row
from fedhpc.sweep.config import SEED
from fedhpc.sweep.status import shown
from fedhpc.util.html import rendered
from fedhpc.util.text import clock, fixed

TEMPLATE = Path(__file__).with_name("page.html.jinja")
PROTECTION = {
    "none": "a rehearsal, in which the aggregator's process held the sites' own vectors.",
    "honest-but-curious": "it protects only from an aggregator that keeps to the protocol.",
    "malicious": "it protects from an aggregator that may send what it likes, as far as the CA is not its own.",
}
NO_PRIVACY = "no privacy"
KB = 1e3


class Cell(NamedTuple):
    """The text of a cell, and its CSS classes."""

    text: str
    classes: str = ""


@dataclass(frozen=True)
class Table:
    """A table of the page: `head` and each line of `body` have as many cells."""

    head: Sequence[Cell]
    body: Sequence[Sequence[Cell]]


def page(name: str, keys: Sequence[str], rows: Sequence[Row], groups: Sequence[Group], made: str) -> str:
    """The page; `keys` are those that the rows differ in."""
    chart = chart_of(keys, groups)
    return rendered(
        TEMPLATE,
        name=name,
        summary=_summary(rows, made),
        chart=None if chart is None else draw(chart),
        caption="" if chart is None else _caption(chart, rows),
        settings=_group_table(keys, groups),
        failed=[row for row in rows if row.message],
        runs=_row_table(keys, rows),
        notes=_notes(rows),
    )


def _summary(rows: Sequence[Row], made: str) -> str:
    counts = Counter(row.state for row in rows)
    states = ", ".join(f"{count} {state}" for state, count in counts.most_common())
    commits = ", ".join(sorted({row.git for row in rows if row.git}))
    when = made[:16].replace("T", " ")
    return f"{len(rows)} runs: {states}. Made {when} UTC" + (f", code {commits}." if commits else ".")


def chart_of(keys: Sequence[str], groups: Sequence[Group]) -> Chart | None:
    """AUC against epsilon, or else against the grid's first key of numbers; None where there is nothing to draw."""
    done = [group for group in groups if group.auc is not None]
    axis = next((key for key in (EPSILON, *keys) if key != SEED and _is_axis(key, done)), None)
    if axis is None:
        return None
    series: dict[str, list[Mark]] = {}
    for group in done:
        if not group.baseline and group.auc is not None:
            others = {key: value for key, value in group.point.items() if key != axis}
            label = ", ".join(f"{_title(key)} {shown(value)}" for key, value in others.items()) or "federated"
            series.setdefault(label, []).append(Mark(group.point[axis], group.auc, group.aucs))
    levels = {_level(group): group.auc for group in done if group.baseline and group.auc is not None}
    return Chart(_title(axis), NO_PRIVACY if axis == EPSILON else "none", series, levels)


def _level(group: Group) -> str:
    """The label of a baseline: with its data, where the runs are on several."""
    return f"{group.baseline}, data {group.point[DATA]}" if DATA in group.point else group.baseline


def _is_axis(key: str, groups: Sequence[Group]) -> bool:
    values = [group.point[key] for group in groups if not group.baseline and key in group.point]
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    return bool(values) and len(numbers) + values.count(None) == len(values)


def _title(key: str) -> str:
    return key.rpartition(".")[2].replace("_", " ")


def _caption(chart: Chart, rows: Sequence[Row]) -> str:
    seeds = len({row.seed for row in rows})
    dots = "Full dots: means over seeds; rings: the single runs. " if seeds > 1 else "One seed: a dot is one run. "
    levels = "Broken lines: the baselines, for which the grid's keys mean nothing. " if chart.levels else ""
    return f"{dots}{levels}AUC on the hospitals' test splits, macro average over the classes."


def settings(keys: Sequence[str]) -> list[str]:
    """The keys that a setting is told by; where only seeds differ, a column for the names of baselines."""
    return [key for key in keys if key != SEED] or ["setting"]


def _group_table(keys: Sequence[str], groups: Sequence[Group]) -> Table:
    own = settings(keys)
    head = [*map(_title, own), "runs", "AUC", "lowest to highest"]
    head += [*(metric.name for metric in shown_metrics()), "epsilon spent", "up a round"]
    body = []
    for group in groups:
        reach = "-" if len(group.aucs) < 2 else f"{fixed(group.auc_lowest)} to {fixed(group.auc_highest)}"
        complete = "n" if group.finished == group.runs else "n bad"
        body.append(
            [
                *_point_cells(own, group.baseline, group.point),
                Cell(f"{group.finished} of {group.runs}", complete),
                Cell(fixed(group.auc), "n"),
                Cell(reach, "n"),
                *(Cell(fixed(group.metrics.get(metric.key)), "n") for metric in shown_metrics()),
                Cell(fixed(group.epsilon), "n"),
                Cell("-" if group.bytes_up is None else sent(group.bytes_up), "n"),
            ]
        )
    return _table(head, body)


def _row_table(keys: Sequence[str], rows: Sequence[Row]) -> Table:
    head = ["run", *map(_title, keys), "state", "AUC", "95 % interval"]
    head += [*(metric.head for metric in shown_metrics()), "epsilon spent"]
    head += ["up", "down", "rounds", "time"]
    body = []
    for row in rows:
        reach = "-" if row.auc_low is None else f"{fixed(row.auc_low)} to {fixed(row.auc_high)}"
        state = "finished, budget spent" if row.stopped == "budget" else row.state
        state = f"{state}, INSECURE" if row.insecure else state
        state = f"{state}, WITHOUT {row.absent}" if row.absent else state
        body.append(
            [
                Cell(row.name),
                *_point_cells(keys, row.baseline, row.point),
                Cell(state, "" if row.state == FINISHED and not (row.insecure or row.absent) else "bad"),
                Cell(fixed(row.auc), "n"),
                Cell(reach, "n"),
                *(Cell(fixed(row.metrics.get(metric.key)), "n") for metric in shown_metrics()),
                Cell(fixed(row.epsilon), "n"),
                *(Cell("-" if count is None else sent(count), "n") for count in (row.bytes_up, row.bytes_down)),
                Cell(str(row.rounds), "n"),
                Cell("-" if row.seconds is None else clock(row.seconds), "n"),
            ]
        )
    return _table(head, body)


def _point_cells(keys: Sequence[str], baseline: str, point: Mapping[str, Any]) -> list[Cell]:
    """The values of the keys; a baseline's name stands in the first column that is not its own."""
    cells = [Cell(shown(point[key]) if key in point else "-") for key in keys]
    if baseline and cells:
        place = next((at for at, key in enumerate(keys) if key not in point), 0)
        cells[place] = Cell(baseline)
    return cells


def sent(count: float) -> str:
    """Bytes, in the unit that needs no more than three digits before the point.

    >>> sent(480.0), sent(15_393.0), sent(48_000_000.0)
    ('480 B', '15.4 kB', '48.0 MB')
    """
    if count < KB:
        return f"{count:.0f} B"
    return f"{count / KB:.1f} kB" if count < KB**2 else f"{count / KB**2:.1f} MB"


def _table(head: Sequence[str], body: Sequence[Sequence[Cell]]) -> Table:
    """Return the table; a column of numbers has its head on the right, too."""
    return Table(
        [Cell(text, "n" if cell.classes.startswith("n") else "") for text, cell in zip(head, body[0], strict=True)],
        body,
    )


def _notes(rows: Sequence[Row]) -> list[str]:
    notes = [
        "Early: the sensitivity for early lesions, at the config's specificity. 95 % interval: over the test patients "
        "of one run, and over the noise of a private evaluation; it says nothing of other seeds. Up, down: bytes sent "
        "in a round, over all hospitals."
    ]
    deltas = sorted({row.delta for row in rows if row.delta is not None})
    if deltas:
        notes.append(
            f"Epsilon at delta {', '.join(f'{delta:g}' for delta in deltas)}, by each run's own ledger, for training "
            "patients. Private runs on the same patients add up: `run.py privacy SHARD` tells the sum."
        )
    return [*notes, *evaluation_notes(rows), *insecure_notes(rows), *absent_notes(rows), *_trust_notes(rows)]


def evaluation_notes(rows: Sequence[Row]) -> list[str]:
    """What private runs have released of validation and test patients."""
    notes, asked = [], sorted({row.evaluation_epsilon for row in rows if row.evaluation_epsilon is not None})
    if asked:
        notes.append(
            f"Validation and test patients have an epsilon of their own, of at most "
            f"{', '.join(f'{epsilon:g}' for epsilon in asked)} a run: their metrics contain its noise."
        )
    exact = [row.name for row in rows if row.released_exactly]
    return [*notes, f"NOT PRIVATE in {', '.join(exact)}: {GIVEN_AWAY}."] if exact else notes


def insecure_notes(rows: Sequence[Row]) -> list[str]:
    """Which runs have no guarantee though an epsilon was asked for."""
    names = ", ".join(row.name for row in rows if row.insecure)
    return [f"INSECURE: privacy.noise_seed was set in {names}: the noise can be removed, no epsilon holds."] * bool(
        names
    )


def absent_notes(rows: Sequence[Row]) -> list[str]:
    """Which runs have rounds without a declared hospital, a note a run."""
    return [f"INCOMPLETE: {row.name} has rounds without {row.absent}." for row in rows if row.absent]


def _trust_notes(rows: Sequence[Row]) -> list[str]:
    """Against whom secure aggregation has protected, a note a level."""
    notes = []
    for level, meaning in PROTECTION.items():
        there = [row for row in rows if row.protects_from_aggregator == level]
        if there:
            left = max(row.epsilon_if_unmasked or 0.0 for row in there)
            names = ", ".join(row.name for row in there)
            notes.append(f"Secure aggregation of {names}: {meaning} If that fails, epsilon {left:.2f} is left at most.")
    return notes
