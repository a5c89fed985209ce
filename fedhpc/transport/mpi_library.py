"""The MPI library and the launcher: what a process knows of them without a transport."""

import os
import socket
from types import ModuleType

from fedhpc.errors import InputError

LAUNCHER_SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS", "SLURM_STEP_NUM_TASKS")
FAULT_TOLERANT = "OMPI_MCA_mpi_ft_enable"
"""What `mpirun --with-ft ulfm` sets for its ranks: those that are left may go on after one has ended."""


def is_launched() -> bool:
    """Return whether a launcher has started this process as one of several ranks."""
    return any(int(os.environ.get(name, "1")) > 1 for name in LAUNCHER_SIZE_VARIABLES)


def is_fault_tolerant() -> bool:
    """Return whether ranks can go on after one has ended: under `mpirun --with-ft ulfm`."""
    return os.environ.get(FAULT_TOLERANT, "") in ("1", "true")


def world_size() -> int:
    """Return how many ranks the MPI library sees; it starts MPI, whoever started this process."""
    size: int = load_mpi().COMM_WORLD.Get_size()
    return size


def library_version() -> str:
    """Return the MPI library's name and version, in short; it starts MPI."""
    said: str = load_mpi().Get_library_version()
    return " ".join(said.strip("\0").splitlines()[0].partition(",")[0].split())


def abort_at_exit(status: int) -> None:
    """Make this process end the whole MPI job with `status` when it exits: the others may wait for it in a collective.

    `comm.Abort` at once would lose the message and, under some launchers, be recorded as success.
    """
    from mpi4py import run

    run.set_abort_status(status)


def load_mpi() -> ModuleType:
    """Return mpi4py.MPI, whose import starts MPI: only where a launcher has prepared a world.

    Raises:
        InputError: where the MPI library cannot be loaded.
    """
    try:
        from mpi4py import MPI
    except ModuleNotFoundError:
        raise
    except (ImportError, RuntimeError) as error:
        cause = str(error).partition("\n")[0]
        raise InputError(
            f"the MPI library cannot be loaded on {socket.gethostname()} ({cause}). Load the MPI module that this "
            "environment was installed with, or activate the environment that brings its own (`. .venv/bin/activate`)",
            code="mpi.library",
        ) from None
    return MPI
