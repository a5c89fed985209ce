"""The transport on a real communicator: values as functions of (rank, size); waiting does not burn a core."""

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fedhpc.transport.base import AloneTransport
from fedhpc.transport.mpi import connect
from tests.conftest import Mpi, missing, run_limited

pytestmark = pytest.mark.mpi

PROGRAM = """
import json, sys, time
from pathlib import Path
from fedhpc.transport.mpi import connect
t = connect()
gathered = t.gather([bytes([t.rank]) * (n * 1000) for n in range(t.rank + 1)], "hello")
nothing = t.gather([], "hello")
word = t.broadcast(b"from 0" if t.rank == 0 else None, "hello")
empty = t.broadcast(b"" if t.rank == 0 else None, "hello")
start_cpu = time.process_time()
if t.rank == 0:
    time.sleep(2)
t.broadcast(b"late" if t.rank == 0 else None, "hello")
cpu_s = time.process_time() - start_cpu
result = {"rank": t.rank, "size": t.size, "local": [t.local_rank, t.local_size], "lengths": [len(p) for p in gathered],
          "firsts": [p[0] for p in gathered if p], "nothing": len(nothing), "word": word.decode(), "empty": len(empty),
          "cpu_s": cpu_s}
Path(sys.argv[1], f"{t.rank}.json").write_text(json.dumps(result))
"""


@pytest.mark.parametrize("ranks", [2, 5])
def test_gather_and_broadcast(mpirun: Callable[..., tuple[int, str, str]], tmp_path: Path, ranks: int) -> None:
    status, _, err = mpirun(ranks, ["-c", PROGRAM, tmp_path])
    assert status == 0, err
    results = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(ranks)]
    assert results[0]["lengths"] == [n * 1000 for rank in range(ranks) for n in range(rank + 1)]
    assert results[0]["firsts"] == [rank for rank in range(ranks) for n in range(1, rank + 1)]
    for rank, result in enumerate(results):
        assert (result["rank"], result["size"], result["local"]) == (rank, ranks, [rank, ranks])
        assert (result["word"], result["empty"], result["nothing"]) == ("from 0", 0, 0)
        assert rank == 0 or result["lengths"] == []
        # A rank that spun would have burnt most of the two seconds.
        assert result["cpu_s"] < 1


LATE = """
import sys, time
from pathlib import Path
from fedhpc.transport.mpi import ANSWER_TAG, CALL_TAG, connect
t = connect()
last, called = t.size - 1, Path(sys.argv[1], "called")
def until(is_so):
    while not is_so():
        time.sleep(0.01)
if t.rank == last:
    until(called.exists)
elif t.rank == 0:
    t.limit_waits(1)
    first = t._silent()
    t.limit_waits(None)
    called.touch()
    # Which answers to that call as soon as it waits.
    until(lambda: t._comm.Iprobe(source=last, tag=ANSWER_TAG))
t.gather([b""], "hello")
if t.rank == last:
    until(lambda: not called.exists())
elif t.rank == 0:
    t.limit_waits(1)
    second = t._silent()
    called.unlink()
    print("silent", last in first, last in second, flush=True)
t.limit_waits(None)
t.gather([b""], "hello")
if t.rank == last:
    t._has_answered()
t.limit_waits(3)
if t.rank == last:
    until(lambda: t._comm.Iprobe(source=0, tag=CALL_TAG))
got = t.broadcast(bytes(2**20) if t.rank == 0 else None, "hello")
t.gather([b""], "hello")
print("got", len(got), flush=True)
"""


