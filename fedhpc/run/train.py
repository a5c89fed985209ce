"""One run at one rank, from its config to its end: what `run.py train` does, and each trial of a sweep."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from fedhpc.errors import FedhpcError, InputError, Interrupted, PayloadError, RankLostError, SiteError, site_failure
from fedhpc.records.run_directory import RunDirectory
from fedhpc.run.display import Console
from fedhpc.run.finished.finish import GLOBAL
from fedhpc.run.preflight.check import preflight
from fedhpc.run.rounds.loop import Ended, run
from fedhpc.run.rounds.preemption import StopRequest
from fedhpc.run.session import Session
from fedhpc.run.start.agreement import Source, agree_on_config, gathered_cores, join_timeout_s
from fedhpc.run.start.membership import Membership, guard_launcher, leave_together, members_left, start_membership
from fedhpc.run.start.open_session import open_session
from fedhpc.run.start.secure_channel import sites_by_rank
from fedhpc.site.personal.personalise import MODEL, RECORD, Personal, check_network, personalise
from fedhpc.transport.base import Wire
from fedhpc.transport.collectives import run_on_all_ranks
from fedhpc.util.clock import now
from fedhpc.util.cores import node_text
from fedhpc.util.log import LogFile, configure, logged, warnings_kept
from fedhpc.util.masking import masked
from fedhpc.util.startup import Startup
from fedhpc.util.text import wrapped

LOG = logging.getLogger(__name__)

VAIN_STARTS = 4
"""So many starts after the same round, and the run is taken not to get on."""


@dataclass(frozen=True)
class Machine:
    """What a rank has before any config: its transport, the request to stop, and the stopwatch of its start."""

    wire: Wire
    notice: StopRequest
    startup: Startup


@dataclass(frozen=True)
class Work:
    """What is to be run.

    Attributes:
        source: the config and the run directory.
        stop_after: after how many rounds to stop; None: at the end of the run.
        may_resume: called at rank 0 as the rounds begin, where a start that is killed from then on is to be resumed.
    """

    source: Source
    stop_after: int | None = None
    may_resume: Callable[[], None] = lambda: None


def train(work: Work, machine: Machine) -> str:
    """Train from where the run directory stands.

    Returns:
        why it ended: "finished", "budget", "preempted", or "incomplete" (finished or at its budget, without a site
        that is declared); the same at every rank.

    Raises:
        InputError: at every rank, with the same message.
        RankLostError: a rank has ended or does not answer, and this start does not go on without its sites.
    """
    with _environment_unread(machine.wire):
        return _train(work, machine)


@contextmanager
def _environment_unread(wire: Wire) -> Iterator[None]:
    """Take from what is raised here what this rank's environment holds: the console that shows it is rank 0's."""
    try:
        yield
    except FedhpcError as error:
        if wire.rank == 0:
            raise
        error.args = (masked(str(error)),)
        raise error from None


def _train(work: Work, machine: Machine) -> str:
    configure()
    machine.startup.mark("imports")
    machine.wire.limit_waits(join_timeout_s(work.source))
    cores = gathered_cores(machine.wire)
    declared, directory = agree_on_config(machine.wire, work.source, cores)
    if cores:
        machine.startup.note = f"{node_text(cores)}, {declared.runtime.threads} thread(s) a rank"
    try:
        machine.wire.limit_waits(declared.faults.join_timeout_s)
        members = start_membership(declared, machine.wire)
        found, _ = preflight(members.config, directory, members.wire)
        Console(speaks=members.wire.rank == 0).say(wrapped(found))
        machine.startup.mark("config and preflight")
        return _train_with(members, directory, machine, work)
    except RankLostError:
        guard_launcher(declared, machine.wire)
        raise
    finally:
        directory.lock.release()


def _train_with(members: Membership, directory: RunDirectory, machine: Machine, work: Work) -> str:
    """Train with the sites that are there, anew with those that are left where a rank is lost."""
    while True:
        try:
            stopped = _train_in(members, directory, machine, work)
            leave_together(members)
            return "incomplete" if members.absent and stopped != "preempted" else stopped
        except RankLostError as lost:
            members = members_left(members, lost)


def _train_in(members: Membership, directory: RunDirectory, machine: Machine, work: Work) -> str:
    config, wire, startup = members.config, members.wire, machine.startup
    wire.name_ranks([", ".join(config.site_names[i] for i in block) for block in sites_by_rank(config, wire.size)])
    console = Console(speaks=wire.rank == 0)
    names = tuple(config.site_names[i] for i in sites_by_rank(config, wire.size)[wire.rank])
    files = [directory.log(name, wire.rank) for name in names]
    with logged([*files, *([] if wire.rank else [directory.aggregator_log()])], wire.rank), _kept_inside(files):
        LOG.info("start of run %s, config %s, with %d rank(s)", config.name, members.declared.digest(), wire.size)
        if members.news:
            LOG.warning("%s", members.news)
        session = open_session(members, directory, console, machine.notice)
        run_on_all_ranks(session.transport, lambda: check_network(config.personalisation, session.place.model))
        startup.mark("certificates, shards and network")
        console.say(wrapped(members.news or startup.line))
        ended = run(session, work.stop_after, partial(_note_start, members, directory, work))
        _personalise(session, ended)
        _report(session, ended)
        LOG.info("end of this start: %s", ended.why)
        return ended.why


def _personalise(session: Session, ended: Ended) -> None:
    """Let each hospital of this rank make a model of its own. Nothing of it passes from rank to rank, nor is printed.

    Raises:
        SiteError: it failed at a hospital; the run itself is finished.
    """
    if session.config.personalisation.method == "none" or ended.why == "preempted":
        return
    for site in session.sites:
        folder = session.directory.site(site.name)
        params = ended.models.of(GLOBAL)(site.name)
        work = Personal(site.name, session.task, params, folder, session.synthetic)
        site.inside("personalisation failed", partial(personalise, work))
    session.console.say(
        wrapped(f"each hospital's own model: sites/<site>/{MODEL} and {RECORD}, for that hospital only")
    )


def _report(session: Session, ended: Ended) -> None:
    """Write the page of a finished run at rank 0. The run is whole without it: a failure is a warning."""
    if session.transport.rank or ended.why == "preempted":
        return
    directory = session.directory
    try:
        from fedhpc.report.sources import write_run_report
        from fedhpc.run.finished.examples import write_examples

        write_examples(session.declared, directory)
        write_run_report(directory.path)
    except Exception as error:
        reason = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
        LOG.warning(
            "%s: was not written: %s. The run is finished and its results are whole. Try again: "
            "python run.py report %s",
            directory.report,
            reason,
            directory.path,
        )


def _note_start(members: Membership, directory: RunDirectory, work: Work, first: int) -> None:
    """Record a start of the run, after `first` rounds; say whether it is to be resumed where its ranks are killed.

    After a lost rank `recovered_s` is the time from then until the others begin their next round.
    """
    start: dict[str, Any] = {
        "time": now(),
        "after_round": first,
        "ranks": members.wire.size,
        "absent": members.absent,
    }
    if members.lost_s is not None:
        start["recovered_s"] = round(time.monotonic() - members.lost_s, 3)
    starts = directory.note_start(start)
    if members.declared.faults.on_death == "stop":
        return
    if [one["after_round"] for one in starts[-VAIN_STARTS:]] == [first] * VAIN_STARTS:
        LOG.warning(
            "%s: the last %d starts have finished no round; where this one is killed too, it is not queued again",
            directory.path,
            VAIN_STARTS - 1,
        )
        return
    work.may_resume()


@contextmanager
def _kept_inside(files: Sequence[LogFile]) -> Iterator[None]:
    """Turn an unforeseen exception at a rank with hospitals into a SiteError: its words go to their logs only.

    So do Python's warnings.
    """
    try:
        with warnings_kept(files):
            yield
    except (InputError, SiteError, PayloadError, Interrupted):
        raise
    except Exception as error:
        if not files:
            raise
        failures = [site_failure(file.site, "outside a round's own work", error) for file in files]
        for file, failure in zip(files, failures, strict=True):
            file.write("ERROR", f"{failure}\n{failure.private}")
        raise SiteError("; ".join(map(str, failures))) from None
