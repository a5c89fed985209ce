"""When updates are ready, with `schedule.policy: deadline`: by the clock, or as another run has recorded it."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from fedhpc.algorithms.deadline import Clock, Entered, Replay, Timing
from fedhpc.config.schema import RunConfig
from fedhpc.errors import InputError
from fedhpc.run.session import Session
from fedhpc.transport.collectives import broadcast_json
from fedhpc.transport.messages import Count, Name
from fedhpc.util.files import read_lines

AGAIN = "Give schedule.replay the rounds.jsonl of a run with schedule.policy=deadline"


class Recorded(TypedDict):
    """What of a round's record says whose updates it is made of."""

    round: Annotated[int, Field(ge=1)]
    staleness: dict[Name, Count]


RECORDED = TypeAdapter(Recorded)


def agreed_timing(session: Session, first: int) -> Timing | None:
    """Return when updates are ready, from round `first` on; None where all are waited for. Every rank calls this.

    Raises:
        InputError: at every rank, where a record that is to be repeated cannot be read or is not of these sites.
    """
    config, schedule = session.config, session.config.schedule
    if schedule.policy != "deadline":
        return None
    if schedule.replay is None:
        return Clock(schedule.deadline_s or 0.0)
    path = Path(schedule.replay)
    told = broadcast_json(
        session.transport,
        lambda: [
            asdict(one)
            for one in check_from(path, recorded(path, config.site_names, config.training.rounds, first), first)
        ],
    )
    return Replay([Entered(**one) for one in told])


def replay_problems(config: RunConfig, done: int) -> list[str]:
    """Return why `schedule.replay` cannot be repeated, at most one line; for rank 0, before anything is spent.

    Args:
        config: of the sites that take part.
        done: rounds that the run has recorded.
    """
    if config.schedule.replay is None:
        return []
    try:
        recorded(Path(config.schedule.replay), config.site_names, config.training.rounds, done)
    except InputError as error:
        key = "" if str(error).startswith("schedule.replay") else "schedule.replay="
        return [f"{key}{error}"]
    return []


def recorded(path: Path, sites: Sequence[str], rounds: int, done: int = 0) -> list[Entered]:
    """Return whose updates each round was made of, by the rounds.jsonl of a run.

    Args:
        path: the file.
        sites: that take part. Rounds that are done may have been made with others, which have been lost since.
        rounds: of the run.
        done: rounds that are not to be repeated any more.

    Raises:
        InputError: a file that is none, of other sites, or of fewer than `rounds` rounds.
    """
    lines, _ = read_lines(path, AGAIN)
    found: list[Entered] = []
    for number, line in enumerate(lines[:rounds]):
        try:
            record = RECORDED.validate_python(json.loads(line))
        except (ValueError, ValidationError):
            raise _unfit(path, f"line {number + 1} does not say whose updates its round is made of") from None
        late = record["staleness"]
        foreign = set(late) - set(sites) if number >= done else set()
        if record["round"] != number + 1 or not late or foreign or max(late.values()) > number:
            raise _unfit(path, f"line {number + 1} is not round {number + 1} of a run of {', '.join(sites)}")
        found += [Entered(site, number, number - rounds_late) for site, rounds_late in late.items()]
    if len(lines) < rounds:
        raise _unfit(path, f"has {len(lines)} rounds, and training.rounds={rounds}")
    return found


def check_from(path: Path, entries: Sequence[Entered], first: int) -> list[Entered]:
    """Return the entries; a start after `first` rounds must not need an update that was begun before.

    Raises:
        InputError: it does.
    """
    spanning = sorted({one.site for one in entries if one.began < first <= one.round})
    if spanning:
        raise InputError(
            f"schedule.replay={path}: the updates of {', '.join(spanning)} that are sent after round {first} were "
            "begun before it, and are not kept where a start ends. Repeat the run in a new --run-dir, in one start",
            code="config",
        )
    return list(entries)


def _unfit(path: Path, problem: str) -> InputError:
    return InputError(f"schedule.replay={path}: {problem}. {AGAIN}", code="config")
