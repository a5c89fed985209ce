"""One run at one rank, from its config to its end: what `run.py train` does, and each element of a sweep."""

from dataclasses import dataclass
from pathlib import Path

from fedhpc.agreement import agree_on_config
from fedhpc.console import Console
from fedhpc.exchange.comm import Wire
from fedhpc.launch import run
from fedhpc.preemption import Notice
from fedhpc.preflight.check import preflight
from fedhpc.seating import seated
from fedhpc.session import open_session
from fedhpc.startup import Startup


@dataclass(frozen=True)
class Work:
    """What is to be run: a config file with overrides, where (None: runs/<name>), and after how many rounds to stop."""

    config: Path
    overrides: list[str]
    run_dir: Path | None
    stop_after: int | None = None


def train(work: Work, wire: Wire, notice: Notice, startup: Startup) -> str:
    """Train from where the run directory stands.

    Returns:
        why it ended: "finished", "budget" or "preempted"; the same at every rank.

    Raises:
        InputError: at every rank, with the same message.
    """
    startup.mark("imports")
    config, directory = agree_on_config(wire, (work.config, work.overrides), work.run_dir)
    wire = seated(config, wire)
    console = Console(speaks=wire.rank == 0)
    found, _ = preflight(config, directory, wire)
    console.say(found)
    startup.mark("config and preflight")
    session = open_session(config, directory, wire, console, notice)
    startup.mark("certificates, shards and network")
    console.say(startup.line)
    return run(session, work.stop_after)
