"""The sbatch files on a real cluster: to the end, stopped, requeued, on a node that dies, out of time, in error."""

import json
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import REPO
from tests.slurm.cluster import until
from tests.slurm.conftest import Job, Slurm, cancelled, params

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(300)]
ROUNDS = 6
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
AT_ONCE = ("--set", "runtime.patience_s=0")
"""Leave the round at the signal; otherwise these short rounds would be finished, and nothing shown."""


def completed(job: Job, limit_s: float = 150) -> None:
    assert job.wait_for(ENDED, limit_s) == "COMPLETED", job.text


@pytest.fixture(scope="session")
def unbroken(slurm: Slurm, cohort: Path) -> Path:
    """The run that all broken ones must equal: its run directory."""
    run_dir = slurm.folder / "unbroken"
    with cancelled(slurm.submit("unbroken", script="fedavg.sbatch", arguments=(cohort, "--run-dir", run_dir))) as job:
        completed(job)
    return run_dir


def test_a_batch_job_trains_to_the_end(unbroken: Path) -> None:
    summary = json.loads((unbroken / "summary.json").read_text(encoding="utf-8"))
    assert (summary["stopped"], summary["rounds"]) == ("finished", ROUNDS)
    text = (unbroken.parent / "unbroken.out").read_text(encoding="utf-8")
    assert "srun --mpi=pmix: every one of 4 ranks sees all of them" in text
    assert "preflight: 4 rank(s) on 4 node(s) by srun --mpi=pmix" in text
    for number in range(1, 5):
        assert re.search(rf"site{number} +{number - 1} +hosp{number} ", text)


def test_stopped_and_requeued_in_mid_round_it_gives_the_same_bits(slurm: Slurm, cohort: Path, unbroken: Path) -> None:
    """Once by a signal to the ranks, upon which the job queues itself again; once by `scontrol requeue`.

    The unbroken run had twice as many ranks, which makes no difference either.
    """
    run_dir = slurm.folder / "stopped"
    arguments = (cohort, "--run-dir", run_dir, *AT_ONCE)
    with cancelled(slurm.submit("stopped", "--ntasks=2", script="fedavg.sbatch", arguments=arguments)) as job:
        job.wait_until_it_says(r"round +2/", 90)
        slurm.ask("scancel", "--signal=USR1", job.id)
        job.wait_until_it_says("stopped early and queued again", 30)
        assert "SIGUSR1 came 0 s ago (runtime.patience_s): leaving the round after step" in job.text
        job.wait_until_it_says(r"resuming after round [2-4]", 90)
        job.wait_until_it_says(r"round +4/", 30)
        slurm.ask("scontrol", "requeue", job.id)
        completed(job)
    assert job.facts()["Restarts"] == "2"
    assert len(re.findall("resuming after round", job.text)) == 2
    assert len(re.findall(r"^round +\d/", job.text, re.MULTILINE)) == ROUNDS, "no round was done twice to its end"
    np.testing.assert_array_equal(params(run_dir, ROUNDS), params(unbroken, ROUNDS))


def test_a_node_that_dies_costs_a_round(slurm: Slurm, cohort: Path, unbroken: Path) -> None:
    run_dir = slurm.folder / "dark"
    arguments = (cohort, "--run-dir", run_dir)
    with cancelled(slurm.submit("dark", "--ntasks=2", script="fedavg.sbatch", arguments=arguments)) as job:
        job.wait_until_it_says(r"round +2/", 90)
        slurm.cluster.power_off("hosp2")
        try:
            # The job may see it before SLURM does, or after.
            job.wait_until_it_says("a node of this job does not answer any more|DUE TO NODE FAILURE", 90)
            completed(job)
        finally:
            slurm.cluster.power_on("hosp2")
    assert job.facts()["Restarts"] == "1"
    assert "hosp2" not in job.facts()["NodeList"]
    assert re.search(r"resuming after round [1-5]", job.text)
    np.testing.assert_array_equal(params(run_dir, ROUNDS), params(unbroken, ROUNDS))


@pytest.mark.timeout(500)
def test_out_of_time_it_queues_itself_again_until_it_is_done(slurm: Slurm, cohort: Path) -> None:
    """SLURM's shortest limit is a minute, which it looks at every half; the run needs longer, a round some seconds."""
    run_dir, options = slurm.folder / "late", ("--time=00:01:00", "--signal=B:USR1@10")
    sets = ("--set", "training.local_epochs=60", "--set", "training.rounds=12")
    job = slurm.submit("late", *options, script="fedavg.sbatch", arguments=(cohort, "--run-dir", run_dir, *sets))
    with cancelled(job):
        job.wait_until_it_says("SIGUSR1: telling the ranks to stop", 100)
        job.wait_until_it_says("stopped early and queued again", 30)
        completed(job, 400)
    assert int(job.facts()["Restarts"]) >= 1
    assert "TIMEOUT" not in job.text
    assert len((run_dir / "rounds.jsonl").read_text(encoding="utf-8").splitlines()) == 12


