"""Processes that take turns, a round each: rounds that are compared were made within seconds of each other.

The speed of a shared or virtual machine drifts by half within a minute, so that runs one after the other tell its
drift. Here the processes of all runs live at once, and all but one are stopped (SIGSTOP). One goes on until its file of
rounds has one more line, and is stopped again. What a run did between two stops is one `Turn`.
"""

import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from fedhpc.bench.round_guard import Guard, guarded
from fedhpc.errors import InputError
from fedhpc.util.processes import cpu_s, tree

LOOK_S = 0.005
LIMIT_S = 1800.0
"""The longest turn."""


@dataclass(frozen=True)
class Turn:
    """What a run took from one stop to the next: seconds of wall clock, and of CPU (user and system) in all."""

    wall_s: float
    cpu_s: float


class Run:
    """One command, started with the first turn and stopped after each.

    Attributes:
        guard: ends its processes where this one is killed.

    Args:
        command: what to run; it appends a line to `progress` at the end of each round.
        progress: the file of rounds.
        errors: where its stderr goes.
        environment: gives the environment of the command, when it is started.
    """

    def __init__(
        self, command: Sequence[str], progress: Path, errors: Path, environment: Callable[[], Mapping[str, str]]
    ) -> None:
        self.turns: list[Turn] = []
        self._command, self._progress, self._errors = command, progress, errors
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._pids: list[int] = []
        self._cpu_s = 0.0
        self.guard: Guard | None = None

    def to_next_round(self) -> None:
        """Go on to the end of the next round, and stop.

        Raises:
            InputError: the command ended before.
        """
        began_s, wanted = time.monotonic(), len(self.turns) + 1
        process = self._go_on()
        _wait(lambda: _lines(self._progress) >= wanted or process.poll() is not None, began_s)
        if process.poll() is not None:
            how = f"ended with status {process.returncode} after {len(self.turns)} of its rounds"
            raise failed(self._command, how, self._errors)
        self._stop(process)
        self._count(time.monotonic() - began_s, sum(map(cpu_s, self._pids)))

    def to_the_end(self) -> None:
        """Go on until the command has ended; what it took is the last turn.

        Raises:
            InputError: it failed.
        """
        before, began_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        process = self._go_on()
        _wait(lambda: process.poll() is not None, began_s)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if process.returncode:
            raise failed(self._command, f"ended with status {process.returncode}", self._errors)
        in_all = (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)
        self._count(time.monotonic() - began_s, in_all)

    def kill(self) -> None:
        """End all of its processes, where any is left."""
        if self._process is None or self._process.poll() is not None:
            return
        for pid in {*self._pids, *tree(self._process.pid)}:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()

    def _go_on(self) -> "subprocess.Popen[bytes]":
        if self._process is None:
            with self._errors.open("wb") as errors:
                self._process = subprocess.Popen(
                    self._command, stdout=subprocess.DEVNULL, stderr=errors, env=self._environment()
                )
            self._watch([self._process.pid])
        # Ranks before their launcher: it must not find them stopped.
        self._signal(reversed(self._pids), signal.SIGCONT)
        return self._process

    def _stop(self, process: "subprocess.Popen[bytes]") -> None:
        if not self._pids:
            self._pids = tree(process.pid)
            self._watch(self._pids)
        self._signal(self._pids, signal.SIGSTOP)

    def _watch(self, pids: Sequence[int]) -> None:
        if self.guard is not None:
            self.guard.watch(pids)

    def _signal(self, pids: Iterator[int] | list[int], number: signal.Signals) -> None:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _count(self, wall_s: float, cpu_in_all_s: float) -> None:
        self.turns.append(Turn(wall_s, cpu_in_all_s - self._cpu_s))
        self._cpu_s = cpu_in_all_s


def failed(command: Sequence[str], how: str, errors: Path) -> InputError:
    """Return the error of a command, with what it has said last."""
    said = errors.read_text(encoding="utf-8", errors="replace").strip()[-2000:]
    return InputError(f"{' '.join(command)}: {how}. It said: {said}", code="bench.failed")


def take_turns(runs: Sequence[Run], rounds: int) -> None:
    """Run all commands to their end: each its first round by itself, then turn about, then each to its end.

    The order is turned round from round to round, so that a drift that lasts takes from none.

    Raises:
        InputError: one failed; the others are ended.
    """
    with _ended(runs):
        for number in range(rounds):
            for run in runs if number % 2 == 0 else reversed(runs):
                run.to_next_round()
        for run in runs:
            run.to_the_end()


@contextmanager
def _ended(runs: Sequence[Run]) -> Iterator[None]:
    """Leave no process stopped for ever, when this one is asked to end or is killed as well."""

    def leave(_: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        with guarded() as guard:
            for run in runs:
                run.guard = guard
            try:
                yield
            finally:
                for run in runs:
                    run.kill()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(is_over: Callable[[], bool], began_s: float) -> None:
    while not is_over():
        if time.monotonic() - began_s > LIMIT_S:
            raise InputError(f"bench round: a turn has not ended after {LIMIT_S:.0f} s", code="bench.failed")
        time.sleep(LOOK_S)


def _lines(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0
