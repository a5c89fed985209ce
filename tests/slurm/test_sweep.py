"""A sweep on a real cluster: one array and its report; a rank that fails; what is resumed, requeued, cancelled."""

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml

from fedhpc.sweep.directory import Submission, SweepDirectory
from tests.slurm.cluster import until
from tests.slurm.conftest import Slurm, params

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]
BROKEN = "swept-001"


class Swept(NamedTuple):
    """A sweep that all but one trial of have finished."""

    directory: Path
    status: dict[str, dict[str, Any]]


def sweep(slurm: Slurm, *words: str | Path) -> str:
    """`run.py sweep WORDS`, on the login node; what it prints."""
    return slurm.ask(slurm.python, "run.py", "sweep", *words)


def status(slurm: Slurm, directory: Path) -> dict[str, dict[str, Any]]:
    return {line["name"]: line for line in json.loads(sweep(slurm, "status", directory, "--json"))["trials"]}


def states(slurm: Slurm, directory: Path) -> list[str]:
    return [line["state"] for line in status(slurm, directory).values()]


def last(directory: Path) -> Submission:
    return SweepDirectory(directory).submissions()[-1]


def job_state(slurm: Slurm, job: str) -> str:
    return slurm.ask("squeue", "-h", "-r", "-t", "all", "-j", job, "-o", "%T").strip()


def write_sweep(folder: Path, cohort: Path, **more: Any) -> Path:
    """Two ranks on two nodes; no more at once than the machine has cores."""
    tree = {
        "extends": str(cohort),
        "name": "swept",
        "training": {"rounds": 2, "local_epochs": 1},
        "grid": {"privacy.epsilon": [8.0, None], "exchange.density": [0.1, 1.0]},
        "privacy": {"sample_rate": 1.0},
        # Exact: the noise of a private evaluation leaves so few test patients with an AUC or without one.
        "evaluation": {"epsilon": None},
        "slurm": {"ranks": 2, "nodes": 2, "time_min": 5, "at_once": 2, "memory_gb_per_rank": 1},
        **more,
    }
    path = folder / "swept.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def swept(slurm: Slurm, cohort: Path) -> Swept:
    """All of it; one trial's second rank raises, because a directory lies where its log should be."""
    # A space, since SLURM, the shell and submitit each read paths in their own way.
    folder = slurm.folder / "a sweep"
    (folder / "run" / "elements" / BROKEN / "sites" / "site4" / "egress.jsonl").mkdir(parents=True)
    config = write_sweep(folder, cohort, baselines={"local": {"mode": "local", "privacy": "off"}})
    said = sweep(slurm, config, "--run-dir", folder / "run")
    assert "2 private runs on the same patients" in said
    assert re.search(r"submitted 5 trials as jobs (\d+)_0 to \1_4; job \d+", said), said
    report = last(folder / "run").report
    if not until(lambda: job_state(slurm, report) == "COMPLETED", 200, 0.5):
        pytest.fail(f"{sweep(slurm, 'status', folder / 'run')}\n{slurm.ask('squeue', '-t', 'all')}")
    return Swept(folder / "run", status(slurm, folder / "run"))


def test_one_trial_fails_at_one_rank_at_once_and_harms_no_other(swept: Swept) -> None:
    found = {name: line["state"] for name, line in swept.status.items()}
    assert found == {f"swept-{n:03d}": "failed" if n == 1 else "finished" for n in range(5)}
    assert swept.status[BROKEN]["message"].startswith("rank 1: ")
    outcome = json.loads((swept.directory / "elements" / BROKEN / "outcome.json").read_text(encoding="utf-8"))
    assert outcome["seconds"] < 60, "rank 0 did not wait for it"
    assert {line["job"].partition("_")[0] for line in swept.status.values()} == {
        last(swept.directory).jobs[BROKEN][:-2]
    }


def test_each_trial_was_an_mpi_run_on_two_nodes(swept: Swept, slurm: Slurm) -> None:
    job = last(swept.directory).jobs["swept-003"]
    said = (swept.directory / "jobs" / f"{job}_0_log.out").read_text(encoding="utf-8")
    nodes = {line.split()[2] for line in said.splitlines() if re.match(r"site\d +\d ", line)}
    assert len(nodes) == 2
    assert "TLS 1.3" in said


