"""What all tests share: where things lie, and how to start the real program with a time limit that always holds."""

import atexit
import contextlib
import io
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from tests.support.preloaded import STAND_IN

REPO = Path(__file__).resolve().parents[1]
ON_CI = os.environ.get("CI", "").lower() == "true"
TERM_GRACE_S = 5
PRELOADED = REPO / "tests" / "support" / "preloaded.py"
SERVER = "FEDHPC_TESTS_SERVER"
"""The address of the server that the processes of one test run share."""
SERVER_START_S = 120
STATE = tempfile.mkdtemp(prefix="fedhpc-tests-")
atexit.register(shutil.rmtree, STATE, ignore_errors=True)

# Every start of a program would compile all modules anew where byte code is off, as it is in some containers.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# No test may charge a ledger of the user who runs it. Synthetic patients keep theirs beside their shards.
os.environ.pop("FEDHPC_SITE_LEDGER", None)
os.environ["XDG_STATE_HOME"] = STATE
# mpirun keeps a folder named after its process id. One killed by SIGKILL leaves its own behind, and the next mpirun
# with the same process id refuses to start there: "The PMIx server's listener thread failed to start".
MPI_FOLDERS = "PRTE_MCA_prte_tmpdir_base"
os.environ[MPI_FOLDERS] = STATE
if "PYTEST_XDIST_WORKER" in os.environ:
    # Several processes share the cores already.
    os.environ["OMP_NUM_THREADS"] = "1"
THREADS = int(os.environ.get("OMP_NUM_THREADS") or 0)
"""Of PyTorch, before each test; 0: as they are."""
# As `fedhpc.__main__` does. A thread that spins while it waits for one that another process keeps from its core takes
# several times the time and the CPU seconds of both.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A shell lets what it starts with `&` ignore Ctrl-C, and all that is started from there.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The machines are shared and slow at times: no deadline. On CI the same examples every time, so that red stays red.
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if ON_CI else "local")


# What starts programs, trains whole runs or computes for long, the longest first, since a process that ends early helps
# nobody. All of it is marked `integration`.
LONGEST_FIRST = (
    "tests/slurm/",
    "tests/mpi/test_federated.py",
    "tests/audit/test_procedure.py",
    "tests/mpi/",
    "tests/sweep/test_local.py",
    "tests/run/",
    "tests/mutation/",
    "tests/test_quality.py",
    "tests/audit/",
    "tests/bench/",
    "tests/cli/test_privacy.py",
    "tests/attacks/test_budget.py",
    "tests/attacks/test_lattice.py",
    "tests/privacy/test_accountant.py",
    "tests/test_imports.py",
    "tests/seams/",
    "tests/data_prep/test_phantom.py",
    "tests/attacks/test_noise_removal.py",
)
# Then what has a test of ten seconds among quick ones; last the many that take none.
THEN = (
    "tests/study/",
    "tests/cli/test_bench.py",
    "tests/attacks/",
    "tests/examples/",
    "tests/data_prep/",
    "tests/records/",
    "tests/test_api.py",
    "tests/report/",
)
# SLURM's tests share one cluster and mostly wait for it, so there is one process more than cores. Each takes 1 GB.
WORKERS = min(len(os.sched_getaffinity(0)), 8) + 1
STARTS_PROGRAMS = {"run_python", "run_here", "mpi", "mpirun"}


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return the number of processes: for the whole suite one more than cores, 0 (no other process) for named tests."""
    whole = config.args_source == pytest.Config.ArgsSource.TESTPATHS
    return WORKERS if whole and not config.option.keyword else 0


class ByFile(LoadScopeScheduling):
    """The tests of a file in one process, which shares its fixtures; those of the cluster in one as well."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return "tests/slurm" if path.startswith("tests/slurm/") else path


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    """Return what hands out the tests, in the order in which they were collected."""
    return ByFile(config, log)


def pytest_xdist_setupnodes() -> None:
    """Start the server that all processes share (`preloaded`), while they collect the tests."""
    os.environ[SERVER] = start_server().address


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark what starts programs or trains whole runs."""
    if _place(item) < len(LONGEST_FIRST) or STARTS_PROGRAMS & set(getattr(item, "fixturenames", ())):
        item.add_marker(pytest.mark.integration)


def pytest_runtest_setup() -> None:
    """Give each test the threads that its process began with: a run in it may have set others, for all that come."""
    torch = sys.modules.get("torch")
    if torch is not None and THREADS and torch.get_num_threads() != THREADS:
        torch.set_num_threads(THREADS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the files that take longest."""
    items.sort(key=_place)


