"""How long the rest of a sweep takes: from trials of the same kind that have ended, or from a calibration before it."""

import heapq
import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from fedhpc.sweep.config import Sweep, Trial
from fedhpc.sweep.directory import SweepDirectory
from fedhpc.sweep.trial_directory import Outcome
from fedhpc.util.text import clock, count_of

Kind = tuple[object, ...]


def kind_of(trial: Trial) -> Kind:
    """Return what trials must have in common to take about as long: neither seed nor density, epsilon or rule."""
    config = trial.config
    # Of a benchmark or audit the words that say which one; what follows are paths and values.
    commands = tuple(words[:2] for words in trial.commands)
    return (
        *(trial.trains, commands, config.mode, config.private, config.model.label),
        *(config.data.shards, config.training.rounds, config.training.local_epochs, config.algorithm.name),
    )


def expected_s(sweep: Sweep, ended: Mapping[str, float], calibrated: Mapping[str, float]) -> dict[str, float | None]:
    """Return the seconds that each trial takes from start to end, by name; None where nothing of its kind was timed.

    Args:
        sweep: all its trials.
        ended: seconds of the trials that have finished; their mean counts for others of their kind.
        calibrated: seconds by a calibration, for trials of whose kind none has finished, corrected (`_correction`).
    """
    by_kind: dict[Kind, list[float]] = {}
    for trial in sweep.trials:
        if trial.name in ended:
            by_kind.setdefault(kind_of(trial), []).append(ended[trial.name])
    means = {kind: statistics.fmean(seconds) for kind, seconds in by_kind.items()}
    untimed = {trial.name for trial in sweep.trials if kind_of(trial) not in means}
    ratio = _correction(ended, calibrated, untimed)
    guessed = {name: ratio * seconds for name, seconds in calibrated.items()}
    return {trial.name: means.get(kind_of(trial), guessed.get(trial.name)) for trial in sweep.trials}


def _correction(ended: Mapping[str, float], calibrated: Mapping[str, float], untimed: Collection[str]) -> float:
    """Return by how much the calibration of the untimed trials is corrected, after what the ended ones took of theirs.

    What is still to come counts as evidence that the calibration was right: all untimed trials together become longer
    by no more than the ended ones were, so that a cell of seconds says little about a cell of hours.

    >>> round(_correction({"short": 60.0}, {"short": 20.0, "long": 7200.0}, {"long"}), 3)
    1.006
    >>> round(_correction({"long": 7200.0}, {"long": 3600.0, "short": 20.0}, {"short"}), 3)
    1.994
    """
    compared = [name for name in calibrated if name in ended]
    took_s, planned_s = (math.fsum(one[name] for name in compared) for one in (ended, calibrated))
    to_come_s = math.fsum(seconds for name, seconds in calibrated.items() if name in untimed)
    return (took_s + to_come_s) / (planned_s + to_come_s) if planned_s + to_come_s else 1.0


@dataclass(frozen=True)
class TimeLeft:
    """An estimate: seconds until the last trial ends, and how many trials are not in it since none was timed."""

    seconds: float
    unknown: int

    def text(self) -> str:
        """For a line of progress.

        >>> TimeLeft(75.0, 0).text(), TimeLeft(0.0, 2).text(), TimeLeft(9.0, 1).text()
        ('about 1 min 15 s left', 'time left not known yet', 'about 9 s left without 1 trial of a kind not timed yet')
        """
        if self.unknown and not self.seconds:
            return "time left not known yet"
        more = f" without {count_of(self.unknown, 'trial')} of a kind not timed yet" if self.unknown else ""
        return f"about {clock(self.seconds)} left{more}"


def scheduled_s(seconds: Iterable[float], running_s: Sequence[float], at_once: int) -> float:
    """Return when the last of these ends, each started in turn as soon as one of `at_once` places is free.

    >>> scheduled_s([10, 10, 10], [], 2), scheduled_s([10], [4, 8], 2), scheduled_s([], [], 2)
    (20.0, 14.0, 0.0)
    """
    places = sorted([float(left) for left in running_s] + [0.0] * max(0, at_once - len(running_s)))
    for one in seconds:
        heapq.heapreplace(places, places[0] + one)
    return max(places, default=0.0)


def time_left(directory: SweepDirectory, sweep: Sweep, names: Sequence[str], at_once: int) -> TimeLeft:
    """Estimate from the files of a sweep how long these trials still take.

    Args:
        directory: of the sweep.
        sweep: what it is.
        names: the trials that are to be run, in order; those of them that have finished take no time.
        at_once: how many run at a time.
    """
    outcomes = {trial.name: directory.trial(trial.name).outcome() for trial in sweep.trials}
    ended = {name: one.seconds for name, one in outcomes.items() if one is not None and one.state == "finished"}
    expected = expected_s(sweep, ended, directory.calibration())
    open_ones = [name for name in names if name not in ended and not _failed(outcomes[name])]
    known = {name: seconds for name in open_ones if (seconds := expected[name]) is not None}
    running = [
        max(0.0, known[name] - _since(one))
        for name in known
        if (one := outcomes[name]) is not None and one.state == "running"
    ]
    waiting = [seconds for name, seconds in known.items() if not _runs(outcomes[name])]
    return TimeLeft(scheduled_s(waiting, running, max(at_once, len(running))), len(open_ones) - len(known))


def _failed(outcome: Outcome | None) -> bool:
    return outcome is not None and outcome.state == "failed"


def _runs(outcome: Outcome | None) -> bool:
    return outcome is not None and outcome.state == "running"


def _since(outcome: Outcome) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(outcome.started)).total_seconds()
