"""How one run goes, from config.yaml, rounds.jsonl, lock.json, summary.json and the egress logs of its sites."""

import os
import socket
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from fedhpc.config.schema import RunConfig
from fedhpc.errors import InputError
from fedhpc.records.run_directory import RunDirectory
from fedhpc.transport.egress_log import Entry, parsed
from fedhpc.util.directory_lock import Holder, judged
from fedhpc.util.regular_file import opened

State = Literal["starting", "running", "finished", "stopped", "killed"]
TAIL_BYTES = 8192
SLOW, SLOW_LEAST_S = 2.0, 1.0
"""A site is slow whose update left so many times later after the first one's than the others' middle, and so long."""


@dataclass(frozen=True)
class Waiting:
    """A site whose update of the present round has not left yet, and for how long others' have, in seconds."""

    site: str
    for_s: float


@dataclass(frozen=True)
class RunView:
    """A run at one moment.

    Attributes:
        name: of its directory.
        config: None where it has not written one yet.
        state: `killed` where its lock names a process of this host that is gone.
        holder: who is at work; None where nobody is.
        records: of all finished rounds.
        summary: of a finished run; else None.
        idle_s: seconds since its last round ended; None before the first.
        waiting: for whom the present round waits.
        slow: the sites whose updates came late in the last round, with the seconds after the first.
    """

    name: str
    config: RunConfig | None
    state: State
    holder: Holder | None
    records: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any] | None
    idle_s: float | None
    waiting: tuple[Waiting, ...] = ()
    slow: tuple[Waiting, ...] = ()

    @property
    def rounds(self) -> int:
        """How many are planned; 0 where that is not known yet."""
        return 0 if self.config is None else self.config.training.rounds

    @property
    def left_s(self) -> float | None:
        """Seconds that the rounds still take, by the mean of those done; None before the first, and after the end."""
        if not self.records or self.state not in ("starting", "running"):
            return None
        mean_s = statistics.fmean(record["seconds"]["total"] for record in self.records)
        return max(0.0, mean_s * (self.rounds - len(self.records)) - min(self.idle_s or 0.0, mean_s))

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen by itself."""
        return self.state in ("finished", "stopped", "killed")


def view_run(path: Path) -> RunView:
    """Read the files of a run.

    Raises:
        InputError: a file of it cannot be read.
    """
    directory = RunDirectory(path)
    config, records = directory.read_config(), directory.read_whole_rounds()
    summary = directory.read_summary() if directory.summary.exists() else None
    holder = directory.lock.holder()
    state = _state(config, holder, summary)
    idle_s = _age_s(directory.rounds) if records else None
    leaving = _leaving(directory, config) if state == "running" and config is not None else {}
    return RunView(
        name=path.name or str(path),
        config=config,
        state=state,
        holder=holder,
        records=records,
        summary=summary,
        idle_s=idle_s,
        waiting=_waiting(leaving, len(records) + 1),
        slow=_slow(leaving, len(records)),
    )


def _state(config: RunConfig | None, holder: Holder | None, summary: Mapping[str, Any] | None) -> State:
    if holder is not None:
        # Of another host's process only a batch system could tell; its lock counts.
        if holder.host == socket.gethostname() and judged(holder, Holder.this_process()) == "dead":
            return "killed"
        return "running" if config is not None else "starting"
    if summary is not None:
        return "finished"
    return "starting" if config is None else "stopped"


def _age_s(path: Path) -> float:
    return max(0.0, datetime.now(UTC).timestamp() - path.stat().st_mtime)


def _leaving(directory: RunDirectory, config: RunConfig) -> dict[str, dict[int, datetime]]:
    """Return when each site's update of each of the last rounds left, {site: {round: time}}.

    Nothing where sites take their turns in one process: there a later one is not a slower one.
    """
    found = {}
    for site in config.site_names:
        entries = [one for one in _tail(directory.egress(site)) if one.kind == "update"]
        if any(one.via == "process" for one in entries):
            return {}
        found[site] = {one.round: datetime.fromisoformat(one.time) for one in entries if one.round}
    return found


def _tail(path: Path) -> list[Entry]:
    """Return the last entries of a log, without one that was cut; none where it cannot be read from here."""
    try:
        with opened(path) as log:
            log.seek(0, os.SEEK_END)
            start = max(0, log.tell() - TAIL_BYTES)
            log.seek(start)
            lines = log.read().split(b"\n")[1 if start else 0 : -1]
        return [parsed(line.decode(), str(path)) for line in lines]
    except (OSError, ValueError, InputError):
        return []


def _waiting(leaving: Mapping[str, Mapping[int, datetime]], round: int) -> tuple[Waiting, ...]:
    """Return the sites that have not sent in a round in which others have."""
    there = [times[round] for times in leaving.values() if round in times]
    if not there:
        return ()
    since = (datetime.now(UTC) - min(there)).total_seconds()
    return tuple(Waiting(site, since) for site, times in leaving.items() if round not in times)


def _slow(leaving: Mapping[str, Mapping[int, datetime]], round: int) -> tuple[Waiting, ...]:
    """Return the sites that were late in a round."""
    there = {site: times[round] for site, times in leaving.items() if round in times}
    if len(there) < 2:
        return ()
    first = min(there.values())
    late_s = {site: (time - first).total_seconds() for site, time in there.items()}
    middle = statistics.median(late_s.values())
    return tuple(Waiting(site, s) for site, s in late_s.items() if s >= SLOW_LEAST_S and s > SLOW * middle)
