"""Copies of shards on a node's disk: in a folder of the account alone, whatever lies at its name already."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]


def stage_own() -> str:
    """The function of slurm/launch.sh that each task runs."""
    text = (REPO / "slurm" / "launch.sh").read_text(encoding="utf-8")
    start = text.index("stage_own() {")
    return text[start : text.index("\n}\n", start) + 2]


def staged(folder: Path, task: int = 0) -> subprocess.CompletedProcess[str]:
    words = ["stage", str(folder / "from"), str(folder / "node" / "fedhpc-7"), "site1", "site2"]
    return subprocess.run(
        ["bash", "-c", f'{stage_own()}\nstage_own "$@"', *words],
        env={"PATH": os.environ["PATH"], "SLURM_PROCID": str(task)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "from").mkdir()
    for name in ("site1.h5", "site2.h5", "ca.pem"):
        (tmp_path / "from" / name).write_text(name, encoding="utf-8")
    return tmp_path


def test_each_task_copies_its_own_shard_for_this_account_alone(folder: Path) -> None:
    to = folder / "node" / "fedhpc-7"
    for task in (0, 1, 1):
        assert staged(folder, task).returncode == 0
        assert (to / "site2.h5").exists() == bool(task)
    assert to.stat().st_mode & 0o777 == 0o700
    assert (to / "site1.h5").stat().st_mode & 0o077 == 0
    assert (to / "ca.pem").is_symlink()


def test_disk_of_a_group_can_be_staged_to(folder: Path) -> None:
    """New folders there have the setgid bit."""
    (folder / "node").mkdir()
    (folder / "node").chmod(0o2770)
    assert staged(folder).returncode == 0
    assert (folder / "node" / "fedhpc-7" / "site1.h5").exists()


def open_folder(to: Path) -> None:
    to.mkdir(parents=True, mode=0o777)
    to.chmod(0o777)


def link(to: Path) -> None:
    (to.parent / "theirs").mkdir(parents=True, mode=0o700)
    to.symlink_to(to.parent / "theirs")


def of_another_account(to: Path) -> None:
    if os.geteuid():
        pytest.skip("only root may give a folder away")
    to.mkdir(parents=True, mode=0o700)
    os.chown(to, 65534, 65534)


@pytest.mark.parametrize("planted", [open_folder, link, of_another_account])
def test_folder_that_somebody_put_there_gets_no_shard(folder: Path, planted: Callable[[Path], None]) -> None:
    """With `.site1.tmp` in it as a link to a file of theirs, the copy would go there."""
    to = folder / "node" / "fedhpc-7"
    planted(to)
    (to / ".site1.tmp").symlink_to(folder / "theirs.h5")
    done = staged(folder)
    assert done.returncode == 1 and "not a folder of this account alone" in done.stderr
    assert not (folder / "theirs.h5").exists() and not (to / "site1.h5").exists()
