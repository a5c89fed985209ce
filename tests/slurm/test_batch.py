"""The sbatch files on a real cluster: to the end, stopped, requeued, on a node that dies, out of time, in error."""

import contextlib
import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import REPO
from tests.slurm.cluster import until
from tests.slurm.conftest import Job, Slurm, cancelled, params

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]
ROUNDS, LATE_ROUNDS = 6, 36
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
AT_ONCE = ("--set", "runtime.patience_s=0")
"""Leave the round at the signal; otherwise these short rounds would be finished, and nothing shown."""


def completed(job: Job, limit_s: float = 150) -> None:
    assert job.wait_for(ENDED, limit_s) == "COMPLETED", job.text


@pytest.fixture(scope="module")
def jobs(slurm: Slurm, cohort: Path) -> Iterator[dict[str, Job]]:
    """The jobs that no test interferes with, submitted at once so that they wait side by side."""
    made: dict[str, Job] = {}
    with contextlib.ExitStack() as stack:
        for name, (options, script, arguments) in submissions(slurm, cohort).items():
            words = (cohort, *arguments)
            if "--run-dir" not in arguments and name != "sweep":
                words = (*words, "--run-dir", slurm.folder / name)
            job = slurm.submit(name, *options, script=script, arguments=words, fresh=name == "unbroken")
            made[name] = stack.enter_context(cancelled(job))
        yield made


Submission = tuple[tuple[str, ...], str | Path, tuple[str | Path, ...]]
"""(options of sbatch, the script, arguments of `run.py train` after the config)."""


def submissions(slurm: Slurm, cohort: Path) -> dict[str, Submission]:
    """By the job's name; each test says what its job is about."""
    short = ("--set", "training.rounds=1")
    staged = edited(slurm, "staged", ("# stage_shards data/phantom", f"stage_shards {cohort.parent}"))
    silent = """container=(bash -c '[ "$3" != train ] || exit 0; exec "$@"' -)"""
    silenced = edited(slurm, "silent", ("# container=(apptainer exec --nv fedhpc.sif)", silent))
    private = ("--set", "privacy.sample_rate=0.25", "--set", f"name={slurm.folder.name}-sweep")
    return {
        "unbroken": ((), "fedavg.sbatch", ()),
        "staged": ((), staged, ("--set", "data.shards=$FEDHPC_SHARDS/{site}.h5")),
        "bad": (("--ntasks=2",), "fedavg.sbatch", ("--set", "training.lr=1e30")),
        "silent": (("--ntasks=2",), silenced, ()),
        "centralised": (("--ntasks=1",), "centralised.sbatch", (*short, "--set", "mode=centralised")),
        "local": (("--ntasks=1",), "local.sbatch", (*short, "--set", "mode=local")),
        "sweep": (("--array=1,7", "--ntasks=1"), "sweep.sbatch", (*short, *private)),
    }


@pytest.fixture(scope="module")
def unbroken(slurm: Slurm, jobs: dict[str, Job]) -> Path:
    """The run that all broken ones must equal: its run directory."""
    completed(jobs["unbroken"])
    return slurm.folder / "unbroken"


def edited(slurm: Slurm, name: str, *changes: tuple[str, str]) -> Path:
    """slurm/fedavg.sbatch with lines as a user would change them."""
    text = (REPO / "slurm" / "fedavg.sbatch").read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = slurm.folder / f"{name}.sbatch"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_batch_job_trains_to_the_end(unbroken: Path) -> None:
    summary = json.loads((unbroken / "summary.json").read_text(encoding="utf-8"))
    assert (summary["stopped"], summary["rounds"]) == ("finished", ROUNDS)
    text = (unbroken.parent / "unbroken.out").read_text(encoding="utf-8")
    assert "srun --mpi=pmix: every one of 4 ranks sees all of them" in text
    assert "preflight: 4 ranks on 4 nodes by srun --mpi=pmix" in text
    for number in range(1, 5):
        assert re.search(rf"site{number} +{number - 1} +hosp{number} ", text)


def test_shards_staged_on_the_nodes_give_the_same_bits_and_are_removed(
    slurm: Slurm, jobs: dict[str, Job], unbroken: Path
) -> None:
    """The example in the sbatch file, with its # taken away; each node gets its own hospital's shard."""
    job = jobs["staged"]
    completed(job)
    assert "each node has copies of its own shards in /" in job.text
    np.testing.assert_array_equal(params(slurm.folder / "staged", ROUNDS), params(unbroken, ROUNDS))
    assert not list(Path("/tmp").glob(f"fedhpc-{job.id}/*.h5"))


def test_a_launcher_that_ends_with_0_without_a_run_is_a_failure(jobs: dict[str, Job]) -> None:
    """As mpirun does with a lost daemon, or under ULFM: here a container command that trains nothing."""
    job = jobs["silent"]
    assert job.wait_for(ENDED, 150) == "FAILED", job.text
    assert "the launcher ended with 0, but no rank has said that the run ended" in job.text


def test_the_other_files_run_as_well(jobs: dict[str, Job]) -> None:
    """Both baselines, and two trials of the sweep, on fewer ranks and for one round."""
    for name in ("centralised", "local"):
        job = jobs[name]
        completed(job)
        summary = json.loads((job.output.with_suffix("") / "summary.json").read_text(encoding="utf-8"))
        assert summary["mode"] == name
    sweep = jobs["sweep"]
    try:
        assert until(lambda: set(sweep.states) <= set(ENDED), 90), sweep.text
    finally:
        shutil.rmtree(REPO / "runs" / f"sweep-{sweep.id}", ignore_errors=True)
    assert sorted(sweep.states) == ["COMPLETED", "FAILED"], sweep.text
    assert "there is no trial 7" in sweep.text
    assert "privacy: epsilon 2, delta " in sweep.text


