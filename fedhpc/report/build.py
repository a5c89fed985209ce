"""From directories to the report: report.html, and the same as report.json and report.csv."""

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedhpc.errors import InputError
from fedhpc.records.metrics import shown_metrics
from fedhpc.report.page import absent_notes, evaluation_notes, insecure_notes, page, sent, settings
from fedhpc.report.rows import (
    DATA,
    DENSITY,
    EPSILON,
    Group,
    Label,
    Row,
    State,
    facts_of,
    groups_of,
    row_of,
    rows_of_runs,
)
from fedhpc.sweep.config import SEED
from fedhpc.sweep.directory import SweepDirectory, now
from fedhpc.sweep.slurm_queue import look
from fedhpc.sweep.status import shown
from fedhpc.util.files import make_folder, write_text
from fedhpc.util.text import fitted, fixed, wrapped

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Report:
    """What is reported; `keys` are those that the rows differ in, in order."""

    name: str
    keys: tuple[str, ...]
    rows: tuple[Row, ...]
    groups: tuple[Group, ...]
    made: str

    def facts(self) -> dict[str, Any]:
        """report.json."""
        return {
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "made": self.made,
            "states": dict(Counter(row.state for row in self.rows)),
            "rows": [facts_of(row) for row in self.rows],
            "groups": [facts_of(group) for group in self.groups],
        }

    def csv(self) -> str:
        """report.csv: a line a run, a column for each of its facts; of the point, one for each key."""
        text = io.StringIO()
        keys = [key for key in self.keys if key not in (EPSILON, DENSITY, SEED)]
        facts = [key for key in facts_of(self.rows[0]) if key != "point"] if self.rows else []
        writer = csv.writer(text)
        writer.writerow([*facts, *keys])
        for row in self.rows:
            found = facts_of(row)
            writer.writerow([*(found[key] for key in facts), *(row.point.get(key) for key in keys)])
        return text.getvalue()

    def told(self, out: Path) -> str:
        """For the terminal: the settings, and where the page is."""
        keys, heads = settings(self.keys), [metric.head for metric in shown_metrics()]
        rows = [(*(key.rpartition(".")[2] for key in keys), "runs", "AUC", "lowest", "highest", *heads, "up a round")]
        for group in self.groups:
            cells = [shown(group.point[key]) if key in group.point else "-" for key in keys]
            cells[0] = group.baseline or cells[0]
            others = (group.metrics.get(metric.key) for metric in shown_metrics())
            numbers = (group.auc, group.auc_lowest, group.auc_highest, *others)
            up = "-" if group.bytes_up is None else sent(group.bytes_up)
            rows.append((*cells, f"{group.finished}/{group.runs}", *map(fixed, numbers), up))
        exact = [row for row in self.rows if row.released_exactly]
        notes = [*insecure_notes(self.rows), *absent_notes(self.rows), *evaluation_notes(exact)]
        return "\n".join([fitted(rows), *map(wrapped, notes), str(out)])


def report(targets: Sequence[Path]) -> Report:
    """The report on one sweep, or on run directories.

    Raises:
        InputError: a target that is neither.
    """
    sweeps = [target for target in targets if SweepDirectory(target).plan.exists()]
    if len(targets) == 1 and sweeps:
        return _of_sweep(SweepDirectory(targets[0]))
    if sweeps:
        raise InputError(f"{sweeps[0]}: is a sweep; a report is on one sweep, or on runs", code="command-line")
    rows = rows_of_runs(targets)
    name = targets[0].name if len(targets) == 1 else f"{len(targets)} runs"
    keys = (EPSILON, DENSITY, SEED, *([DATA] if any(DATA in row.point for row in rows) else []))
    return Report(name, keys, tuple(rows), tuple(groups_of(rows)), now())


def _of_sweep(directory: SweepDirectory) -> Report:
    sweep = directory.read()
    rows = []
    found = look(directory, sweep)
    for trial, line in zip(sweep.trials, found, strict=True):
        label = Label(trial.name, trial.baseline, trial.point)
        run = directory.trial(trial.name).run
        rows.append(row_of(trial.config, run, State(line.state, line.message), label))
    return Report(sweep.name, tuple(sweep.grid), tuple(rows), tuple(groups_of(rows)), now())


def write(found: Report, out: Path) -> None:
    """The page at `out`, JSON and CSV beside it."""
    make_folder(out.parent)
    write_text(out, page(found.name, found.keys, found.rows, found.groups, found.made))
    write_text(out.with_suffix(".json"), json.dumps(found.facts(), indent=2, allow_nan=False) + "\n")
    write_text(out.with_suffix(".csv"), found.csv())


def report_sweep(path: Path) -> Path:
    """Write the report of a sweep into its directory; the path of the page."""
    out = path / "report.html"
    write(report([path]), out)
    return out
