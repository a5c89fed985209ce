"""One run at one rank, from its config to its end: what `run.py train` does, and each trial of a sweep."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from fedhpc.config.schema import RunConfig
from fedhpc.errors import InputError, Interrupted, PayloadError, SiteError, site_failure
from fedhpc.records.run_directory import RunDirectory
from fedhpc.run.agreement import Source, agree_on_config
from fedhpc.run.display import Console
from fedhpc.run.loop import run
from fedhpc.run.placement import place_sites
from fedhpc.run.preemption import StopRequest
from fedhpc.run.preflight.check import preflight
from fedhpc.run.secure_channel import sites_by_rank
from fedhpc.run.session import open_session
from fedhpc.transport.base import Wire
from fedhpc.util.log import write_log
from fedhpc.util.startup import Startup
from fedhpc.util.text import wrapped


@dataclass(frozen=True)
class Machine:
    """What a rank has before any config: its transport, the request to stop, and the stopwatch of its start."""

    wire: Wire
    notice: StopRequest
    startup: Startup


@dataclass(frozen=True)
class Work:
    """What is to be run, and after how many rounds to stop."""

    source: Source
    stop_after: int | None = None


def train(work: Work, machine: Machine) -> str:
    """Train from where the run directory stands.

    Returns:
        why it ended: "finished", "budget" or "preempted"; the same at every rank.

    Raises:
        InputError: at every rank, with the same message.
    """
    machine.startup.mark("imports")
    config, directory = agree_on_config(machine.wire, work.source)
    try:
        return _train_in(config, directory, machine, work.stop_after)
    finally:
        directory.lock.release()


def _train_in(config: RunConfig, directory: RunDirectory, machine: Machine, stop_after: int | None) -> str:
    wire, startup = place_sites(config, machine.wire), machine.startup
    wire.name_ranks([", ".join(config.site_names[i] for i in block) for block in sites_by_rank(config, wire.size)])
    console = Console(speaks=wire.rank == 0)
    found, _ = preflight(config, directory, wire)
    console.say(wrapped(found))
    startup.mark("config and preflight")
    names = tuple(config.site_names[i] for i in sites_by_rank(config, wire.size)[wire.rank])
    with _kept_inside(directory, names):
        session = open_session(config, directory, wire, console, machine.notice)
        startup.mark("certificates, shards and network")
        console.say(wrapped(startup.line))
        return run(session, stop_after)


@contextmanager
def _kept_inside(directory: RunDirectory, names: Sequence[str]) -> Iterator[None]:
    """Turn an unforeseen exception at a rank with hospitals into a SiteError: its words go to their logs only."""
    try:
        yield
    except (InputError, SiteError, PayloadError, Interrupted, MemoryError):
        raise
    except Exception as error:
        if not names:
            raise
        failures = [site_failure(name, "outside a round's own work", error) for name in names]
        for name, failure in zip(names, failures, strict=True):
            write_log(directory.log(name), f"{failure}\n{failure.private}")
        raise SiteError("; ".join(map(str, failures))) from None
