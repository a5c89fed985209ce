"""A folder that a project shares: a module that somebody has put there is imported by no program that is started in it.

`python -m` looks there first, before Python's own modules, and trials, commands and reports of sweeps are started so.
"""

import os
import sys
from pathlib import Path

import pytest

from fedhpc.sweep.directory import SweepDirectory
from fedhpc.sweep.environment import SAFE_PATH, for_programs
from fedhpc.sweep.slurm import scripts
from tests.conftest import run_limited
from tests.support.tiny_sweeps import load_sweep, write_sweep

HELP = [sys.executable, "-m", "fedhpc", "--help"]


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    (tmp_path / "argparse.py").write_text("raise SystemExit('code of somebody else')", encoding="utf-8")
    return tmp_path


def test_planted_module_is_not_imported(shared: Path) -> None:
    done = run_limited(HELP, 60, for_programs({}), shared)
    assert (done.returncode, done.stderr) == (0, "") and "usage" in done.stdout


def test_control_planted_module_is_imported_without_the_setting(shared: Path) -> None:
    environment = {name: value for name, value in for_programs({}).items() if name not in SAFE_PATH}
    assert "code of somebody else" in run_limited(HELP, 60, environment, shared).stderr


def test_jobs_of_a_sweep_have_the_setting(tmp_path: Path) -> None:
    """After the lines of `slurm.setup`, whose own programs are the user's business."""
    more = {"slurm": {"setup": ["module load openmpi"]}}
    sweep = load_sweep(write_sweep(tmp_path, grid={"seed": [0]}, baselines={}, privacy="off", **more), [])
    for script in scripts(SweepDirectory(tmp_path / "run"), sweep, 1).values():
        before, _, after = script.partition("export PYTHONSAFEPATH=1")
        assert "module load openmpi" in before and "submitit" in after
    assert for_programs({"PYTHONPATH": "/a"})["PYTHONPATH"].endswith(f"{os.pathsep}/a")
