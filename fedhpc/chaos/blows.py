"""What is done to a run: signals to its ranks at random moments, and a disk that becomes full."""

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

RANK_VARIABLE = b"OMPI_COMM_WORLD_RANK="
PAUSE_S = 3.0


@dataclass(frozen=True)
class Blow:
    """One fault.

    Attributes:
        kind: a key of `KINDS`.
        rank: the rank that it meets, where it meets one.
        moment_s: seconds after the rounds of this start began, or after the start of the processes.
        in_rounds: which of the two.
    """

    kind: str
    rank: int
    moment_s: float
    in_rounds: bool

    @property
    def text(self) -> str:
        """In words.

        >>> Blow("kill", 2, 1.25, True).text
        'kill, rank 2, 1.2 s into the rounds'
        """
        where = "into the rounds" if self.in_rounds else "after the start"
        return f"{KINDS[self.kind].text.format(rank=self.rank)}, {self.moment_s:.1f} s {where}"


@dataclass(frozen=True)
class Place:
    """What a blow may touch: the session of the launcher, and a file whose growth fills the run's disk, or None."""

    session: int
    ballast: Path | None

    def ranks(self) -> dict[int, int]:
        """{rank: process id} of the ranks that are there."""
        from fedhpc.util.processes import session

        found = {}
        for pid in session(self.session):
            with contextlib.suppress(OSError):
                variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                rank = next((one for one in variables if one.startswith(RANK_VARIABLE)), None)
                if rank is not None:
                    found[int(rank.removeprefix(RANK_VARIABLE))] = pid
        return found


def _signal_to(number: signal.Signals, pids: Sequence[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _one(number: signal.Signals) -> Callable[[Place, Blow], None]:
    return lambda place, blow: _signal_to(number, [place.ranks()[blow.rank]] if blow.rank in place.ranks() else [])


def _all(number: signal.Signals) -> Callable[[Place, Blow], None]:
    return lambda place, blow: _signal_to(number, list(place.ranks().values()))


def _pause(place: Place, blow: Blow) -> None:
    _one(signal.SIGSTOP)(place, blow)
    time.sleep(PAUSE_S)
    _one(signal.SIGCONT)(place, blow)


def _fill(place: Place, blow: Blow) -> None:
    if place.ballast is None:
        return
    size = 2**20
    with place.ballast.open("ab", buffering=0) as file:
        while size:
            try:
                file.write(b"\0" * size)
            except OSError:
                size //= 2


@dataclass(frozen=True)
class BlowKind:
    """How a blow is named, and what it does."""

    text: str
    strike: Callable[[Place, Blow], None]


KINDS = {
    "kill": BlowKind("kill, rank {rank}", _one(signal.SIGKILL)),
    "kill-all": BlowKind("kill, all ranks", _all(signal.SIGKILL)),
    "hang": BlowKind("stop for ever, rank {rank}", _one(signal.SIGSTOP)),
    "delay": BlowKind("stop for 3 s, rank {rank}", _pause),
    "requeue": BlowKind("SIGUSR1, all ranks", _all(signal.SIGUSR1)),
    "terminate": BlowKind("SIGTERM, all ranks", _all(signal.SIGTERM)),
    "full-disk": BlowKind("fill the disk", _fill),
}


def drawn(chance: random.Random, ranks: int, *, small_disk: bool) -> Blow:
    """Return a blow at random; a full disk only where the run has a small one of its own."""
    kinds = [kind for kind in KINDS if small_disk or kind != "full-disk"]
    in_rounds = chance.random() < 0.8
    return Blow(chance.choice(kinds), chance.randrange(ranks), chance.uniform(0, 3 if in_rounds else 8), in_rounds)
