"""The sbatch files on a real cluster: to the end, stopped, requeued, out of time, on a node that dies."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.slurm.conftest import Slurm, cancelled, params

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(240)]
ROUNDS = 6


@pytest.fixture(scope="session")
def unbroken(slurm: Slurm, cohort: Path) -> Path:
    """The run that all broken ones must equal: its run directory."""
    run_dir = slurm.folder / "unbroken"
    job = slurm.submit("unbroken", script="fedavg.sbatch", arguments=(cohort, "--run-dir", run_dir))
    with cancelled(job):
        assert job.wait_for(("COMPLETED", "FAILED"), 120) == "COMPLETED", job.text
    return run_dir


def test_a_batch_job_trains_to_the_end(unbroken: Path) -> None:
    summary = json.loads((unbroken / "summary.json").read_text(encoding="utf-8"))
    assert (summary["stopped"], summary["rounds"]) == ("finished", ROUNDS)
    text = (unbroken.parent / "unbroken.out").read_text(encoding="utf-8")
    assert "srun --mpi=pmix: every one of 4 ranks sees all of them" in text
    for node in ("hosp1", "hosp2", "hosp3", "hosp4"):
        assert node in text


def test_usr1_in_mid_round_then_requeued_gives_the_same_bits(slurm: Slurm, cohort: Path, unbroken: Path) -> None:
    run_dir = slurm.folder / "stopped"
    job = slurm.submit("stopped", script="fedavg.sbatch", arguments=(cohort, "--run-dir", run_dir))
    with cancelled(job):
        job.wait_until_it_says(r"round +2/", 90)
        slurm.ask("scancel", "--signal=USR1", job.id)
        job.wait_until_it_says("stopped early and queued again", 30)
        assert job.wait_for(("COMPLETED", "FAILED"), 120) == "COMPLETED", job.text
    assert job.facts()["Restarts"] == "1"
    assert "resuming after round" in job.text
    np.testing.assert_array_equal(params(run_dir, ROUNDS), params(unbroken, ROUNDS))