def test_an_error_on_one_rank_ends_the_job_and_is_on_record(jobs: dict[str, Job]) -> None:
    job = jobs["bad"]
    assert job.wait_for(ENDED, 150) == "FAILED"
    assert re.search(r"error: rank \d: site site\d, round 1", job.text)
    assert job.facts()["ExitCode"] not in ("0:0", "75:0")
    assert "queued again" not in job.text


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_out_of_time_it_queues_itself_again_until_it_is_done(slurm: Slurm, cohort: Path) -> None:
    """SLURM's shortest limit is a minute, which it looks at every half: the signal comes after 10 to 40 seconds.

    Then the job gets a longer limit, since nobody knows how long it takes on a machine that does other things as well.
    """
    options = ("--ntasks=1", "--time=00:01:00", "--signal=B:USR1@50")
    words = (cohort, "--set", f"training.rounds={LATE_ROUNDS}", "--run-dir", slurm.folder / "late")
    with cancelled(slurm.submit("late", *options, script="fedavg.sbatch", arguments=words)) as job:
        job.wait_until_it_says("SIGUSR1: telling the ranks to stop", 150)
        job.wait_until_it_says("stopped early and queued again", 60)
        slurm.ask("scontrol", "update", f"JobId={job.id}", "TimeLimit=10")
        completed(job, 300)
        assert int(job.facts()["Restarts"]) >= 1
        assert "TIMEOUT" not in job.text
        rounds = (slurm.folder / "late" / "rounds.jsonl").read_text(encoding="utf-8")
        assert len(rounds.splitlines()) == LATE_ROUNDS


LOST = "hosp3"
"""The tests after these hardly use it: when it is up again it has no server of preloaded programs any more."""


@pytest.fixture(scope="module")
def dark(slurm: Slurm, cohort: Path, unbroken: Path) -> Iterator[Job]:
    """A job of two nodes in its third round, one of which has lost its power.

    SLURM takes most of a minute to give the node up, in which another test's job runs on other nodes.
    """
    arguments = (cohort, "--run-dir", slurm.folder / "dark")
    options = ("--ntasks=2", "--exclude=hosp1")
    with cancelled(slurm.submit("dark", *options, script="fedavg.sbatch", arguments=arguments)) as job:
        job.wait_until_it_says(r"round +2/", 90)
        assert job.facts()["NodeList"] == "hosp[2-3]"
        slurm.cluster.power_off(LOST)
        try:
            yield job
        finally:
            slurm.cluster.power_on(LOST)


@pytest.mark.usefixtures("dark")
def test_stopped_and_requeued_in_mid_round_it_gives_the_same_bits(slurm: Slurm, cohort: Path, unbroken: Path) -> None:
    """Once by a signal to the ranks, upon which the job queues itself again; once by `scontrol requeue`.

    The unbroken run had twice as many ranks, which makes no difference either.
    """
    run_dir = slurm.folder / "stopped"
    arguments = (cohort, "--run-dir", run_dir, *AT_ONCE)
    options = ("--ntasks=2", "--nodelist=hosp1,hosp4")
    with cancelled(slurm.submit("stopped", *options, script="fedavg.sbatch", arguments=arguments)) as job:
        job.wait_until_it_says(r"round +2/", 90)
        slurm.ask("scancel", "--signal=USR1", job.id)
        job.wait_until_it_says("stopped early and queued again", 90)
        assert "SIGUSR1 came 0 s ago (runtime.patience_s): leaving the round after step" in job.text
        job.wait_until_it_says(r"resuming after round [2-4]", 90)
        job.wait_until_it_says(r"round +4/", 90)
        slurm.ask("scontrol", "requeue", job.id)
        completed(job)
    assert job.facts()["Restarts"] == "2"
    assert len(re.findall("resuming after round", job.text)) == 2
    assert len(re.findall(r"^round +\d/", job.text, re.MULTILINE)) == ROUNDS, "no round was done twice to its end"
    np.testing.assert_array_equal(params(run_dir, ROUNDS), params(unbroken, ROUNDS))


def test_a_node_that_dies_costs_a_round(slurm: Slurm, dark: Job, unbroken: Path) -> None:
    # The job may see it before SLURM does, or after.
    dark.wait_until_it_says("a node of this job does not answer any more|DUE TO NODE FAILURE", 90)
    completed(dark)
    assert dark.facts()["Restarts"] == "1"
    assert LOST not in dark.facts()["NodeList"]
    assert re.search(r"resuming after round [1-5]", dark.text)
    np.testing.assert_array_equal(params(slurm.folder / "dark", ROUNDS), params(unbroken, ROUNDS))


def test_what_is_cancelled_stays_cancelled(slurm: Slurm, cohort: Path) -> None:
    """SIGTERM comes then as well; the ranks save their round, and the job does not queue itself again."""
    arguments = (cohort, "--run-dir", slurm.folder / "unwanted", *AT_ONCE)
    with cancelled(slurm.submit("unwanted", "--ntasks=1", script="fedavg.sbatch", arguments=arguments)) as job:
        job.wait_until_it_says(r"round +1/", 90)
    assert job.wait_for(ENDED, 90) == "CANCELLED", job.text
    time.sleep(2)
    assert job.state == "CANCELLED"
    assert job.facts()["Restarts"] == "0"