def test_an_error_on_one_rank_ends_the_job_and_is_on_record(slurm: Slurm, cohort: Path) -> None:
    arguments = (cohort, "--run-dir", slurm.folder / "bad", "--set", "training.lr=1e30")
    with cancelled(slurm.submit("bad", "--ntasks=2", script="fedavg.sbatch", arguments=arguments)) as job:
        job.wait_until_it_says(r"error: rank \d: site site\d, round 1", 90)
        said = time.monotonic()
        assert job.wait_for(ENDED, 30) == "FAILED"
    print(f"the job had ended {time.monotonic() - said:.1f} s after the message")
    assert job.facts()["ExitCode"] not in ("0:0", "75:0")
    assert "queued again" not in job.text


def test_what_is_cancelled_stays_cancelled(slurm: Slurm, cohort: Path) -> None:
    """SIGTERM comes then as well; the ranks save their round, and the job does not queue itself again."""
    arguments = (cohort, "--run-dir", slurm.folder / "unwanted", *AT_ONCE)
    with cancelled(slurm.submit("unwanted", "--ntasks=1", script="fedavg.sbatch", arguments=arguments)) as job:
        job.wait_until_it_says(r"round +1/", 90)
    assert job.wait_for(ENDED, 30) == "CANCELLED", job.text
    time.sleep(2)
    assert job.state == "CANCELLED"
    assert job.facts()["Restarts"] == "0"


def test_the_other_files_run_as_well(slurm: Slurm, cohort: Path) -> None:
    """Both baselines, and two elements of the sweep, on fewer ranks and for one round."""
    short = ("--set", "training.rounds=1")
    sets = {
        "centralised": ("--set", "mode=centralised", "--run-dir", slurm.folder / "centralised"),
        "local": ("--set", "mode=local", "--run-dir", slurm.folder / "local"),
    }
    jobs = [
        slurm.submit(name, "--ntasks=1", script=f"{name}.sbatch", arguments=(cohort, *short, *more))
        for name, more in sets.items()
    ]
    private = ("--set", "privacy.sample_rate=0.25", "--set", f"name={slurm.folder.name}-sweep")
    sweep = slurm.submit(
        "sweep", "--array=1,7", "--ntasks=1", script="sweep.sbatch", arguments=(cohort, *short, *private)
    )
    for job in jobs:
        completed(job, 90)
        summary = json.loads((job.output.with_suffix("") / "summary.json").read_text(encoding="utf-8"))
        assert summary["mode"] == job.output.stem
    try:
        assert until(lambda: set(sweep.states) <= set(ENDED), 90), sweep.text
    finally:
        shutil.rmtree(REPO / "runs" / f"sweep-{sweep.id}", ignore_errors=True)
    assert sorted(sweep.states) == ["COMPLETED", "FAILED"], sweep.text
    assert "there is no element 7" in sweep.text
    assert "privacy: epsilon 2, delta " in sweep.text


def edited(slurm: Slurm, name: str, *changes: tuple[str, str]) -> Path:
    """slurm/fedavg.sbatch with lines as a user would change them."""
    text = (REPO / "slurm" / "fedavg.sbatch").read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = slurm.folder / f"{name}.sbatch"
    path.write_text(text, encoding="utf-8")
    return path


def submitted(slurm: Slurm, script: Path, *arguments: str | Path) -> Job:
    output = script.with_suffix(".out")
    small = ("--cpus-per-task=1", "--mem-per-cpu=500M", "--ntasks-per-node=1", "--output", output)
    return Job(slurm.ask("sbatch", "--parsable", *small, script, *arguments).strip(), output, slurm.ask)


def test_shards_staged_on_the_nodes_give_the_same_bits_and_are_removed(
    slurm: Slurm, cohort: Path, unbroken: Path
) -> None:
    """The example in the sbatch file, with its # taken away; each node gets its own hospital's shard."""
    script = edited(slurm, "staged", ("# stage_shards data/phantom", f"stage_shards {cohort.parent}"))
    run_dir = slurm.folder / "staged"
    shards = "data.shards=$FEDHPC_SHARDS/{site}.h5"
    with cancelled(submitted(slurm, script, cohort, "--run-dir", run_dir, "--set", shards)) as job:
        completed(job)
    assert "each node has copies of its own shards in /" in job.text
    np.testing.assert_array_equal(params(run_dir, ROUNDS), params(unbroken, ROUNDS))
    assert not list(Path("/tmp").glob(f"fedhpc-{job.id}/*.h5"))


def test_a_launcher_that_ends_with_0_without_a_run_is_a_failure(slurm: Slurm, cohort: Path) -> None:
    """As mpirun does with a lost daemon, or under ULFM: here a container command that trains nothing."""
    silent = """container=(bash -c '[ "$3" != train ] || exit 0; exec "$@"' -)"""
    script = edited(slurm, "silent", ("# container=(apptainer exec --nv fedhpc.sif)", silent))
    with cancelled(submitted(slurm, script, cohort, "--run-dir", slurm.folder / "silent")) as job:
        assert job.wait_for(ENDED, 150) == "FAILED", job.text
    assert "the launcher ended with 0, but no rank has said that the run ended" in job.text