def test_rank_that_comes_late_is_not_taken_for_lost(
    mpirun: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    """One that comes while rank 0 calls it goes on with the others; what it answered late says nothing of later."""
    status, out, err = mpirun(3, ["-c", LATE, tmp_path])
    assert status == 0, err
    assert sorted(out.split("\n"))[-4:] == ["got 1048576"] * 3 + ["silent True True"], out


FAILING = """
import sys, time
from pathlib import Path
from fedhpc.cli import main, train
from fedhpc.errors import InputError
def failing(source, transport, *others):
    if transport.rank == 1:
        Path(sys.argv[1]).write_text(str(time.time()))
        raise InputError("a ledger cannot be read")
    transport.gather([b""], "control")
    transport.broadcast(b"" if transport.rank == 0 else None, "control")
train._train = failing
sys.exit(main.main(["train", "none.yaml"]))
"""


def test_all_ranks_end_within_10_s_of_a_failure(mpirun: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    """Of bad input that one rank alone has found, too: it ended that rank without a word, and the others waited.

    Where a machine is so busy that their start took longer than 10 s, they end within the time of the start.
    """
    began_s = time.time()
    status, _, err = mpirun(4, ["-c", FAILING, tmp_path / "failed_at"])
    ended_s = time.time()
    assert status != 0
    assert "error: rank 1: a ledger cannot be read [input]" in err
    failed_s = float((tmp_path / "failed_at").read_text())
    assert ended_s - failed_s < max(10, failed_s - began_s)


def test_alone() -> None:
    transport = AloneTransport()
    assert transport.gather([b"a", b"b"], "update") == [b"a", b"b"]
    assert list(transport.stream([b"a", b"b"], "update")) == [b"a", b"b"]
    assert transport.broadcast(b"x", "update") == b"x"
    with pytest.raises(ValueError, match="rank 0 must pass"):
        transport.broadcast(None, "update")


@pytest.mark.skipif("OMPI_COMM_WORLD_SIZE" in os.environ, reason="already under mpirun")
def test_slurm_with_the_wrong_mpi_is_refused(mpirun: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    """A world of one where SLURM started four tasks: asked in a process of its own, since it starts MPI."""
    program = (
        "import os; os.environ['SLURM_STEP_NUM_TASKS'] = '4'\n"
        "for name in list(os.environ):\n"
        "    if name.startswith(('OMPI_', 'PMIX_', 'PRTE_')): del os.environ[name]\n"
        "from fedhpc.transport.mpi import connect\n"
        "from fedhpc.errors import InputError\n"
        "try: connect()\n"
        "except InputError as error: print(error)\n"
    )
    status, out, err = mpirun(1, ["-c", program])
    assert status == 0, err
    assert "SLURM started 4 tasks" in out
    assert "--mpi=pmix" in out


def test_without_a_launcher_there_is_no_mpi(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    assert isinstance(connect(), AloneTransport)


WAYS = """
import hashlib, json, sys
from pathlib import Path
from mpi4py import MPI
from fedhpc.transport.mpi import MpiTransport
rank, SITES = MPI.COMM_WORLD.Get_rank(), [5, 2, 0, 1, 4, 2, 5]
payloads = [bytes([rank, n]) * (rank * 700 + n) for n in range(rank % 3)]
told = {}
tree, short = {"tree_from": 2}, {"wave_bytes": 100}
for name, how in {"flat": {}, "waves": {"wave_bytes": 999}, "tree": tree, "both": {**tree, **short}}.items():
    transport = MpiTransport(MPI.COMM_WORLD, **how)
    got = [transport.gather(payloads, "update"), transport.gather([b"x"], "control")]
    transport.deliver_by_site(SITES)
    got.append(transport.gather(payloads, "update"))
    assert all(map(transport.shares_host, range(7)))
    told[name] = hashlib.sha256(repr(got).encode()).hexdigest() if rank == 0 else [len(part) for part in got]
Path(sys.argv[1], f"{rank}.json").write_text(json.dumps(told))
"""


def test_tree_and_waves_bring_the_bytes_of_the_flat_gather(
    mpirun: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    """Seven ranks are groups of three, three and one; payloads of none to two a rank, longer than many waves.

    By rank, and by site: rank 0 is to have a site, and sends nothing for it.
    """
    status, _, err = mpirun(7, ["-c", WAYS, tmp_path])
    assert status == 0, err
    results = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(7)]
    sent = {(rank, n): bytes([rank, n]) * (rank * 700 + n) for rank in range(7) for n in range(rank % 3)}
    by_site = [sent[place] for place in [(5, 0), (2, 0), (1, 0), (4, 0), (2, 1), (5, 1)]]
    expected = [list(sent.values()), [b"x"] * 7, by_site]
    assert set(results[0].values()) == {hashlib.sha256(repr(expected).encode()).hexdigest()}
    assert all(list(result.items()) == [(way, [0, 0, 0]) for way in results[0]] for result in results[1:])


BIG = """
import sys, zlib
from pathlib import Path
import numpy as np
from fedhpc.transport.mpi import connect
transport, size = connect(), int(sys.argv[2])
here = np.resize(np.arange(251, dtype=np.uint8), size if transport.rank else 0).tobytes()
crc = zlib.crc32(here)
got = [(len(p), zlib.crc32(p)) for p in transport.stream([here] if transport.rank else [], "update")]
Path(sys.argv[1], str(transport.rank)).write_text(repr(got if transport.rank == 0 else [(size, crc)]))
"""


@pytest.mark.slow
def test_a_message_of_2_5_gib(mpirun: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    """More than the 2^31 - 1 bytes that a count of MPI can say."""
    free_gb = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9
    if free_gb < 10:
        missing(f"{free_gb:.1f} GB of memory are free, and 2.5 GiB at both ends take 10")
    status, _, err = mpirun(2, ["-c", BIG, tmp_path, str(5 * 2**29)], timeout=280)
    assert status == 0, err
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text()
    assert (tmp_path / "0").read_text().startswith("[(2684354560, ")


PEAK = """
import ctypes, json, resource, sys
import numpy as np
from fedhpc.compression.codec import encode
from fedhpc.transport.mpi import connect
from fedhpc.compression.error_feedback import CompressionConfig
from fedhpc.compression.update import SparseVector, Update
from fedhpc.algorithms.fedavg import mean_update
from fedhpc.algorithms.round_types import RoundConfig
from fedhpc.algorithms.run_state import RunState

M_MMAP_THRESHOLD = -3
assert ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**20)
transport, d = connect(), 2_000_000
values = np.random.default_rng(transport.rank).uniform(0.5, 1, d).astype(np.float32)
before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for each in map(int, sys.argv[1:]):
    names = tuple(f"site{i}" for i in range(2 * each))
    terms = RoundConfig(1, CompressionConfig(1), CompressionConfig(1), names, (1,) * len(names))
    mine = range((transport.rank - 1) * each, transport.rank * each) if transport.rank else ()
    payloads = [encode(Update(i, 0, SparseVector(d, np.arange(d), values))) for i in mine]
    received = transport.stream(payloads, "update")
    if transport.rank == 0:
        mean = mean_update(received, RunState(0, np.zeros(d, np.float32)), terms).mean
        peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found = {"mb": (peak_kb - before_kb) / 1024, "mean": float(mean[:1000].astype(np.float64).sum())}
        print(json.dumps(found), flush=True)
        del mean
"""


def test_memory_of_rank_0_does_not_grow_with_the_hospitals(mpirun: Callable[..., tuple[int, str, str]]) -> None:
    """Dense updates of 2 M entries, 8 MB each: together those of 20 hospitals are 96 MB more than those of 8.

    What is freed goes back to the system at once, so that the peak is of what is held. It only rises, so the more
    hospitals come second.
    """
    status, out, err = mpirun(3, ["-c", PEAK, "4", "10"])
    assert status == 0, err
    few, many = map(json.loads, out.splitlines())
    assert few["mb"] > 8, "an update and the mean"
    assert many["mb"] < few["mb"] + 8, "less than one update"
    assert few["mean"] == pytest.approx(many["mean"], abs=1e-3)


KILLED = """
import os, signal, sys, time
from contextlib import suppress
from fedhpc.errors import FedhpcError
from fedhpc.transport.mpi import MpiTransport, connect
t = connect()
if t.rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
told, forged = list(t._pids), [-1, 0, os.getppid(), *t._pids]
if t.rank == 3:
    print("pids", [t._pid_here(rank) == told[rank] for rank in (0, 2)], flush=True)
    for pid in forged:
        t._pids = [pid, pid, told[0], pid]
        if t._pid_here(2) is not None or (pid != told[0] and t._pid_here(0) is not None):
            print("would kill", pid, flush=True)
    t._pids = told
try:
    t.gather([b"x"], "hello")
except Exception as error:
    print(type(error).__name__, error, flush=True)
hosts = MpiTransport._all_hosts
def opening(self):
    if t.rank == 2:
        # Open MPI 5.0.11 crashes where a rank is lost while others still shrink.
        while len(os.listdir(sys.argv[1])) < 2:
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    open(os.path.join(sys.argv[1], str(t.rank)), "w").close()
    return hosts(self)
MpiTransport._all_hosts = opening
left, alive = t.shrunk()
print("left", alive, b"".join(left.gather([b"ab"], "hello")), flush=True)
with suppress(FedhpcError):  # whoever ends first is lost to the other, who has printed by then
    left.gather([b""], "hello")
    left.broadcast(b"" if left.rank == 0 else None, "hello")
os._exit(1)
"""


def test_ranks_that_died_under_ulfm_are_said_and_left_out(mpi: Mpi, tmp_path: Path) -> None:
    """There the launcher does not end the others: MPI tells them at their next message.

    A second one dies while those that are left agree on who they are, where only some of them may notice it.
    """
    launcher, *words = mpi.command(4, ["-c", KILLED, str(tmp_path)])
    done = run_limited([launcher, "--with-ft", "ulfm", *words], 60, mpi.start_env())
    assert "RankLostError a message could not be exchanged" in done.stdout, done
    assert "another rank has ended" in done.stdout
    # A process id is what its rank has said: of -1, every process of the account would be killed for a rank that hangs.
    assert "pids [True, True]" in done.stdout and "would kill" not in done.stdout, done
    assert sorted(line for line in done.stdout.splitlines() if line.startswith("left")) == [
        "left [0, 3] b''",
        "left [0, 3] b'abab'",
    ], done
