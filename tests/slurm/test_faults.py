"""Faults of SLURM itself on a real cluster: a drained node, a lost daemon, a full spool, a job that submits a sweep."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.slurm.cluster import until
from tests.slurm.conftest import Job, Slurm, cancelled
from tests.slurm.test_sweep import write_sweep

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(300)]
ROUNDS = 6
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")


def completed(job: Job, limit_s: float = 150) -> None:
    assert job.wait_for(ENDED, limit_s) == "COMPLETED", job.text


def rounds(run_dir: Path) -> list[int]:
    return [json.loads(line)["round"] for line in (run_dir / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]


def test_node_drained_in_a_run_lets_it_finish(slurm: Slurm, cohort: Path) -> None:
    run_dir = slurm.folder / "drained"
    arguments = (cohort, "--run-dir", run_dir)
    with cancelled(slurm.submit("drained", "--ntasks=2", script="fedavg.sbatch", arguments=arguments)) as job:
        job.wait_until_it_says(r"round +2/", 90)
        slurm.ask("scontrol", "update", "nodename=hosp1", "state=drain", "reason=test")
        try:
            completed(job)
        finally:
            slurm.ask("scontrol", "update", "nodename=hosp1", "state=resume", check=False)
    assert job.facts()["Restarts"] == "0"
    assert rounds(run_dir) == list(range(1, ROUNDS + 1))


def test_full_spool_holds_the_job(slurm: Slurm, cohort: Path) -> None:
    """The node cannot keep the batch script: SLURM drains it and holds the job; nothing runs."""
    run_dir, spool = slurm.folder / "spool", slurm.cluster.base / "spool" / "hosp1"
    slurm.cluster.on("hosp1", "mount", "-t", "tmpfs", "-o", "size=4k", "none", spool)
    arguments = (cohort, "--run-dir", run_dir)
    try:
        slurm.cluster.on(
            "hosp1", "sh", "-c", f"head -c 4096 /dev/zero > {shlex.quote(str(spool / 'full'))}", check=False
        )
        job = slurm.submit("spool", "--ntasks=2", "--nodelist=hosp1,hosp2", script="fedavg.sbatch", arguments=arguments)
        with cancelled(job):
            assert until(lambda: "held" in job.facts().get("Reason", ""), 40, 0.5), job.facts()
            assert job.state == "PENDING" and not job.text and not run_dir.exists()
    finally:
        slurm.cluster.on("hosp1", "umount", spool, check=False)
        slurm.ask("scontrol", "update", "nodename=hosp1", "state=resume", check=False)
        until(lambda: "hosp1" in slurm.cluster.idle(), 30, 0.5)


ON_TWO = ("--ntasks=2", "--nodelist=hosp1,hosp2")
TOLERANT = ("--set", "faults.on_death=continue", "--set", "faults.min_sites=2")


def test_fault_tolerant_job_goes_on_without_a_rank(slurm: Slurm, cohort: Path) -> None:
    """slurm/launch.sh with fault_tolerant=1: mpirun inside the allocation, a hospital on each node."""
    run_dir = slurm.folder / "tolerant"
    arguments = (cohort, "--run-dir", run_dir, *TOLERANT)
    options = ("--ntasks=3", "--export=ALL,fault_tolerant=1", "--nodelist=hosp1,hosp2,hosp3")
    with cancelled(slurm.submit("tolerant", *options, script="fedavg.sbatch", arguments=arguments)) as job:
        job.wait_until_it_says(r"round +2/", 150)
        # In the node's own process namespace there is no other.
        assert re.search(r"^site4 +2 +hosp3 ", job.text, re.MULTILINE), "each rank is on its own node"
        slurm.cluster.on("hosp3", "pkill", "-KILL", "-f", "run.py train")
        assert job.wait_for(ENDED, 150) == "FAILED", job.text
    assert job.facts()["ExitCode"] == "3:0", job.text
    assert "going on with 3 of 4 sites" in " ".join(job.text.split())
    assert rounds(run_dir) == list(range(1, ROUNDS + 1))


def test_fault_tolerant_job_that_loses_a_node_is_queued_again(slurm: Slurm, cohort: Path) -> None:
    """With its node mpirun loses its daemon there, and ends all ranks."""
    run_dir = slurm.folder / "darker"
    arguments = (cohort, "--run-dir", run_dir, *TOLERANT)
    options = ("--ntasks=2", "--export=ALL,fault_tolerant=1")
    with cancelled(slurm.submit("darker", *options, script="fedavg.sbatch", arguments=arguments)) as job:
        job.wait_until_it_says(r"round +2/", 150)
        assert re.search(r"^site4 +1 +hosp2 ", job.text, re.MULTILINE), "each rank is on its own node"
        slurm.cluster.power_off("hosp2")
        try:
            job.wait_until_it_says("a node of this job does not answer any more|DUE TO NODE FAILURE", 90)
            completed(job)
        finally:
            slurm.cluster.power_on("hosp2")
    assert job.facts()["Restarts"] == "1"
    assert "hosp2" not in job.facts()["NodeList"]
    assert re.search(r"resuming after round [1-5]", job.text)
    assert rounds(run_dir) == list(range(1, ROUNDS + 1))


@pytest.mark.slow
def test_fault_tolerant_job_whose_launcher_hangs_is_queued_again(slurm: Slurm, cohort: Path) -> None:
    """As Open MPI's does once in a while when ranks are killed: here it is stopped, and its ranks stay unwaited for."""
    run_dir = slurm.folder / "hung"
    arguments = (cohort, "--run-dir", run_dir, *TOLERANT)
    options = (*ON_TWO, "--export=ALL,fault_tolerant=1,launcher_patience_s=10")
    with cancelled(slurm.submit("hung", *options, script="fedavg.sbatch", arguments=arguments)) as job:
        job.wait_until_it_says(r"round +2/", 150)
        slurm.cluster.on("hosp1", "pkill", "-STOP", "-f", "^[^ ]*(mpirun|prterun) ")
        slurm.cluster.on("hosp1", "pkill", "-KILL", "-f", "^[^ ]*python[^ ]* run.py train")
        job.wait_until_it_says("mpirun lives on without ranks: ending it", 60)
        completed(job)
    assert job.facts()["Restarts"] == "1"
    assert rounds(run_dir) == list(range(1, ROUNDS + 1))


