"""From directories to the report: report.html, and the same as report.json and report.csv."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fedhpc.report.notes import absent_notes, exact_notes, insecure_notes
from fedhpc.report.page import Content, page, parts_of
from fedhpc.report.parts import Part, csv_files, facts_of_parts
from fedhpc.report.rows import DATA, DENSITY, EPSILON, SEED, facts_of, groups_of
from fedhpc.report.terminal import settings_text
from fedhpc.util.clock import now
from fedhpc.util.csv_text import csv_text
from fedhpc.util.files import make_folder, write_text
from fedhpc.util.text import wrapped

FORMAT_VERSION = 2


@dataclass(frozen=True)
class Report:
    """A report, ready to be written."""

    content: Content

    @cached_property
    def parts(self) -> list[Part]:
        """The sections of the page."""
        return parts_of(self.content)

    def facts(self) -> dict[str, Any]:
        """report.json: a row a run, a group a setting, and every table of the page."""
        rows = self.content.rows
        return {
            "format_version": FORMAT_VERSION,
            "name": self.content.name,
            "made": self.content.made,
            "states": dict(Counter(row.state for row in rows)),
            "rows": [facts_of(row) for row in rows],
            "groups": [facts_of(group) for group in self.content.groups],
            "parts": facts_of_parts(self.parts),
        }

    def csv(self) -> str:
        """report.csv: a line a run, a column for each of its facts; of the point, one for each key."""
        rows = self.content.rows
        keys = [key for key in self.content.keys if key not in (EPSILON, DENSITY, SEED)]
        facts = [key for key in facts_of(rows[0]) if key != "point"] if rows else []
        found = [(facts_of(row), row.point) for row in rows]
        lines = [[*(own[key] for key in facts), *(point.get(key) for key in keys)] for own, point in found]
        return csv_text([[*facts, *keys], *lines])

    def html(self) -> str:
        """report.html."""
        return page(self.content, self.parts, self.facts())

    def text(self, out: Path) -> str:
        """For the terminal: the settings, and where the page is."""
        found = self.content.rows
        notes = [*insecure_notes(found), *absent_notes(found), *exact_notes(found)]
        return "\n".join([settings_text(self.content.keys, self.content.groups), *map(wrapped, notes), str(out)])


def report(sources: Sequence[Content]) -> Report:
    """Put several contents together: runs, sweeps and studies side by side."""
    if len(sources) == 1:
        return Report(sources[0])
    rows = tuple(row for one in sources for row in one.rows)
    keys = dict.fromkeys(key for one in sources for key in one.keys)
    keys |= dict.fromkeys([DATA] if any(DATA in row.point for row in rows) else [])
    together = Content(
        name=f"{len(rows)} runs",
        keys=tuple(keys),
        rows=rows,
        groups=tuple(groups_of(rows)),
        made=now(),
        views=tuple(view for one in sources for view in one.views),
        targets=tuple(target for one in sources for target in one.targets),
        claims=tuple(claim for one in sources for claim in one.claims),
        results=tuple(result for one in sources for result in one.results),
    )
    return Report(together)


def is_report(text: str) -> bool:
    """Return whether a text is the report.json of a report.

    >>> is_report('{"rows": [], "groups": []}'), is_report('{"auc": 0.9}'), is_report("[")
    (True, False, False)
    """
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(facts, dict) and {"rows", "groups"} <= facts.keys()


def write(found: Report, out: Path, tables: Path | None = None) -> None:
    """Write the page at `out`, JSON and CSV beside it, and with `tables` a CSV file for each table into that folder.

    The folder of `out` must exist; that of the tables is made.
    """
    write_text(out, found.html())
    write_text(out.with_suffix(".json"), json.dumps(found.facts(), indent=2, allow_nan=False) + "\n")
    write_text(out.with_suffix(".csv"), found.csv())
    if tables is not None:
        make_folder(tables)
        for name, content in csv_files(found.parts).items():
            write_text(tables / name, content)
