"""How a trial stands, from what its last attempt wrote and what SLURM and this machine say."""

import itertools
from dataclasses import replace

import pytest

from fedhpc.sweep.directory import submission
from fedhpc.sweep.status import AT_REST, Known, judged, latest, runs_here
from fedhpc.sweep.trial_directory import Outcome

EARLIER, SINCE, LATER = "2026-01-01T10:00:00+00:00", "2026-01-01T10:00:05+00:00", "2026-01-01T10:00:09+00:00"
RUNNING = Outcome("running", "", "7_0", "node1", 123, LATER)
FINISHED, FAILED = replace(RUNNING, state="finished"), replace(RUNNING, state="failed", message="rank 1: no")
STOPPED = replace(RUNNING, state="stopped", message="told to stop")
HERE = replace(RUNNING, job="")
JOB, LOCAL = Known("7_0", SINCE), Known("", SINCE)


@pytest.mark.parametrize(
    ("outcome", "known", "state"),
    [
        (None, Known(None), "missing"),
        (None, replace(JOB, queue="PENDING"), "pending"),
        (None, replace(JOB, queue="RUNNING"), "running"),
        (None, JOB, "lost"),
        (None, replace(JOB, queue="NODE_FAIL"), "lost"),
        (None, replace(JOB, queue="CANCELLED"), "cancelled"),
        (None, replace(JOB, answered=False), "unknown"),
        (RUNNING, replace(JOB, queue="RUNNING"), "running"),
        (RUNNING, replace(JOB, queue="PENDING"), "pending"),  # queued again
        (RUNNING, replace(JOB, queue="TIMEOUT"), "lost"),
        (RUNNING, replace(JOB, queue="CANCELLED"), "cancelled"),
        (RUNNING, replace(JOB, cancelled=True), "cancelled"),
        (RUNNING, JOB, "lost"),
        (STOPPED, JOB, "stopped"),
        (STOPPED, replace(JOB, queue="PENDING"), "pending"),  # queued again
        (STOPPED, replace(JOB, queue="COMPLETING"), "running"),
        (STOPPED, replace(JOB, cancelled=True), "cancelled"),
        (FAILED, JOB, "failed"),
        (FAILED, replace(JOB, cancelled=True), "cancelled"),  # mpirun was killed with it
        (FAILED, replace(JOB, queue="COMPLETING"), "failed"),
        (FAILED, replace(JOB, job="9", queue="PENDING"), "pending"),  # submitted again
        (FAILED, replace(JOB, job="9", queue="RUNNING"), "running"),  # and not yet begun
        (FAILED, replace(JOB, answered=False), "failed"),
        (FAILED, replace(JOB, job="9", answered=False), "unknown"),
        (HERE, replace(LOCAL, alive=True), "running"),
        (replace(HERE, started=EARLIER), replace(LOCAL, alive=True), "pending"),
        (replace(HERE, started=EARLIER, state="failed"), replace(LOCAL, alive=True), "pending"),
        (replace(HERE, state="stopped"), replace(LOCAL, alive=True), "stopped"),
        (HERE, LOCAL, "lost"),
        (HERE, replace(LOCAL, cancelled=True), "cancelled"),
        (None, replace(LOCAL, alive=True), "pending"),
        (None, LOCAL, "missing"),  # what ran the trials was stopped before this one
        (replace(HERE, state="failed"), replace(LOCAL, alive=True), "failed"),
    ],
)
def test_state_of_a_trial(outcome: Outcome | None, known: Known, state: str) -> None:
    assert judged(outcome, known) == state


def test_what_has_finished_stays_finished_and_what_may_run_is_not_run_again() -> None:
    queues = (None, "PENDING", "RUNNING", "COMPLETING", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL")
    for job, queue, answered, alive, cancelled in itertools.product(
        (None, "", "7_0", "9"), queues, (True, False), (True, False), (True, False)
    ):
        known = Known(job, SINCE, queue, answered, alive, cancelled)
        assert judged(FINISHED, known) == "finished"
        for outcome in (None, RUNNING, HERE):
            if queue in ("PENDING", "RUNNING", "COMPLETING") or (alive and not job):
                assert judged(outcome, known) not in AT_REST


def test_the_last_submission_of_a_trial_counts() -> None:
    first, second = submission("slurm", {"a": "1_0", "b": "1_1"}), submission("slurm", {"b": "3"})
    found = latest([first, second])
    assert {name: one.jobs[name] for name, one in found.items()} == {"a": "1_0", "b": "3"}


def test_a_process_is_known_by_its_birth_not_by_its_number() -> None:
    mine = submission("local", {"a": ""})
    assert runs_here(mine)
    assert not runs_here(replace(mine, born="1"))
    assert not runs_here(replace(mine, host="elsewhere"))
    assert not runs_here(replace(mine, cluster="slurm"))
