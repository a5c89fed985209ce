"""A launcher that lives on without ranks is ended by the guard of a rank, and no other process ever is.

The launcher is a real process named as Open MPI's, a copy of a shell that does not end when its ranks have.
"""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fedhpc.transport.launcher_guard import NAMESPACE, Launcher, launcher_of
from fedhpc.util.processes import born, children, is_running
from tests.conftest import REPO

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a guard reads /proc")
PATIENCE_S = 0.4
RANK = f'{sys.executable} -S -c "from fedhpc.transport.launcher_guard import start_guard; start_guard({PATIENCE_S})"'
WAITS = "sleep 600; true"
Launch = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Start a launcher by its script, in a session of its own; what is left of it ends with the test."""
    shell = shutil.which("bash")
    assert shell is not None
    shutil.copy(shell, tmp_path / "prterun")
    started = []

    def launched(script: str, name: str = "prterun") -> subprocess.Popen[str]:
        program = tmp_path / name
        if not program.exists():
            shutil.copy(shell, program)
        job = f"export PYTHONPATH={REPO} JOB=prterun-node-$$@1; "
        started.append(
            subprocess.Popen([program, "-c", job + script], stderr=subprocess.PIPE, text=True, start_new_session=True)
        )
        return started[-1]

    yield launched
    for process in started:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        finally:
            process.wait()
            assert process.stderr is not None
            process.stderr.close()


def guards(process: subprocess.Popen[str]) -> list[int]:
    """The guards of a launcher."""
    words = [b"fedhpc.transport.launcher_guard", str(process.pid).encode()]
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            said = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if [one for one in said if one in words] == words:
            found.append(int(path.parent.name))
    return found


def waited(met: Callable[[], bool]) -> bool:
    """Whether something came true within a minute."""
    until_s = time.monotonic() + 60
    while not met() and time.monotonic() < until_s:
        time.sleep(0.02)
    return met()


@pytest.mark.parametrize(
    ("trap", "status"), [("true", -signal.SIGTERM), ("trap '' TERM", -signal.SIGKILL)], ids=["ends", "ignores"]
)
def test_launcher_without_ranks_is_ended(launch: Launch, trap: str, status: int) -> None:
    """With SIGTERM, or SIGKILL where it does not end by that; several ranks start one guard."""
    process = launch(f"{trap}; for rank in 1 2 3; do {NAMESPACE}=$JOB {RANK} & done; {WAITS}")
    assert waited(lambda: process.poll() is not None)
    assert process.returncode == status
    os.killpg(process.pid, signal.SIGKILL)  # its `sleep` has its stderr too
    assert process.stderr is not None and process.stderr.read().count("is ended (faults.launcher_patience_s)") == 1
    assert waited(lambda: not guards(process))


def test_launcher_with_a_living_rank_is_left(launch: Launch) -> None:
    """A second program that it has started keeps it, whatever that is; then it is ended."""
    process = launch(f"{NAMESPACE}=$JOB sleep 600 & {NAMESPACE}=$JOB {RANK}; echo done >&2; {WAITS}")
    assert process.stderr is not None and process.stderr.readline() == "done\n"
    assert waited(lambda: len(guards(process)) == 1)
    time.sleep(3 * PATIENCE_S)
    assert process.poll() is None, "its other rank is alive"
    other = next(pid for pid in children(process.pid) if NAMESPACE in _environment(pid))
    os.kill(other, signal.SIGKILL)
    assert waited(lambda: process.poll() is not None)


@pytest.mark.parametrize(
    ("name", "job"),
    [("prterun", "prterun-other-$$@1"), ("prterun", ""), ("prte", "$JOB"), ("prterun", "prte-node-$$@1")],
    ids=["another_job", "none", "daemon", "job_of_a_daemon"],
)
def test_process_that_started_no_rank_of_the_job_is_no_launcher(launch: Launch, name: str, job: str) -> None:
    """Nor is one of another program: a daemon that serves several jobs goes on after each."""
    process = launch(f"{NAMESPACE}={job} sleep 600 & echo done >&2; {WAITS}", name)
    assert process.stderr is not None and process.stderr.readline() == "done\n"
    given = "prte" if "prte-" in job else "prterun"
    assert launcher_of(f"{given}-node-{process.pid}@1") is None
    assert launcher_of("") is None


def test_launcher_whose_number_is_anothers_gets_no_signal(launch: Launch) -> None:
    """Process ids are used again: the start time tells the two apart."""
    process = launch(WAITS)
    other = Launcher(process.pid, str(int(born(process.pid)) - 1), "prterun-node-1@1")
    other.send(signal.SIGKILL)
    assert not other.is_there()
    assert is_running(process.pid, born(process.pid)) and process.poll() is None


@pytest.mark.parametrize("lacks", ["attribute", "call"])
def test_signal_is_sent_where_there_are_no_process_descriptors(
    launch: Launch, monkeypatch: pytest.MonkeyPatch, lacks: str
) -> None:
    """Before Linux 5.3, and in a Python that was built for systems as old, as conda's is."""

    def refused(*_: int) -> int:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.delattr(os, "pidfd_open") if lacks == "attribute" else monkeypatch.setattr(os, "pidfd_open", refused)
    process = launch("echo begun >&2; sleep 600")
    assert process.stderr is not None and process.stderr.readline() == "begun\n"
    Launcher(process.pid, born(process.pid), "prterun-node-1@1").send(signal.SIGTERM)
    assert process.wait(20) == -signal.SIGTERM


def _environment(pid: int) -> str:
    return Path(f"/proc/{pid}/environ").read_text(encoding="utf-8", errors="replace")
