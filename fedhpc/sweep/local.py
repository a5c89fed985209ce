"""A sweep on one machine: a few trials at a time, as cores and memory allow, until all have ended."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from fedhpc.errors import InputError
from fedhpc.run.display import Console
from fedhpc.sweep.config import Sweep
from fedhpc.sweep.directory import SweepDirectory
from fedhpc.sweep.environment import for_programs
from fedhpc.sweep.pace import time_left
from fedhpc.sweep.resources import Local
from fedhpc.sweep.status import Line, line_of
from fedhpc.sweep.trial_directory import Outcome, beginning
from fedhpc.util.files import open_to_append
from fedhpc.util.processes import available_memory_bytes, resident_bytes, session, total_memory_bytes
from fedhpc.util.text import clock, fixed

GB = 1e9
POLL_S = 0.1
GRACE_S = 20


class StoppedError(Exception):
    """SIGTERM or SIGINT: the trials that run are ended, and can be resumed."""


@dataclass(frozen=True)
class Running:
    """A trial under way."""

    name: str
    process: subprocess.Popen[bytes]
    begun: Outcome


def command_of(path: Path, ranks: int, requeues: int = 0) -> list[str]:
    """Return the command that trains the trial in `path` on so many ranks; `requeues` is of SLURM only."""
    alone = [sys.executable, "-m", "fedhpc.sweep.trial", str(path), str(requeues)]
    return alone if ranks == 1 else [_mpirun(), "-n", str(ranks), *alone]


def _mpirun() -> str:
    beside = Path(sys.executable).with_name("mpirun")
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if found is None:
        raise InputError(
            "there is no mpirun beside Python or on PATH: set local.ranks=1, or install an MPI",
            code="mpi.launcher-missing",
        )
    return found


def at_once(local: Local) -> int:
    """Return how many trials the cores allow at a time, or the config does."""
    if local.at_once != "auto":
        return local.at_once
    return max(1, len(os.sched_getaffinity(0)) // (local.ranks * local.cpus_per_rank))


def needed(local: Local) -> int:
    """Bytes of memory for a trial."""
    return int(local.ranks * local.memory_gb_per_rank * GB)


def check_memory(local: Local) -> None:
    """Raises InputError where a trial needs more than this machine has."""
    there = total_memory_bytes()
    if needed(local) > there:
        raise InputError(
            f"local.memory_gb_per_rank={local.memory_gb_per_rank:g}: a trial of {local.ranks} rank(s) would need "
            f"more than this machine's {there / GB:.1f} GB; lower it",
            code="sweep.memory",
        )


def run_all(directory: SweepDirectory, sweep: Sweep, names: Sequence[str], console: Console) -> bool:
    """Run the named trials to their ends, whatever becomes of each; whether all finished.

    Raises:
        StoppedError: it was asked to stop; nothing runs any more.
    """
    need = needed(sweep.local)
    waiting, running, lines = list(names), list[Running](), list[Line]()
    most = at_once(sweep.local)
    console.say(f"{len(waiting)} trials, {most} at a time, {need / GB:.1f} GB each")
    with _stop_signals() as told:
        try:
            while waiting or running:
                if told:
                    raise StoppedError(told[0])
                if waiting and len(running) < most and (not running or _fits(running, need)):
                    running.append(_start(directory, sweep, waiting.pop(0)))
                ended = [one for one in running if one.process.poll() is not None]
                running = [one for one in running if one not in ended]
                for one in ended:
                    lines.append(_ended(directory, sweep, one))
                    left = time_left(directory, sweep, names, most).text() if waiting or running else ""
                    console.say(_told(lines[-1], f"{len(lines)}/{len(names)}", left))
                time.sleep(0 if ended else POLL_S)
        finally:
            for one in running:
                one.process.terminate()
            for one in running:
                _wait_or_kill(one)
    return all(line.state == "finished" for line in lines)


@contextmanager
def _stop_signals() -> Iterator[list[str]]:
    """The names of the SIGTERMs and SIGINTs that have come; they do nothing else, lest one falls between two steps."""
    told: list[str] = []

    def note(number: int, frame: FrameType | None) -> None:
        told.append(signal.Signals(number).name)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start(directory: SweepDirectory, sweep: Sweep, name: str) -> Running:
    folder, local = directory.trial(name), sweep.local
    ranks = local.ranks if folder.read_commands().trains else 1
    environment = {
        **for_programs(os.environ),
        "OMP_NUM_THREADS": str(local.cpus_per_rank),
        "OMP_WAIT_POLICY": "PASSIVE",
        "OMPI_MCA_mpi_yield_when_idle": "1",
    }
    begun = beginning("")
    folder.write_outcome(begun)
    with open_to_append(folder.log) as log:
        # A session of its own: it and its ranks can be found and ended together.
        process = subprocess.Popen(
            command_of(folder.path, ranks),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    return Running(name, process, begun)


def _ended(directory: SweepDirectory, sweep: Sweep, one: Running) -> Line:
    folder, status = directory.trial(one.name), one.process.returncode
    # Not by the status alone: with a lost daemon, or under ULFM, that of mpirun is 0 though its ranks were killed.
    folder.note_death(one.begun, f"ended with status {status}, and the run had not ended; see {folder.log}")
    trial = next(trial for trial in sweep.trials if trial.name == one.name)
    return line_of(trial, folder, None)


def _told(line: Line, counted: str, left: str) -> str:
    parts = [f"{counted} {line.name}", line.described, line.state, f"AUC {fixed(line.auc)}", clock(line.seconds)]
    parts += [left] if left else []
    return "  ".join([*parts, *([line.message.splitlines()[0]] if line.message else [])])


def _wait_or_kill(one: Running) -> None:
    """See a trial end that was told to stop, which saves its round; end what is left of it after a while."""
    try:
        one.process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        one.process.kill()
        one.process.wait()
    for pid in session(one.process.pid):
        os.kill(pid, signal.SIGKILL)


def _fits(running: Sequence[Running], need: int) -> bool:
    """Return whether there is memory for one more, when those that run have taken what they will."""
    yet_to_come = sum(max(0, need - resident_bytes(session(one.process.pid))) for one in running)
    return available_memory_bytes() - yet_to_come >= need
