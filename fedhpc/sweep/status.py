"""How a sweep stands: from its files, and for what waits or was killed from SLURM's queue or the processes here."""

import socket
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fedhpc.sweep.config import Sweep, Trial
from fedhpc.sweep.directory import Submission, SweepDirectory
from fedhpc.sweep.trial_directory import Outcome, TrialDirectory
from fedhpc.util.processes import is_running
from fedhpc.util.text import clock, fitted, fixed, printable, shown

State = Literal["missing", "pending", "running", "finished", "failed", "stopped", "cancelled", "lost", "unknown"]
AT_REST: frozenset[State] = frozenset({"missing", "failed", "stopped", "cancelled", "lost"})
"""What `sweep resume` runs again."""
WAITING = {
    *("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"),
    *("SUSPENDED", "STOPPED"),
}
ACTIVE = {"RUNNING", "COMPLETING", "SIGNALING", "STAGE_OUT", "RESIZING"}


@dataclass(frozen=True)
class Known:
    """What is known of a trial beside its outcome.

    Attributes:
        job: the last one that it was given to; None where it was given to none, empty on one machine.
        since: when it was given to it.
        queue: SLURM's state of that job; None where SLURM does not know it any more.
        answered: whether SLURM could be asked at all.
        alive: on one machine, whether the process that runs the trials does.
        cancelled: whether the user ended it.
    """

    job: str | None
    since: str = ""
    queue: str | None = None
    answered: bool = True
    alive: bool = False
    cancelled: bool = False


def judged(outcome: Outcome | None, known: Known) -> State:
    """Return the state of a trial.

    A job that is in the queue again counts more than what an earlier attempt left behind; what a cancelled one said of
    its end is no failure; a `running` that nothing runs any more was killed before it could tell.
    """
    if outcome is not None and outcome.state == "finished":
        return "finished"
    if known.queue in WAITING:
        return "pending"
    active = known.queue in ACTIVE or known.alive
    if known.cancelled and not active:
        return "cancelled"
    ours = outcome is not None and _is_of(outcome, known)
    # A job that was told to stop is about to be queued again.
    if outcome is not None and ours and outcome.state in (("failed", "stopped") if known.alive else ("failed",)):
        return outcome.state
    if active:
        return "running" if ours or known.queue in ACTIVE else "pending"
    if (known.queue or "").startswith("CANCELLED"):
        return "cancelled"
    if known.job and not known.answered:
        return "unknown"
    if outcome is not None and outcome.state in ("failed", "stopped"):
        return outcome.state
    # On one machine a trial that has not begun leaves no outcome; the job of a SLURM array may die before its program.
    never_begun = known.job is None or (outcome is None and not known.job)
    return "missing" if never_begun else "lost"


def _is_of(outcome: Outcome, known: Known) -> bool:
    """Return whether it is of the last submission; on one machine there is one clock and no job id."""
    return outcome.job == known.job if known.job else outcome.started >= known.since


@dataclass(frozen=True)
class Line:
    """One trial as the table shows it."""

    name: str
    baseline: str
    point: Mapping[str, Any]
    state: State
    job: str
    rounds_done: int
    rounds: int
    auc: float | None
    epsilon: float | None
    seconds: float
    message: str

    @property
    def described(self) -> str:
        """What sets it apart from the others, in a few words."""
        values = [f"{key.rpartition('.')[2]} {shown(value)}" for key, value in self.point.items()]
        return " ".join([*([self.baseline] if self.baseline else []), *values])


def line_of(trial: Trial, folder: TrialDirectory, known: Known | None) -> Line:
    """Return the line of a trial; without `known` its outcome is taken at its word."""
    outcome, records = folder.outcome(), folder.run.read_rounds()
    last = records[-1] if records else {}
    if folder.run.summary.exists():
        last = {**last, **folder.run.read_summary()}
    state: State = judged(outcome, known) if known else outcome.state if outcome else "missing"
    return Line(
        name=trial.name,
        baseline=trial.baseline,
        point=trial.point,
        state=state,
        job=(known.job if known else None) or (outcome.job if outcome else ""),
        rounds_done=len(records),
        rounds=trial.rounds,
        auc=last.get("auc", last.get("auc_val")),
        epsilon=last.get("epsilon"),
        seconds=sum(record["seconds"]["total"] for record in records) if trial.trains else _seconds_of(outcome),
        message=_message(state, outcome, known),
    )


