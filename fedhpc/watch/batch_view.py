"""How a sweep or a study goes, from the files of its trials; no batch system is asked."""

import socket
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedhpc.records.study import StudyDirectory
from fedhpc.sweep.directory import SweepDirectory
from fedhpc.sweep.local import at_once
from fedhpc.sweep.pace import TimeLeft, time_left
from fedhpc.sweep.status import Line, line_of, runs_here
from fedhpc.sweep.trial_directory import Outcome
from fedhpc.util.processes import exists
from fedhpc.util.text import clock, cut, fixed
from fedhpc.watch.parts import progress_bar, sparkline

NAME = 34
SHOWN = 8


@dataclass(frozen=True)
class BatchView:
    """A sweep or a study at one moment.

    Attributes:
        name: of it.
        is_study: whether it is a study.
        lines: of its trials; one that was never begun is `pending`, or `missing` where nobody is at work.
        left: an estimate of the time until the last one ends.
        at_work: whether something of it runs, waits for its turn, or was not handed over yet.
    """

    name: str
    is_study: bool
    lines: tuple[Line, ...]
    left: TimeLeft
    at_work: bool

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen by itself."""
        return not self.at_work


def view_batch(path: Path) -> BatchView:
    """Read the files of a sweep.

    Raises:
        InputError: a file of it cannot be read.
    """
    directory = SweepDirectory(path)
    sweep = directory.read()
    submissions = directory.submissions()
    last = submissions[-1] if submissions else None
    runner = last is not None and (runs_here(last) or last.cluster == "slurm" or last.host != socket.gethostname())
    lines = tuple(_line(directory, line_of(trial, directory.trial(trial.name), None), runner) for trial in sweep.trials)
    states = Counter(line.state for line in lines)
    names = [line.name for line in lines if line.state in ("pending", "running")]
    places = at_once(sweep.local) if last is None or last.cluster == "local" else max(1, states["running"])
    return BatchView(
        name=sweep.name,
        is_study=StudyDirectory(path).exists(),
        lines=lines,
        left=time_left(directory, sweep, names, places),
        at_work=bool(names) or last is None,
    )


def _line(directory: SweepDirectory, line: Line, runner: bool) -> Line:
    """Return a line with its state as far as files and the processes of this host tell it."""
    if line.state == "missing":
        return replace(line, state="pending") if runner else line
    outcome = directory.trial(line.name).outcome()
    if line.state == "running" and outcome is not None and _is_gone(outcome, runner):
        return replace(line, state="lost")
    return line


def _is_gone(outcome: Outcome, runner: bool) -> bool:
    """Whether the process that wrote it is gone; on a host of which nothing can be seen it is taken to be there."""
    return outcome.host == socket.gethostname() and not exists(outcome.pid) and not runner


def batch_lines(view: BatchView, blocks: str) -> list[str]:
    """Return how it goes in lines of at most 80 columns: counts, what runs, what failed, what finished last."""
    states, total = Counter(line.state for line in view.lines), len(view.lines)
    finished = states["finished"]
    what = "cells" if view.is_study else "trials"
    counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    head = f"{cut(view.name, 24)}  {finished}/{total} {what}  {progress_bar(finished, total, 20)}"
    left = f"; {view.left.text()}" if any(line.state in ("pending", "running") for line in view.lines) else ""
    lines = [head, f"  {counts}{left}"]
    lines += _aucs(view, blocks)
    for state in ("running", "failed", "stopped", "lost"):
        lines += _of_state([line for line in view.lines if line.state == state], state)
    return lines + _finished([line for line in view.lines if line.state == "finished"])


def _aucs(view: BatchView, blocks: str) -> list[str]:
    values = [line.auc for line in view.lines if line.state == "finished" and line.auc is not None]
    if not values:
        return []
    return [f"  AUC      {min(values):.3f} to {max(values):.3f}  {sparkline(values, 40, blocks)}"]


def _of_state(lines: Sequence[Line], state: str) -> list[str]:
    shown = [_trial_line(line, state) for line in lines[:SHOWN]]
    return shown + ([f"  {state:<9}and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else [])


def _trial_line(line: Line, state: str) -> str:
    if line.message:
        return cut_end(f"  {state:<9}{cut(line.name, NAME)}: {line.message.splitlines()[0]}")
    rounds = f"round {line.rounds_done}/{line.rounds}" if line.rounds else ""
    epsilon = "" if line.epsilon is None else f"  epsilon {fixed(line.epsilon)}"
    auc = "" if line.auc is None else f"  AUC {fixed(line.auc)}"
    return cut_end(f"  {state:<9}{cut(line.name, NAME):<{NAME}}  {rounds}{auc}{epsilon}")


def _finished(lines: Sequence[Line]) -> list[str]:
    """Return the last finished trials, in the order of the plan, with their results."""
    shown = lines[-SHOWN:]
    return [
        cut_end(f"  {'finished':<9}{cut(one.name, NAME):<{NAME}}  {figures}{clock(one.seconds)}")
        for one in shown
        for figures in [f"{_figure('AUC', one.auc)}{_figure('eps', one.epsilon)}"]
    ]


def _figure(name: str, value: float | None) -> str:
    """Return a figure in a column of its own; blanks where there is none.

    >>> _figure("AUC", 0.9784), _figure("eps", None)
    ('AUC 0.978  ', '           ')
    """
    return f"{f'{name} {fixed(value)}' if value is not None else '':<9}  "


def cut_end(text: str, width: int = 80) -> str:
    """Return a line of at most `width` characters.

    >>> cut_end("abcdef", 5)
    'ab...'
    """
    return text if len(text) <= width else f"{text[: width - 3]}..."
