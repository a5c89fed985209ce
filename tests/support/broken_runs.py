"""Runs that are stopped or killed on purpose, in a chosen phase of a chosen round.

As a script, `python -m tests.support.broken_runs`:

- `signal RANK PHASE ROUND train CONFIG ...`, under mpirun: of all ranks this one gets SIGUSR1 there;
- `lose RANK:PHASE:ROUND,... train CONFIG ...`, under mpirun: each of these ranks ends by SIGKILL there;
- `hold RANK:ROUND:SITES,... train CONFIG ...`, under mpirun: each of these ranks stays, until it is killed, where so
  many of its sites have charged the round and the last has made no step: whoever kills it need not be quick;
- `kill PHASE ROUND train CONFIG ...`: runs it in a child that ends by SIGKILL there; several cases, separated by `--`,
  share the import of torch.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import fedhpc.run.preflight.check
import fedhpc.run.rounds.loop  # noqa: F401  (before the first fork, so that each child has it)
from fedhpc.cli.main import main
from fedhpc.site.budget import Budget
from fedhpc.util.stopwatch import Stopwatch

PHASES = ("train", "exchange", "aggregate", "evaluate", "checkpoint")


@contextmanager
def on_entering(phase: str, round: int, act: Callable[[], None]) -> Iterator[None]:
    """Call `act` once, when a run enters `phase` of its `round`-th round from here."""
    original, watches = Stopwatch.phase, []
    waiting = [True]

    @contextmanager
    def watched(self: Stopwatch, name: str) -> Iterator[None]:
        if not any(seen is self for seen in watches):
            watches.append(self)
        if waiting and name == phase and len(watches) == round:
            waiting.pop()
            act()
        with original(self, name):
            yield

    Stopwatch.phase = watched  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Stopwatch.phase = original  # type: ignore[method-assign]


def signal_myself(number: signal.Signals) -> Callable[[], None]:
    """What sends this process a signal."""
    return lambda: os.kill(os.getpid(), number)


def killed(phase: str, round: int, arguments: list[str]) -> None:
    """Run in a child that is killed on the way; the parent sees that it was."""
    child = os.fork()
    if child == 0:
        with on_entering(phase, round, signal_myself(signal.SIGKILL)):
            main(arguments)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
        raise SystemExit(f"{phase} of round {round}: the run was not killed there: status {status}")


def cases(words: list[str]) -> Iterator[list[str]]:
    """The words between the `--`."""
    while words:
        end = words.index("--") if "--" in words else len(words)
        yield words[:end]
        words = words[end + 1 :]


@contextmanager
def on_charging(round: int, sites: int, act: Callable[[], None]) -> Iterator[None]:
    """Call `act` when so many sites of this process have charged the `round`-th round, before the last one's steps."""
    original, charged = Budget.charge_round, [0]

    def watched(self: Budget, number: int) -> None:
        original(self, number)
        charged[0] += number == round - 1
        if charged[0] == sites and number == round - 1:
            act()

    Budget.charge_round = watched  # type: ignore[method-assign]
    try:
        yield
    finally:
        Budget.charge_round = original  # type: ignore[method-assign]


def stay() -> None:
    """Do nothing until the end of the process, which is not its own."""
    while True:
        time.sleep(3600)


def mine_of(places: str) -> list[list[str]]:
    """What `places` says of this rank."""
    rank = os.environ["OMPI_COMM_WORLD_RANK"]
    return [one.split(":")[1:] for one in places.split(",") if one.startswith(f"{rank}:")]


def held(places: str, arguments: list[str]) -> int:
    """Run at this rank, which stays at its place of `places`, if it has one."""
    with contextlib.ExitStack() as stack:
        for round, sites in mine_of(places):
            stack.enter_context(on_charging(int(round), int(sites), stay))
        return main(arguments)


def lost(places: str, arguments: list[str]) -> int:
    """Run at this rank, which is killed at its place of `places`, if it has one."""
    with contextlib.ExitStack() as stack:
        for phase, round in mine_of(places):
            stack.enter_context(on_entering(phase, int(round), signal_myself(signal.SIGKILL)))
        return main(arguments)


if __name__ == "__main__":
    how, *words = sys.argv[1:]
    if how in ("lose", "hold"):
        sys.exit((lost if how == "lose" else held)(words[0], words[1:]))
    if how == "signal":
        mine = os.environ["OMPI_COMM_WORLD_RANK"] == words[0]
        with on_entering(words[1], int(words[2]), signal_myself(signal.SIGUSR1) if mine else lambda: None):
            sys.exit(main(words[3:]))
    for case in cases(words):
        killed(case[0], int(case[1]), case[2:])
