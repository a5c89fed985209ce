"""Exit statuses, and the message about what ended the process early."""

import sys
from contextlib import suppress

from fedhpc.errors import InputError, PayloadError, SiteError, Stopped, printed
from fedhpc.util.masking import masked

FINISHED, FAILED, BAD_INPUT, INCOMPLETE, RESUMABLE, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 75, 130, 143
STATUSES = """exit status:
  0    finished, or ended by the privacy budget
  1    failed; the message names the site, the rank and the cause
  2    bad input, or standard output cannot be written (a run goes on without
       it): nothing was lost; correct what the message names
  3    finished without a hospital that is declared (faults); the message and
       summary.json name it
  75   stopped early and saved: by --stop-after, SIGUSR1, SIGTERM during the
       rounds, or a rank that was lost; the same command goes on
  130  Ctrl-C: the rounds that were finished are kept, the same command goes on
       after them
  143  SIGTERM before the first round
mpirun and srun may report another status than their ranks: 1 or 143 for 75 and
130, and mpirun 0 for a failed run where a daemon was lost or under --with-ft
ulfm. `train --status FILE` writes the run's own; believe that one.

FEDHPC_WAIT_NOTICE_S (default: 60): after so many seconds rank 0 reports on
stderr which rank it is waiting for."""


def is_first_rank() -> bool:
    """Return whether this process prints the messages that all ranks share: rank 0, or the only one."""
    # Not what a launcher has put into the environment: a plain Python inside an allocation inherits that.
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is None or not mpi.Is_initialized() or mpi.Is_finalized():
        return True
    return bool(mpi.COMM_WORLD.Get_rank() == 0)


def report_stop(stop: BaseException) -> int:
    """Print in one line what ended this process early; return its exit status."""
    status, text = INTERRUPTED, "stopped by Ctrl-C; what was finished is kept, and the same command goes on from there"
    if isinstance(stop, Stopped):
        status, text = stop.status, str(stop)
    if is_first_rank():
        with suppress(BrokenPipeError):
            print(text, file=sys.stderr, flush=True)
    return status


def end_all(error: BaseException, rank: int, status: int) -> int:
    """Print a failure of this rank alone, and have the others ended as it exits: they wait for it; return `status`."""
    from fedhpc.transport.mpi_library import abort_at_exit

    report_failure(error, rank)
    abort_at_exit(status)
    return status


def report_failure(error: BaseException, rank: int) -> None:
    """Print a failure of this rank alone in one line; the traceback only where the cause is not a known one."""
    import logging
    import traceback

    text = "".join(traceback.format_exception(error))
    logging.getLogger(__name__).error("rank %d: %s", rank, masked(printed(error)) if rank else printed(error))
    if not isinstance(error, SiteError | PayloadError | InputError | MemoryError):
        # A launcher that is gone, with a lost node, reads no more; that must not hide the failure.
        with suppress(BrokenPipeError):
            print(masked(text) if rank else text, end="", file=sys.stderr, flush=True)
