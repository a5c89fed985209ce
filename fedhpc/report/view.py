"""One run as a report reads it: its public records, and nothing else of its directory.

Of `sites/<site>/` only the egress log is read, which is public. A personal model and what it is worth stay at their
hospital (`fedhpc.site.personal`), and so do its shard's figures and its log.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from fedhpc.config.schema import RunConfig
from fedhpc.errors import InputError
from fedhpc.records.run_directory import RunDirectory
from fedhpc.report.rows import Row
from fedhpc.transport.egress_log import Entry, read_log
from fedhpc.util.files import read_json, read_lines

AGAIN = "Remove it: a report is then made without it"
MOST_LOG_BYTES = 8_000_000
"""Egress logs of one run that are larger together are left out: a report must not take long."""


@dataclass(frozen=True)
class Examples:
    """Public images, by class: where they come from, and their PNG files in base64."""

    source: str
    images: Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class RunView:
    """What is known of a run.

    Attributes:
        path: its directory.
        row: its line in the tables.
        config: as resolved.
        records: one a round.
        summary: of a finished run; empty otherwise.
        curves: `curves.json`; empty where there is none.
        environment: versions and host; empty where there is none.
        starts: one for each start of the run.
        contribution: `contribution.json`; empty where there is none.
        audits: the public verdicts of `run.py audit`, one a site.
        examples: None where no public image was drawn.
        work_s: {site: seconds of its own work in each round}, by the sites' own egress logs; empty where all sites ran
            in one process.
    """

    path: Path
    row: Row
    config: RunConfig
    records: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any] = field(default_factory=dict)
    curves: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    starts: Sequence[Mapping[str, Any]] = ()
    contribution: Mapping[str, Any] = field(default_factory=dict)
    audits: Sequence[Mapping[str, Any]] = ()
    examples: Examples | None = None
    work_s: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """As in the tables."""
        return self.row.name

    @property
    def sites(self) -> tuple[str, ...]:
        """The declared hospitals."""
        return self.config.site_names

    @property
    def is_synthetic(self) -> bool:
        """Whether no patient exists, by what all shards said; before the run has ended, by its config."""
        return bool(self.summary.get("synthetic", self.config.data.phantom is not None))

    @property
    def is_federated(self) -> bool:
        """Whether it is no baseline."""
        return self.config.mode == "federated"


def view_of(path: Path, config: RunConfig, row: Row) -> RunView:
    """Read the public records of a run directory.

    Raises:
        InputError: a file of them was cut or changed.
    """
    directory = RunDirectory(path)
    return RunView(
        path=path,
        row=row,
        config=config,
        records=directory.read_whole_rounds(),
        summary=directory.read_summary() if directory.summary.exists() else {},
        curves=_optional(directory.curves, "curves"),
        environment=_optional(directory.environment),
        starts=_starts(directory.starts),
        contribution=_optional(directory.contribution, "values"),
        audits=[_optional(one) for one in sorted((path / "audit").glob("*.json"))],
        examples=_examples(directory.examples),
        work_s=site_work(directory, config),
    )


def _optional(path: Path, by_name: str = "") -> dict[str, Any]:
    """Return a record; empty where there is none. `by_name`: the key of a mapping of mappings in it, if it has one.

    Raises:
        InputError: it is no record.
    """
    found = read_json(path, AGAIN) if path.exists() else {}
    inner = found.get(by_name, {})
    if not (isinstance(inner, dict) and all(isinstance(one, dict) for one in inner.values())):
        raise _changed(path)
    return found


def _changed(path: Path) -> InputError:
    return InputError(f"{path}: is not what a run writes there; it was cut or changed. {AGAIN}.", code="file.damaged")


def _starts(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines, _ = read_lines(path, AGAIN)
    return [one for one in map(_parsed, lines) if one]


def _parsed(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _examples(path: Path) -> Examples | None:
    found = _optional(path)
    if not {"source", "images"} <= found.keys():
        return None
    images = found["images"]
    if not (
        isinstance(images, list) and all(isinstance(one, dict) and {"caption", "png"} <= one.keys() for one in images)
    ):
        raise _changed(path)
    return Examples(str(found["source"]), images)


def site_work(directory: RunDirectory, config: RunConfig) -> dict[str, list[float]]:
    """Return {site: seconds of its own work in each round}, by its own clock and egress log.

    Empty where several sites shared the process of rank 0, so that they waited for each other, where a log is missing
    or damaged (`run.py egress` names the damage), and where the logs are large.
    """
    paths = {site: directory.egress(site) for site in config.site_names}
    if config.mode != "federated" or not all(path.is_file() for path in paths.values()):
        return {}
    if sum(path.stat().st_size for path in paths.values()) > MOST_LOG_BYTES:
        return {}
    try:
        logs = {site: read_log(path) for site, path in paths.items()}
    except InputError:
        return {}
    at_rank_0 = [log for log in logs.values() if any(e.via == "process" and e.kind == "update" for e in log)]
    if len(at_rank_0) > 1:
        return {}
    found = {site: _worked(log) for site, log in logs.items()}
    return found if all(found.values()) else {}


def _worked(log: Sequence[Entry]) -> list[float]:
    """Seconds of a site's own work in each round.

    A site that has trained says so (kind control) and sends its update when all have: its own work ends at what it
    says, and begins at what it sent before that.
    """
    taken, seen = [], set()
    for before, trained, entry in zip(log, log[1:], log[2:], strict=False):
        if entry.kind == "update" and entry.round is not None and entry.round not in seen:
            seen.add(entry.round)
            said = trained.kind == "control" and trained.round == entry.round
            taken.append((_time(trained) - _time(before) if said else _time(entry) - _time(trained)).total_seconds())
    return taken


def _time(entry: Entry) -> datetime:
    return datetime.fromisoformat(entry.time)


def median_work(view: RunView) -> dict[str, float]:
    """{site: the median over the rounds of the seconds of its own work}."""
    return {site: statistics.median(seconds) for site, seconds in view.work_s.items()}
