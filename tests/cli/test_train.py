"""`run.py train`: bad input is reported before anything heavy is imported; `--status` holds the exit status."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedhpc.cli.main import main
from tests.conftest import REPO, Outcome, run_limited

CONFIG = (
    "name: x\nprivacy: off\nruntime: {threads: 1}\n"
    "data: {shards: 'none/{site}.h5', sites: [{name: a}, {name: b}]}\ntraining: {rounds: %s}\n"
)
LIGHT = """
import sys
from fedhpc.cli.main import main
status = main(sys.argv[1:])
heavy = {"torch", "opacus", "h5py", "scipy"} & set(sys.modules)
assert not heavy, heavy
sys.exit(status)
"""


def write(path: Path, rounds: object = 1) -> Path:
    path.write_text(CONFIG % rounds, encoding="utf-8")
    return path


def test_typo_before_heavy_imports(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LIGHT, "train", write(tmp_path / "c.yaml", "many")]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, "training.rounds='many': is text; write a number (c.yaml, line 5)" in done.stderr) == (
        2,
        True,
    )


@pytest.mark.mpi
def test_too_many_ranks_are_told_before_heavy_imports(tmp_path: Path, mpirun: Callable[..., Outcome]) -> None:
    done = mpirun(3, ["-c", LIGHT, "train", write(tmp_path / "c.yaml")], fresh=True)
    assert done.returncode == 2
    assert "3 ranks for 2 sites: use at most 2" in done.stderr
    assert "AssertionError" not in done.stderr


def test_no_rounds_to_do_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", "c.yaml", "--stop-after", "0"])
    assert ended.value.code == 2
    assert "at least 1" in capsys.readouterr().err


def test_status_of_an_earlier_run_is_removed(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("0\n")
    killed = (
        "import os\nfrom fedhpc.cli import main as cli, train\ntrain.run = lambda options: os.kill(os.getpid(), 9)\n"
    )
    words = ["train", "configs/smoke.yaml", "--status", status]
    done = run_limited([sys.executable, "-c", f"{killed}import sys\nsys.exit(cli.main(sys.argv[1:]))", *words], 60)
    assert done.returncode == -9, done.stderr
    assert not status.exists()


def test_status_that_cannot_be_written_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for place in (tmp_path, tmp_path / "none" / "status"):
        assert main(["train", "nothing.yaml", "--status", str(place)]) == 2
        assert f"--status {place}: cannot be written there" in capsys.readouterr().err


def test_built_in_cohort_has_no_such_hospital(run_here: Callable[..., Outcome], tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(CONFIG.replace("data: {", "data: {phantom: {images: 160}, ") % 1, encoding="utf-8")
    done = run_here(["train", config, "--run-dir", tmp_path / "run", "--set", f"data.shards={tmp_path}/{{site}}.h5"])
    assert done.returncode == 2
    assert "data.phantom: a, b: no such hospital in the built-in cohort" in done.stderr
