"""A real sweep on this machine: what ends, what fails and harms no other, what is run again, what is cancelled."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fedhpc.cli.main import main
from fedhpc.config.loader import load_config
from fedhpc.site.account import found_ledger
from fedhpc.sweep.directory import SweepDirectory
from fedhpc.sweep.local import at_once
from fedhpc.sweep.resources import Local
from fedhpc.sweep.slurm_queue import look
from fedhpc.sweep.status import Line
from fedhpc.sweep.trial_directory import beginning
from tests.support.tiny_sweeps import SITES, load_sweep, write_sweep
from tests.sweep.conftest import Ran

Run = Callable[..., tuple[int, str, str]]


def found(path: Path) -> dict[str, Line]:
    directory = SweepDirectory(path)
    return {line.name: line for line in look(directory, directory.read())}


def summary(path: Path, name: str) -> dict[str, object]:
    return json.loads((path / "elements" / name / "summary.json").read_text(encoding="utf-8"))


def test_one_trial_fails_and_all_others_finish(local_sweep: Ran) -> None:
    assert local_sweep.status == 1, local_sweep.out
    states = {name: line.state for name, line in found(local_sweep.directory).items()}
    assert states == {f"tiny-{n:03d}": "failed" if n == 1 else "finished" for n in range(6)}
    assert "6/6" in local_sweep.out
    code = "[resume.other-config]"
    assert code in found(local_sweep.directory)["tiny-001"].message
    said = SweepDirectory(local_sweep.directory).trial("tiny-001").log.read_text(encoding="utf-8")
    assert "error: " in said and code in said


def test_each_trial_is_a_run_with_its_own_config(local_sweep: Ran) -> None:
    for trial in SweepDirectory(local_sweep.directory).read().trials:
        if trial.name != "tiny-001":
            directory = SweepDirectory(local_sweep.directory).trial(trial.name)
            assert directory.run.read_config() == trial.config == load_config(directory.config)
            assert trial.config.runtime.threads == 1, "a number: several trials share the machine"
            assert summary(local_sweep.directory, trial.name)["config_digest"] == trial.config.digest()
    assert summary(local_sweep.directory, "tiny-000")["epsilon"] <= 8.0  # type: ignore[operator]
    assert summary(local_sweep.directory, "tiny-004")["mode"] == "centralised"


def test_a_trial_is_the_run_that_train_makes(local_sweep: Ran, run_here: Run, tmp_path: Path) -> None:
    trial = local_sweep.directory / "elements" / "tiny-003"
    status, _, err = run_here(["train", trial / "element.yaml", "--run-dir", tmp_path / "alone"])
    assert status == 0, err
    ours, theirs = summary(local_sweep.directory, "tiny-003"), json.loads((tmp_path / "alone/summary.json").read_text())
    assert all(ours[key] == theirs[key] for key in ("auc", "auc_ci95", "per_site", "bytes_up_per_round"))


def test_what_was_told_of_privacy_is_what_the_ledgers_hold(local_sweep: Ran) -> None:
    config = SweepDirectory(local_sweep.directory).read().trials[0].config
    assert "2 private runs on the same patients" in local_sweep.out
    for site in SITES:
        ledger = found_ledger(config, site)
        assert ledger is not None and ledger.folder.parent == config.data.shard_path(site).parent, "synthetic patients"
        assert {entry["run"] for entry in ledger.entries("charge")} == {"tiny-000"}, (
            "001 never began, the others are not private"
        )


def test_the_report_is_there_and_tells_of_the_failure(local_sweep: Ran) -> None:
    facts = json.loads((local_sweep.directory / "report.json").read_text(encoding="utf-8"))
    assert facts["states"] == {"finished": 5, "failed": 1}
    assert "holds a run of another config" in (local_sweep.directory / "report.html").read_text(encoding="utf-8")


def test_a_second_sweep_there_is_refused(local_sweep: Ran, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sweep", str(local_sweep.config), "--cluster", "local", "--run-dir", str(local_sweep.directory)]
    assert main(words) == 2
    assert "holds a sweep already" in capsys.readouterr().err


def test_status_is_a_table_and_json(local_sweep: Ran, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "status", str(local_sweep.directory)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "tiny: 6: 1 failed, 5 finished"
    assert main(["sweep", "status", str(local_sweep.directory), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [line["auc"] for line in told["trials"] if line["state"] == "finished"] == [
        summary(local_sweep.directory, line["name"])["auc"] for line in told["trials"] if line["state"] == "finished"
    ]


def test_resume_runs_what_failed_and_nothing_else(
    local_sweep: Ran, run_here: Run, run_python: Run, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(local_sweep.directory, copy)
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("summary.json")}
    (copy / "elements" / "tiny-001" / "rounds.jsonl").unlink()
    status, out, err = run_python(["sweep", "resume", copy], timeout=120)
    assert status == 0, out + err
    assert "1 of 6 trials run again: tiny-001" in out
    assert {line.state for line in found(copy).values()} == {"finished"}
    assert {path: path.stat().st_mtime_ns for path in before} == before
    (copy / "jobs.json").unlink()
    assert {line.state for line in found(copy).values()} == {"finished"}, "they say so themselves"
    status, out, _ = run_here(["sweep", "resume", copy])
    assert (status, out.splitlines()[-1]) == (0, "nothing to resume")


@pytest.mark.slow
def test_a_killed_trial_is_told_and_a_cancelled_sweep_leaves_no_process(tmp_path: Path) -> None:
    config, run = write_sweep(tmp_path, grid={"seed": [0, 1, 2]}, baselines={}, privacy="off"), tmp_path / "run"
    sets = ["--set", "local.at_once=1", "--set", "training.rounds=500"]
    process = subprocess.Popen(
        [sys.executable, "run.py", "sweep", config, "--cluster", "local", "--run-dir", run, *sets],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        killed = trained(run, "tiny-000")
        assert [line.state for line in found(run).values()] == ["running", "pending", "pending"]
        os.kill(killed, signal.SIGKILL)
        told_to_stop = trained(run, "tiny-001")
        assert [line.state for line in found(run).values()] == ["failed", "running", "pending"], "the others go on"
        assert "status -9" in found(run)["tiny-000"].message
        assert main(["sweep", "cancel", str(run)]) == 0
        out, _ = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 75, out
    assert "stopped by SIGTERM" in out
    assert "sweep resume" in out
    assert not [pid for pid in (killed, told_to_stop) if Path(f"/proc/{pid}").exists()]
    assert [line.state for line in found(run).values()] == ["failed", "cancelled", "cancelled"]


def trained(run: Path, name: str) -> int:
    """The process that trains a trial, once it does."""
    trial, until = run / "elements" / name, time.monotonic() + 90
    while not (trial / "config.yaml").exists():
        assert time.monotonic() < until, f"{name} did not start"
        time.sleep(0.1)
    return int(json.loads((trial / "outcome.json").read_text(encoding="utf-8"))["pid"])


def test_a_trial_that_no_memory_here_can_hold_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_sweep(tmp_path, grid={"seed": [0]}, baselines={}, privacy="off", local={"memory_gb_per_rank": 1e6})
    assert main(["sweep", str(config), "--cluster", "local", "--run-dir", str(tmp_path / "run")]) == 2
    assert "local.memory_gb_per_rank=1e+06" in capsys.readouterr().err
    assert not (tmp_path / "run" / "sweep.yaml").exists(), "it can be started again"


def test_a_trial_whose_folder_was_removed_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As one does to run a trial again; what is to be left is said."""
    directory = SweepDirectory(tmp_path / "run")
    directory.create(load_sweep(write_sweep(tmp_path, grid={"seed": [0, 1]}, baselines={}, privacy="off"), []), "local")
    shutil.rmtree(directory.trial("tiny-001").path)
    assert main(["sweep", "resume", str(directory.path)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "tiny-001/element.yaml: is missing" in said and "[file.missing]" in said
    assert "remove all of its folder but element.yaml and commands.json" in said


def test_where_slurm_does_not_answer_nothing_is_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = SweepDirectory(tmp_path / "run")
    directory.create(load_sweep(write_sweep(tmp_path, grid={"seed": [0, 1]}, baselines={}, privacy="off"), []), "slurm")
    directory.trial("tiny-000").write_outcome(beginning("77_0"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [line.state for line in found(tmp_path / "run").values()] == ["unknown", "missing"]
    assert main(["sweep", "resume", str(tmp_path / "run")]) == 2
    assert "must not run twice" in capsys.readouterr().err


def test_cores_decide_how_many_run_at_once() -> None:
    cores = len(os.sched_getaffinity(0))
    sections: tuple[dict[str, int], ...] = ({}, {"cpus_per_rank": cores + 1}, {"at_once": 7}, {"ranks": 2})
    assert [at_once(Local(**section)) for section in sections] == [cores, 1, 7, max(1, cores // 2)]
