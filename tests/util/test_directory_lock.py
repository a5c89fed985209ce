"""One program at a time in a directory; a lock that was left behind is judged, and taken over where that is safe."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from fedhpc.errors import FileError, InputError
from fedhpc.util import directory_lock
from fedhpc.util.directory_lock import DirectoryLock, Holder, judged

HOLD = """
import sys
from pathlib import Path
from fedhpc.util.directory_lock import DirectoryLock
lock = DirectoryLock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
sys.stdin.readline()
lock.release()
"""


@contextmanager
def holding(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of `path`."""
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def left_behind(path: Path, **changes: object) -> Holder:
    """Put down the lock file of a holder that is like this process but for the changes."""
    path.mkdir(exist_ok=True)
    holder = replace(Holder.this_process(), **changes)  # type: ignore[arg-type]
    (path / "lock.json").write_text(json.dumps(asdict(holder)), encoding="utf-8")
    return holder


def test_second_process_is_refused_and_told_by_whom(tmp_path: Path) -> None:
    with holding(tmp_path) as other:
        with pytest.raises(InputError, match=f"another run is at work there: .* on .*, process {other.pid}, since"):
            DirectoryLock(tmp_path).acquire()
        with pytest.raises(InputError, match="another run is at work"):
            DirectoryLock(tmp_path).acquire(take_over=True)
        other.communicate("\n", timeout=20)
    lock = DirectoryLock(tmp_path)
    assert lock.acquire() == ""
    lock.release()
    assert not (tmp_path / "lock.json").exists()


def test_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    with holding(tmp_path) as other:
        other.kill()
        other.wait()
        lock = DirectoryLock(tmp_path)
        assert f"process {other.pid}" in lock.acquire()
        lock.check_held()
        lock.release()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"token": 1}'])
def test_cut_lock_file_is_taken_over(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "lock.json").write_bytes(content)
    lock = DirectoryLock(tmp_path)
    assert "left behind: taken over" in lock.acquire()
    lock.release()


def test_holder_on_another_host_needs_take_over(tmp_path: Path) -> None:
    left_behind(tmp_path, host="elsewhere", job="")
    with pytest.raises(InputError, match=r"was locked by .* on elsewhere.*--take-over"):
        DirectoryLock(tmp_path).acquire()
    lock = DirectoryLock(tmp_path)
    assert "on elsewhere" in lock.acquire(take_over=True)
    lock.release()


ME = Holder.this_process({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_RESTART_COUNT": "1"})


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "alive"),
        ({"born": "1"}, "dead"),
        ({"boot": "another"}, "dead"),
        ({"pid": 2**22 + 1}, "dead"),
        ({"restart": "0"}, "dead"),
        ({"restart": "0", "host": "elsewhere"}, "dead"),
        ({"job": "8", "restart": "0"}, "alive"),
        ({"host": "elsewhere", "job": ""}, "unknown"),
    ],
)
def test_holder_is_judged(changes: dict[str, str], verdict: str) -> None:
    assert judged(replace(ME, **changes), ME) == verdict  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("script", "verdict"),
    [
        ("echo 8.0", "alive"),
        ("exit 0", "dead"),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", "dead"),
        ("echo 'Unable to contact slurm controller' >&2; exit 1", "unknown"),
        (None, "unknown"),
    ],
)
def test_job_on_another_host_is_looked_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, verdict: str
) -> None:
    """By a `squeue` that answers as SLURM's own does; the real one is in tests/slurm."""
    if script is not None:
        (tmp_path / "squeue").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n{script}\n', encoding="utf-8")
        (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin" if script is not None else str(tmp_path))
    assert judged(replace(ME, host="elsewhere", job="8"), ME) == verdict
    if script is not None:
        assert "--steps=8.0" in (tmp_path / "asked").read_text(encoding="utf-8")


def remove(path: Path) -> None:
    (path / "lock.json").unlink()


def taken(path: Path) -> None:
    left_behind(path, token="another")


@pytest.mark.parametrize("act", [remove, taken])
def test_lost_lock_is_noticed(tmp_path: Path, act: Callable[[Path], object]) -> None:
    lock = DirectoryLock(tmp_path / "run")
    lock.acquire()
    lock.check_held()
    act(tmp_path / "run")
    with pytest.raises(FileError, match="is no longer this run's"):
        lock.check_held()
    lock.release()
    assert (tmp_path / "run" / "lock.json").exists() == (act is taken), "another's lock is not removed"


def test_without_flock_the_lock_file_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(directory_lock.fcntl, "flock", unsupported)
    with holding(tmp_path) as other, pytest.raises(InputError, match=f"process {other.pid}"):
        DirectoryLock(tmp_path).acquire()
    lock = DirectoryLock(tmp_path)
    assert "left behind" in lock.acquire()
    lock.release()
    (tmp_path / "lock.json").touch()
    with pytest.raises(InputError, match="--take-over"):
        DirectoryLock(tmp_path).acquire()


def test_lock_is_released_when_the_process_ends(tmp_path: Path) -> None:
    with holding(tmp_path) as other:
        os.kill(other.pid, 15)
        other.wait()
    lock = DirectoryLock(tmp_path)
    lock.acquire()
    lock.release()