def _place(item: pytest.Item) -> int:
    path = item.path.resolve().relative_to(REPO).as_posix()
    order = (*LONGEST_FIRST, *THEN)
    return next((n for n, start in enumerate(order) if path.startswith(start)), len(order))


class Outcome(NamedTuple):
    """What a finished command left behind."""

    returncode: int
    stdout: str
    stderr: str


def missing(what: str) -> NoReturn:
    """Skip the test for want of `what`; on CI, where everything has been set up, fail it."""
    if ON_CI:
        pytest.fail(f"{what}, and CI=true: a skipped test would look like a passed one")
    pytest.skip(what)


def run_limited(
    command: Sequence[str | Path], timeout: float, env: Mapping[str, str] | None = None, cwd: Path = REPO
) -> Outcome:
    """Run `command` to its end; past `timeout` seconds end it with all its descendants, and fail the test.

    Args:
        env: variables added to those of the test process.
    """
    process = subprocess.Popen(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.terminate()  # mpirun passes it on to its ranks
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(TERM_GRACE_S)
        kill_session(process.pid)
        stdout, stderr = process.communicate()
        pytest.fail(f"{command} ran past timeout={timeout} s\nstdout: {stdout[-4000:]}\nstderr: {stderr[-4000:]}")
    except BaseException:
        kill_session(process.pid)
        raise
    return Outcome(process.returncode, stdout, stderr)


def kill_session(session: int) -> None:
    """SIGKILL to every process of a session: mpirun gives each rank a process group of its own, but not a session."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            if int(fields[3]) == session:
                os.kill(int(stat.parent.name), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            continue


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The top of the checkout."""
    return REPO


@pytest.fixture(scope="session")
def run_python(preloaded: list[str]) -> Callable[..., Outcome]:
    """`run_python(args, timeout=120, env=None, fresh=False)`: the real command line, `python run.py *args`.

    One thread each. Its imports are done beforehand, and those of the Python programs that it starts.

    Args:
        fresh: interpreters of their own, as a user starts them.
    """
    inside = {"OMP_NUM_THREADS": "1", STAND_IN: str(Path(preloaded[-1]).with_name("bin") / "python")}

    def run(
        args: Sequence[str | Path], timeout: float = 120, env: Mapping[str, str] | None = None, fresh: bool = False
    ) -> Outcome:
        if fresh:
            return run_limited([sys.executable, "run.py", *args], timeout, {"OMP_NUM_THREADS": "1", **(env or {})})
        return run_limited([*preloaded, "run.py", *args], timeout, {**inside, **(env or {})})

    return run


@pytest.fixture(scope="session")
def run_here() -> Callable[..., Outcome]:
    """`run_here(args)`: the command line without a new process, whose imports are most of what a small run costs."""
    import torch

    from fedhpc.cli.main import main
    from fedhpc.run.rounds.preemption import SIGNALS

    def run(args: Sequence[str | Path]) -> Outcome:
        threads, handlers = torch.get_num_threads(), [signal.getsignal(number) for number in SIGNALS]
        out, err = io.StringIO(), io.StringIO()
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                status = main([str(arg) for arg in args])
        finally:
            torch.set_num_threads(threads)
            for number, handler in zip(SIGNALS, handlers, strict=True):
                signal.signal(number, handler)
        return Outcome(status, out.getvalue(), err.getvalue())

    return run


class Mpi(NamedTuple):
    """The mpirun of this environment, and what setup.sh makes its default, for others too."""

    launcher: str
    env: Mapping[str, str]

    def command(self, n: int, args: Sequence[str | Path], python: Sequence[str] | None = None) -> list[str]:
        """`mpirun -n N python *args`."""
        return [self.launcher, "-n", str(n), *(python or [sys.executable]), *map(str, args)]

    def start_env(self) -> dict[str, str]:
        """The variables of one start: those of every start, and a folder for mpirun that no earlier start has used."""
        return {**self.env, MPI_FOLDERS: tempfile.mkdtemp(dir=STATE)}


@pytest.fixture(scope="session")
def mpi() -> Mpi:
    """How this environment starts MPI programs: oversubscribed, unbound, root allowed."""
    beside = Path(sys.executable).parent / "mpirun"
    launcher = str(beside) if beside.exists() else shutil.which("mpirun")
    if launcher is None:
        missing("there is no mpirun")
    allowed = {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        "PRTE_MCA_hwloc_default_binding_policy": "none",
        "OMP_NUM_THREADS": "1",
    }
    return Mpi(launcher, allowed)


class Server(NamedTuple):
    """A running server of tests/support/preloaded.py."""

    address: str
    process: subprocess.Popen[bytes]


def start_server() -> Server:
    """Start a server that ends with this process; it answers as soon as its address exists."""
    folder = Path(tempfile.mkdtemp(dir=STATE))
    address = str(folder / "server")
    make_stand_in(folder / "bin", shlex.quote(address))
    env = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, PRELOADED, "serve", address], cwd=REPO, env=env)
    atexit.register(process.terminate)
    return Server(address, process)


