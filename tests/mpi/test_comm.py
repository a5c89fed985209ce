"""The transport on a real communicator: values as functions of (rank, size); waiting does not burn a core."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fedhpc.exchange.comm import AloneTransport, connect

pytestmark = pytest.mark.mpi

PROGRAM = """
import json, sys, time
from pathlib import Path
from fedhpc.exchange.comm import connect
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


FAILING = """
import sys, time
from pathlib import Path
from fedhpc.exchange.comm import abort_at_exit, connect
t = connect()
if t.rank == 1:
    Path(sys.argv[1]).write_text(str(time.time()))
    abort_at_exit(1)
    sys.exit(1)
t.gather([b""], "control")
t.broadcast(b"" if t.rank == 0 else None, "control")
"""


def test_all_ranks_end_within_10_s_of_a_failure(mpirun: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    status, _, _ = mpirun(4, ["-c", FAILING, tmp_path / "failed_at"])
    assert status != 0
    assert time.time() - float((tmp_path / "failed_at").read_text()) < 10


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
        "from fedhpc.exchange.comm import connect\n"
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