def test_a_trial_has_the_bits_of_the_run_that_train_makes_in_one_process(swept: Swept, slurm: Slurm) -> None:
    trial, alone = swept.directory / "elements" / "swept-003", slurm.folder / "alone"
    slurm.ask(slurm.python, "run.py", "train", trial / "element.yaml", "--run-dir", alone)
    np.testing.assert_array_equal(params(trial, 2), params(alone, 2))


def test_the_report_was_made_after_all_of_them(swept: Swept) -> None:
    facts = json.loads((swept.directory / "report.json").read_text(encoding="utf-8"))
    assert facts["states"] == {"finished": 4, "failed": 1}
    assert len([row for row in facts["rows"] if row["auc"] is not None]) == 4
    page = (swept.directory / "report.html").read_text(encoding="utf-8")
    assert "<svg" in page
    assert "rank 1: " in page


def test_resume_runs_what_failed_alone(swept: Swept, slurm: Slurm) -> None:
    (swept.directory / "elements" / BROKEN / "sites" / "site4" / "egress.jsonl").rmdir()
    said = sweep(slurm, "resume", swept.directory)
    assert f"1 of 5 trials run again: {BROKEN}" in said
    submission = last(swept.directory)
    assert list(submission.jobs) == [BROKEN]
    assert "_" not in submission.jobs[BROKEN], "one job, no array"
    assert until(lambda: job_state(slurm, submission.report) == "COMPLETED", 90, 0.5), sweep(
        slurm, "status", swept.directory
    )
    assert set(states(slurm, swept.directory)) == {"finished"}
    assert json.loads((swept.directory / "report.json").read_text(encoding="utf-8"))["states"] == {"finished": 5}
    assert sweep(slurm, "resume", swept.directory).splitlines()[-1] == "nothing to resume"


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"mpi": "pmix", "nodes": 2}, {"mpi": "mpirun"}], ids=["pmix", "mpirun"])
def test_told_to_stop_it_is_queued_again_and_a_cancelled_sweep_leaves_no_job(
    slurm: Slurm, cohort: Path, how: dict[str, Any]
) -> None:
    folder = slurm.folder / how["mpi"]
    folder.mkdir()
    slurm_keys = {"ranks": 2, "requeues": 1, **how}
    more = {"training": {"rounds": 2000}, "privacy": "off", "grid": {"seed": [0, 1]}, "slurm": slurm_keys}
    config, run = write_sweep(folder, cohort, **more), folder / "run"
    sweep(slurm, config, "--run-dir", run)
    jobs = last(run)
    try:
        first, rounds = jobs.jobs["swept-000"], run / "elements" / "swept-000" / "rounds.jsonl"
        assert until(rounds.exists, 90, 0.1), sweep(slurm, "status", run)
        assert set(states(slurm, run)) <= {"running", "pending"}
        kept = (run / "jobs.json").rename(run / "kept.json")
        # As if the terminal had been lost right after sbatch: what runs says so itself.
        assert states(slurm, run)[0] == "running"
        kept.rename(run / "jobs.json")
        # With mpirun the ranks are no step of SLURM's, and what --signal tells is the script itself.
        slurm.ask("scancel", "--signal=USR1", *(["--batch"] if how["mpi"] == "mpirun" else []), first)
        assert until(lambda: job_state(slurm, first) == "PENDING", 30, 0.1), "queued again"
        done = len(rounds.read_text(encoding="utf-8").splitlines())
        assert until(lambda: "resuming after round" in log(run, first), 120, 0.2), sweep(slurm, "status", run)
        assert f"resuming after round {done}\n" in log(run, first), "every rank had saved a whole round"
        assert "Restarts=1 " in slurm.ask("scontrol", "show", "job", first)
        assert "cancelled" in sweep(slurm, "cancel", run)
        assert until(lambda: not slurm.ask("squeue", "-h", "-t", "R,PD,CG,S", "-n", "swept,swept-report"), 60, 0.5)
        assert states(slurm, run) == ["cancelled", "cancelled"]
    finally:
        slurm.ask("scancel", first.partition("_")[0], jobs.report, check=False)


def log(run: Path, job: str) -> str:
    path = run / "jobs" / f"{job}_0_log.out"
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
