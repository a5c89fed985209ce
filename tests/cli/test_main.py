"""The command line as a program: its reader gone, its environment missing, its names."""

import subprocess
import sys
from pathlib import Path

import pytest

from fedhpc import __version__
from fedhpc.cli.main import main
from tests.conftest import run_limited

REPO = Path(__file__).resolve().parents[2]
READER_GONE = """
import sys, time
from pathlib import Path
from fedhpc.run.display import Console
console = Console(speaks=True)
for number in range(200):
    console.say("x" * 1000)
Path(sys.argv[1]).write_text("done")
"""


def test_closed_output_does_not_end_a_run(tmp_path: Path) -> None:
    command = f'{sys.executable} -c "$1" {tmp_path}/file | head -1; echo "${{PIPESTATUS[0]}}"'
    done = subprocess.run(
        ["bash", "-c", command, "bash", READER_GONE], cwd=REPO, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.stdout.split()[-1] == "0"
    assert (done.stderr, (tmp_path / "file").read_text()) == ("", "done")


def test_missing_package_names_the_environment() -> None:
    command = [sys.executable, "-S", "run.py", "privacy", "configs/smoke.yaml"]
    done = subprocess.run(command, cwd=REPO, env={"PATH": ""}, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "Activate the environment" in done.stderr


def test_console_script_is_the_same_program(tmp_path: Path) -> None:
    script = Path(sys.executable).parent / "fedhpc"
    done = run_limited([script, "train", tmp_path / "none.yaml"], 60, {"PYTHONPATH": str(REPO)})
    assert (done.returncode, done.stderr.startswith("error: ")) == (2, True), done
    shown = run_limited([script, "sweep", "start", "--help"], 60, {"PYTHONPATH": str(REPO)}).stdout
    assert shown.startswith("usage: fedhpc sweep start [-h]") and "\n  fedhpc sweep " in shown


def test_option_before_the_command_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--json", "config", "show", "x.yaml"])
    assert "--json: a command must come first" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["train", "c.yaml", "--run-dir", ""],
        ["report", ""],
        ["evaluate", "run", "--shard", " "],
        ["study", "c", "-o", ""],
    ],
)
def test_empty_path_is_not_the_folder_one_is_in(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    assert "is empty (a shell variable that is not set?) [command-line]" in " ".join(capsys.readouterr().err.split())


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"{__version__}\n"
