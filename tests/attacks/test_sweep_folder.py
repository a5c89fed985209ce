"""The folder of a sweep that somebody else could write to, or has given to one: what it names is not ended for it."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from fedhpc.cli.main import BAD_INPUT, main
from fedhpc.sweep.directory import SweepDirectory, submission
from fedhpc.sweep.trial_directory import beginning
from tests.support.tiny_sweeps import load_sweep, write_sweep

EVIL = "\x1b]52;c;cm0gLXJm\x07"
HERE = {"cluster": "local", "host": socket.gethostname(), "report": "", "time": "2000-01-01T00:00:00+00:00"}


@pytest.fixture
def folder(tmp_path: Path) -> SweepDirectory:
    """Of two trials."""
    grid = {"seed": [0, 1]}
    sweep = load_sweep(write_sweep(tmp_path, grid=grid, baselines={}, privacy="off"), [])
    directory = SweepDirectory(tmp_path / "run")
    directory.create(sweep, "local")
    directory.add(submission("local", {"tiny-000": "", "tiny-001": ""}))
    directory.trial("tiny-000").write_outcome(beginning(""))
    return directory


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The processes that would have been sent a signal: kill(-1, ...) reaches all of an account."""
    found: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: found.append(pid))
    monkeypatch.setattr("fedhpc.sweep.commands.exists", lambda pid: False)
    return found


@pytest.mark.parametrize(
    "told",
    [
        {"pid": -1, "born": ""},
        {"pid": 0, "born": ""},
        {"jobs": {"tiny-000": "--user=root"}, "cluster": "slurm"},
        {"jobs": {"tiny-000": "7_0"}, "cluster": "slurm", "report": "--state=RUNNING"},
        {"jobs": ["tiny-000"]},
    ],
)
def test_cancel_ends_no_process_or_job_by_a_forged_name(
    folder: SweepDirectory, killed: list[int], told: dict[str, Any]
) -> None:
    forged = {**HERE, "jobs": {"tiny-000": "", "tiny-001": ""}, "pid": 2, "born": "", **told}
    folder.jobs.write_text(json.dumps({"submissions": [forged], "cancelled": []}), encoding="utf-8")
    assert main(["sweep", "cancel", str(folder.path)]) == BAD_INPUT
    assert not killed


def test_cancel_ends_no_process_that_is_not_there(folder: SweepDirectory, killed: list[int]) -> None:
    forged = {**HERE, "jobs": {"tiny-000": ""}, "pid": 2**22 + 1, "born": ""}
    folder.jobs.write_text(json.dumps({"submissions": [forged], "cancelled": []}), encoding="utf-8")
    assert main(["sweep", "cancel", str(folder.path)]) == 0
    assert not killed


@pytest.mark.parametrize("told", [{"pid": -1}, {"pid": "x"}, {"job": "--helpstate"}, {"state": EVIL}, {"seconds": "x"}])
def test_forged_outcome_is_refused_or_shown(
    folder: SweepDirectory, capsys: pytest.CaptureFixture[str], told: dict[str, Any]
) -> None:
    path = folder.trial("tiny-000").path / "outcome.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | told), encoding="utf-8")
    for command in (["sweep", "status"], ["watch", "--once"]):
        assert main([*command, str(folder.path)]) == BAD_INPUT
    assert "\x1b" not in "".join(capsys.readouterr())


def test_sweep_of_the_first_process_of_a_container_is_read(folder: SweepDirectory) -> None:
    path = folder.trial("tiny-000").path / "outcome.json"
    for file in (path, folder.jobs):
        text = file.read_text(encoding="utf-8")
        assert f'"pid": {os.getpid()}' in text
        file.write_text(text.replace(f'"pid": {os.getpid()}', '"pid": 1'), encoding="utf-8")
    assert main(["sweep", "status", str(folder.path)]) == 0


def test_words_of_a_sweep_cannot_move_the_terminal(folder: SweepDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    folder.trial("tiny-000").end(beginning(""), "failed", f"told{EVIL}")
    assert main(["sweep", "status", str(folder.path)]) == 0
    out = capsys.readouterr().out
    assert "told?]52;c;" in out and not {"\x1b", "\x07"} & set(out)


def test_trial_outside_of_the_sweep_is_refused(folder: SweepDirectory) -> None:
    text = folder.plan.read_text(encoding="utf-8")
    folder.plan.write_text(text.replace("name: tiny-001", "name: ../../other"), encoding="utf-8")
    assert main(["sweep", "resume", str(folder.path)]) == BAD_INPUT
