"""`run.py world`, which slurm/launch.sh asks whether a launcher fits the MPI."""

import re
import sys
from pathlib import Path

from tests.conftest import run_limited


def test_mpi_library_that_is_not_there_is_one_message(tmp_path: Path) -> None:
    """mpi4py loads the library that the environment names, as a cluster's module does."""
    done = run_limited(
        [sys.executable, "run.py", "world"],
        60,
        {"MPI4PY_LIBMPI": str(tmp_path / "libmpi.so"), "LD_LIBRARY_PATH": str(tmp_path)},
    )
    assert done.returncode == 2, done
    assert re.match(r"error: the MPI library cannot be loaded on \S+ \(.*\)\. Load the MPI module", done.stderr)
    assert "Traceback" not in done.stderr
