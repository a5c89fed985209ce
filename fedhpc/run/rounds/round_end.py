"""The end of a round at every rank: evaluate, save, record, print; and whether to go on."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from fedhpc.aggregation.base import Flag
from fedhpc.errors import in_round
from fedhpc.records.rounds import NONE_LATE, Arrivals, RoundEnd, Traffic, record_of
from fedhpc.run.display import flag_lines, round_line
from fedhpc.run.evaluation import validate
from fedhpc.run.finished.finish import reports_of
from fedhpc.run.rounds.tracking import Sink, tell
from fedhpc.run.session import Session, session_trust
from fedhpc.transport.collectives import all_agree, run_on_all_ranks
from fedhpc.util.arrays import F32
from fedhpc.util.stopwatch import Stopwatch
from fedhpc.util.text import wrapped

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Closing:
    """How a round is closed: its number, the model of each site by name, and what saves it at this rank."""

    round: int
    params_of: Callable[[str], F32]
    save: Callable[[], None]


@dataclass
class Progress:
    """What grows while a run goes on; the records, and where else their points go (`tracking`), are rank 0's."""

    stop_after: int | None
    records: list[dict[str, Any]] = field(default_factory=list)
    sinks: Sequence[Sink] = ()
    done_here: int = 0
    round_started: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Ran:
    """What a round took: bytes, seconds by phase, the sites that are not in its mean, are far out, or are late."""

    traffic: Traffic
    watch: Stopwatch
    dropped: tuple[str, ...] = ()
    flags: tuple[Flag, ...] = ()
    arrivals: Arrivals = NONE_LATE


def close_round(session: Session, closing: Closing, ran: Ran, progress: Progress) -> bool:
    """Evaluate, save, record, tell; whether to go on (the same answer at every rank).

    Saved comes before recorded: of a round that is recorded, every file was written, at every rank.

    Raises:
        InputError: at every rank, where a file cannot be written at any.
    """
    done, watch = closing.round, ran.watch
    with ThreadPoolExecutor(1, "checkpoint") as beside:
        # The disk works while the model is evaluated; neither changes what the other reads.
        saving = beside.submit(closing.save)
        with watch.phase("evaluate"), in_round(done):
            reports, validation = reports_of(session, done), validate(session, closing.params_of, done)
        with watch.phase("checkpoint"):
            run_on_all_ranks(session.transport, saving.result)
    progress.done_here += 1
    LOG.info("round %d is saved", done)
    run_on_all_ranks(session.transport, lambda: _record(session, RoundEnd(done, reports, validation), ran, progress))
    if session.transport.rank == 0:
        _tell(session, done, progress.records)
    progress.round_started = time.monotonic()
    more = progress.stop_after is None or progress.done_here < progress.stop_after
    return all_agree(session.transport, more and not session.notice.given, done)


def _record(session: Session, end: RoundEnd, ran: Ran, progress: Progress) -> None:
    """Append the round's record, at rank 0."""
    if session.transport.rank:
        return
    seconds = {**ran.watch.seconds, "total": time.monotonic() - progress.round_started}
    trust = session_trust(session)
    record = replace(
        record_of(end, ran.traffic, seconds),
        dropped=ran.dropped,
        flags=tuple(asdict(flag) for flag in ran.flags),
        stress=session.config.stress.label if session.config.stress else None,
        absent=session.absent,
        late=ran.arrivals.late,
        staleness=ran.arrivals.staleness,
        protects_from_aggregator=None if trust is None else trust.aggregator,
    ).json()
    session.directory.lock.check_held()
    session.directory.append_round(record)
    progress.records.append(record)
    progress.sinks = tell(progress.sinks, lambda sink: sink.round(record))


def _tell(session: Session, done: int, records: Sequence[Mapping[str, Any]]) -> None:
    rounds = session.config.training.rounds
    session.console.say(round_line(records[-1], rounds))
    for line in flag_lines(records[-1]):
        session.console.say(wrapped(line))
    mean_s = float(np.mean([record["seconds"]["total"] for record in records]))
    session.console.start_round(done, rounds, mean_s)