def preempted(slurm: Slurm, cohort: Path, partition: str) -> Job:
    """A job in its third round whose nodes an urgent job takes."""
    arguments = (cohort, "--run-dir", slurm.folder / partition, "--set", "runtime.patience_s=0")
    options = (*ON_TWO, f"--partition={partition}")
    job = slurm.submit(partition, *options, script="fedavg.sbatch", arguments=arguments)
    job.wait_until_it_says(r"round +2/", 120)
    slurm.ask("sbatch", "--output=/dev/null", "--partition=urgent", "--exclusive", *ON_TWO, "--wrap=sleep 2")
    return job


def test_job_preempted_with_grace_queues_itself_again(slurm: Slurm, cohort: Path) -> None:
    """`PreemptMode=CANCEL` and a GraceTime: until that is over the job can be queued again."""
    with cancelled(preempted(slurm, cohort, "graced")) as job:
        completed(job)
    assert job.facts()["Restarts"] == "1", job.text
    assert "PreemptMode=CANCEL" in job.text
    assert rounds(slurm.folder / "graced") == list(range(1, ROUNDS + 1))


def test_job_cancelled_by_preemption_says_what_to_submit(slurm: Slurm, cohort: Path) -> None:
    """Without a GraceTime SLURM ends the job, and does not queue it again; what was saved goes on."""
    with cancelled(preempted(slurm, cohort, "brief")) as job:
        assert job.wait_for((*ENDED, "PREEMPTED"), 60) == "PREEMPTED", job.text
    said = re.findall(r"to go on.*: sbatch (.+?)(?: \(\d+ s\))?$", job.text, re.MULTILINE)
    # At the start; and at the end, unless the job is killed before (KillWait).
    assert said and len(set(said)) == 1, job.text
    made = rounds(slurm.folder / "brief")
    assert made[:2] == [1, 2] and made[-1] < ROUNDS
    script, *arguments = shlex.split(said[0])
    with cancelled(slurm.submit("again", *ON_TWO, script=script, arguments=tuple(arguments))) as again:
        completed(again)
    assert f"resuming after round {made[-1]}" in again.text
    assert rounds(slurm.folder / "brief") == list(range(1, ROUNDS + 1))


def test_sweep_submitted_from_a_job_runs_on_its_own_allocations(slurm: Slurm, cohort: Path) -> None:
    folder = slurm.folder / "inner"
    folder.mkdir()
    config, directory, output = write_sweep(folder, cohort), folder / "run", folder / "job.out"
    words = [sys.executable, "run.py", "sweep", str(config), "--run-dir", str(directory)]
    shape = ("--ntasks=1", "--mem=300M", "--cpus-per-task=1", "--exclusive", "--output", output)
    said = slurm.ask("sbatch", "--parsable", *shape, f"--wrap={shlex.join(words)}")
    with cancelled(Job(said.strip(), output, slurm.ask)) as job:
        completed(job, 60)
        report = re.search(r"; job (\d+) then makes the report", job.text)
        assert report, job.text
        with cancelled(Job(report[1], directory / "none", slurm.ask)) as last:
            completed(last, 180)
    text = slurm.ask(sys.executable, "run.py", "sweep", "status", directory)
    assert "4 finished" in text, text
    assert (directory / "report.html").exists()
