"""A disk that is full at any write, or read-only: one message with the path, nothing half written, and it goes on."""

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.conftest import REPO, Outcome, missing, run_limited
from tests.mpi.test_federated import make_shard

SITES = ("site1", "site2")
WRITTEN = {
    "lock.json", "egress.jsonl", "run.json", "shard.json", "environment.json", "config.yaml", "residual-0001.npz",
    "round-0001.npz", "rounds.jsonl", "model.pt", "curves.json", "summary.json", "report.html", "report.json",
    "report.csv",
}  # fmt: skip


def mounted(path: Path, *options: str) -> None:
    """Mount a tmpfs; skip the test where that is not allowed."""
    done = subprocess.run(["mount", "-t", "tmpfs", *options, "none", str(path)], capture_output=True, check=False)
    if os.geteuid() or done.returncode:
        missing("a small file system cannot be mounted: not root")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted(folder, "-o", "size=4m")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Two hospitals whose shards lie on another disk."""
    for site in SITES:
        make_shard(tmp_path, site, 20)
    tree = {
        "name": "tiny",
        "data": {"shards": f"{tmp_path}/{{site}}.h5", "sites": [{"name": name, "weight": 7} for name in SITES]},
        "privacy": "off",
        "training": {"rounds": 1, "local_epochs": 1, "batch_size": 16},
        "evaluation": {"bootstrap": 100},
        "runtime": {"threads": 1, "device": "cpu"},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return tmp_path / "tiny.yaml"


def test_disk_full_at_any_file_loses_nothing(config: Path, small_disk: Path, preloaded: list[str]) -> None:
    run = small_disk / "run"
    done = run_limited([*preloaded, "-m", "tests.support.full_disk", run, config], 280, {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    *found, last = [json.loads(line) for line in done.stdout.splitlines()]
    assert (last["status"], last["left"]) == (0, []), last
    failed_at = {Path(case["path"]).name.removeprefix(".").removesuffix(".tmp") for case in found}
    assert failed_at >= WRITTEN, WRITTEN - failed_at
    for case in found:
        # The page of a finished run is not worth the run: its results are whole, and a warning says how to make it.
        of_report = Path(case["path"]).name.removeprefix(".").startswith("report.")
        assert case["status"] == (0 if of_report else 2), case
        assert ("report.html: was not written" in case["said"] and "python run.py report" in case["said"]) == of_report
        # The file named is the one that failed, or the egress log, where the message about it has to be entered first.
        name = re.escape(Path(case["path"]).name.removeprefix(".").removesuffix(".tmp"))
        named = rf"{run}\S*/({name}|egress\.jsonl): cannot be written: No space left"
        assert re.search(named, case["said"]), case
        assert "Traceback" not in case["said"] and "[Errno" not in case["said"], case
        assert case["left"] == [], case
    assert (run / "summary.json").exists()
    assert len((run / "rounds.jsonl").read_text(encoding="utf-8").splitlines()) == 1


def test_read_only_run_directory_is_one_message(
    config: Path, small_disk: Path, run_here: Callable[..., Outcome]
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    done = run_here(["train", config, "--run-dir", small_disk / "run"])
    assert done.returncode == 2
    assert f"{small_disk}/run: cannot be made: Read-only file system" in done.stderr
    assert "Traceback" not in done.stderr


def to_full_disk(preloaded: list[str], words: list[str], errors: int = subprocess.PIPE) -> tuple[int, str]:
    """(exit status, standard error) of run.py whose standard output is on a full disk."""
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*preloaded, "run.py", *words],
            cwd=REPO,
            stdout=full,
            stderr=full if errors == subprocess.STDOUT else errors,
            text=True,
            timeout=100,
            check=False,
        )
    return done.returncode, " ".join((done.stderr or "").split())


def test_full_disk_under_the_output_is_one_message(config: Path, tmp_path: Path, preloaded: list[str]) -> None:
    """A run goes on without its output; a command of which the output is the result ends with status 2."""
    run = str(tmp_path / "run")
    silent = str(tmp_path / "silent")
    for words in (
        ["train", str(config), "--run-dir", run],
        ["watch", run],
        ["report", run],
        ["egress", run],
        ["preflight", str(config)],
        ["config", "show", str(config)],
        ["config", "reference"],
        ["errors"],
        ["study", "configs/study.yaml", "-o", str(tmp_path / "study"), "--quick", "--dry-run"],
        ["sweep", "configs/sweep_epsilon_density.yaml", "--run-dir", str(tmp_path / "sweep"), "--dry-run"],
        ["train", "--help"],
        ["--help"],
    ):
        status, said = to_full_disk(preloaded, words)
        assert status == (0 if words[0] == "train" and "--help" not in words else 2), (words, said)
        assert said.count("standard output: cannot be written: No space left on device") == 1, (words, said)
        assert "Traceback" not in said and "Exception" not in said, (words, said)
    assert "model.pt" in os.listdir(run)
    assert "round" in (tmp_path / "run" / "aggregator-log.txt").read_text(encoding="utf-8")
    assert to_full_disk(preloaded, ["train", str(config), "--run-dir", silent], subprocess.STDOUT) == (0, "")
    assert "model.pt" in os.listdir(silent)