def _seconds_of(outcome: Outcome | None) -> float:
    return 0.0 if outcome is None else outcome.seconds


def _message(state: State, outcome: Outcome | None, known: Known | None) -> str:
    if state == "lost":
        said = f" (SLURM: {known.queue})" if known and known.queue else ""
        return f"ended silently: killed, out of memory or time, or its node was lost{said}; see its log"
    return outcome.message if outcome and state in ("failed", "stopped") else ""


def known_jobs(directory: SweepDirectory, sweep: Sweep) -> dict[str, str]:
    """{trial: its last job}, for those that were given to anybody; on one machine the id is empty.

    A trial that runs though its submission was never written down, because that was cut off, is among them.
    """
    outcomes = {trial.name: directory.trial(trial.name).outcome() for trial in sweep.trials}
    begun = {name: outcome.job for name, outcome in outcomes.items() if outcome is not None}
    return begun | {name: one.jobs[name] for name, one in latest(directory.submissions()).items()}


def lines(
    directory: SweepDirectory, sweep: Sweep, jobs: Mapping[str, str], queue: Mapping[str, str] | None
) -> list[Line]:
    """All trials, as they stand.

    Args:
        jobs: `known_jobs`.
        queue: SLURM's states by job; None where it could not be asked.
    """
    newest, cancelled = latest(directory.submissions()), directory.cancelled()
    found = []
    for trial in sweep.trials:
        last, job = newest.get(trial.name), jobs.get(trial.name)
        known = Known(
            job=job,
            since=last.time if last else "",
            queue=(queue or {}).get(job) if job else None,
            answered=queue is not None,
            alive=last is not None and not job and runs_here(last),
            cancelled=trial.name in cancelled,
        )
        found.append(line_of(trial, directory.trial(trial.name), known))
    return found


def latest(submissions: Sequence[Submission]) -> dict[str, Submission]:
    """{trial: the last submission that it is in}."""
    return {name: one for one in submissions for name in one.jobs}


def runs_here(submission: Submission) -> bool:
    """Whether the process that runs a sweep on one machine is still there; nothing can be said from another host."""
    here = submission.cluster == "local" and submission.host == socket.gethostname()
    return here and is_running(submission.pid, submission.born)


def status_text(sweep: Sweep, found: Sequence[Line]) -> str:
    """Return the table, what failed and why, and how many are where."""
    keys = list(sweep.grid)
    rows = [("trial", *(key.rpartition(".")[2] for key in keys), "state", "job", "rounds", "AUC", "epsilon", "time")]
    rows += [_row(line, keys) for line in found]
    failed = [f"{line.name}: {line.message.splitlines()[0]}" for line in found if line.message]
    counts = Counter(line.state for line in found)
    summary = ", ".join(f"{counts[state]} {state}" for state in sorted(counts))
    lines = [fitted(rows), *(["", *failed] if failed else []), "", f"{sweep.name}: {len(found)}: {summary}"]
    return printable("\n".join(lines))


def _row(line: Line, keys: Sequence[str]) -> tuple[str, ...]:
    values = [shown(line.point[key]) if key in line.point else "-" for key in keys]
    if line.baseline:
        values[0] = line.baseline if values[0] == "-" else f"{line.baseline} {values[0]}"
    rounds = f"{line.rounds_done}/{line.rounds}" if line.rounds else "-"
    time_taken = clock(line.seconds) if line.seconds else "-"
    return (
        line.name, *values, line.state, line.job or "-", rounds, fixed(line.auc), fixed(line.epsilon), time_taken
    )  # fmt: skip