def make_stand_in(folder: Path, address: str) -> Path:
    """A folder like that of this interpreter, whose `python` asks the server: for programs that start others.

    Args:
        address: of the server, as a word of the shell. Where none is there, the interpreter itself runs.
    """
    folder.mkdir(parents=True)
    for tool in Path(sys.executable).parent.iterdir():
        if not tool.name.startswith("python"):
            (folder / tool.name).symlink_to(tool)
    python = folder / "python"
    real = shlex.quote(sys.executable)
    lines = (
        "#!/bin/sh",
        f"server={address}",
        '[ -S "$server" ] || exec ' + f'{real} "$@"',
        '[ "$1" != -u ] || shift',
        f'case "$1" in -[!cm]*) exec {real} "$@";; esac',
        f'exec {real} -I -S {shlex.quote(str(PRELOADED))} start "$server" "$@"',
    )
    python.write_text("\n".join([*lines, ""]), encoding="utf-8")
    python.chmod(0o755)
    return python


@pytest.fixture(scope="session")
def preloaded() -> list[str]:
    """What stands in for `python` in a command, where its imports have been done (tests/support/preloaded.py)."""
    address = os.environ.get(SERVER) or start_server().address
    until = time.monotonic() + SERVER_START_S
    while not Path(address).exists():
        if time.monotonic() > until:
            pytest.fail("the server of preloaded programs did not start")
        time.sleep(0.02)
    return [sys.executable, "-I", "-S", str(PRELOADED), "start", address]


@pytest.fixture(scope="session")
def mpirun(mpi: Mpi, preloaded: list[str]) -> Callable[..., Outcome]:
    """`mpirun(n, args, timeout=120, env=None, fresh=False)`: `mpirun -n N python *args`, imports done beforehand.

    Args:
        args: what comes after `python`: a script and its arguments, or `-c` and a program.
        fresh: each rank an interpreter of its own, as a user starts them.
    """

    def run(
        n: int,
        args: Sequence[str | Path],
        timeout: float = 120,
        env: Mapping[str, str] | None = None,
        fresh: bool = False,
    ) -> Outcome:
        command = mpi.command(n, args, None if fresh else preloaded)
        return run_limited(command, timeout, {**mpi.start_env(), **(env or {})})

    return run


@pytest.fixture(scope="session")
def mpirun_killed_when(mpi: Mpi, preloaded: list[str]) -> Callable[..., None]:
    """`mpirun_killed_when(reached, n, args)`: start it, and SIGKILL every process of it as soon as `reached()`."""

    def run(reached: Callable[[], bool], n: int, args: Sequence[str | Path], timeout: float = 120) -> None:
        process = subprocess.Popen(
            mpi.command(n, args, preloaded),
            cwd=REPO,
            env={**os.environ, **mpi.start_env()},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        until = time.monotonic() + timeout
        try:
            while not reached():
                if process.poll() is not None or time.monotonic() > until:
                    pytest.fail(f"{args} ended ({process.returncode}) or took {timeout} s before it came so far")
                time.sleep(0.002)
        finally:
            kill_session(process.pid)
            process.wait()

    return run
