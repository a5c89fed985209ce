"""One trial of a sweep at one rank: `run.py train` in its directory, and a file that tells how it ended.

Started by submitit's tasks under srun, or by `python -m fedhpc.sweep.trial DIRECTORY REQUEUES` under mpirun or alone.
It trains as `run.py train DIRECTORY/element.yaml --run-dir DIRECTORY` would, which can also be used to go on by hand.
"""

import logging
import os
import sys
from pathlib import Path

from fedhpc.errors import FileError, InputError, RankLostError, Stopped, printed
from fedhpc.run.preemption import StopRequest
from fedhpc.sweep.directory import Outcome, TrialDirectory, beginning
from fedhpc.sweep.slurm_queue import is_running
from fedhpc.util.files import write_bytes
from fedhpc.util.log import configure
from fedhpc.util.startup import Startup

LOG = logging.getLogger("fedhpc.sweep.trial")  # also where this module is run as __main__
FAILED, BAD_INPUT, RESUMABLE = 1, 2, 75


def run_trial(path: str, requeues: int) -> str:
    """Train the trial in the directory `path`, from where it stands to its end.

    Args:
        path: absolute.
        requeues: how often it may be queued again when it was told to stop; 0 outside SLURM.

    Returns:
        why it ended: "finished", "budget" or "preempted".

    Raises:
        Exception: whatever went wrong at this rank, after it was written down; the other ranks are ended too.
    """
    # Before all that takes seconds to import. It takes the place of submitit's handlers, which at rank 0 raise in the
    # middle of a round and elsewhere do nothing.
    notice = StopRequest()
    notice.listen()
    startup = Startup()
    from fedhpc.run.agreement import Source
    from fedhpc.run.train import Machine, Work, train
    from fedhpc.transport.base import Wire
    from fedhpc.transport.mpi import abort_at_exit, connect

    folder, rank = TrialDirectory(Path(path)), int(os.environ.get("SLURM_PROCID", "0"))
    begun = beginning(_job_id())
    wire: Wire | None = None
    try:
        wire = connect()
        rank = wire.rank
        startup.mark("MPI")
        if rank == 0:
            folder.write_outcome(begun)
        stopped = train(Work(Source(folder.config, [], folder.path)), Machine(wire, notice, startup))
    except InputError as error:
        # All ranks raise it with the same message, but for a file that this rank alone cannot read or write.
        if isinstance(error, FileError) and wire is not None:
            folder.end(begun, "failed", f"rank {rank}: {printed(error)}")
            abort_at_exit(BAD_INPUT)
        elif rank == 0:
            folder.end(begun, "failed", printed(error))
        raise
    except Stopped as stop:
        if wire is not None and wire.size > 1:
            abort_at_exit(stop.status)
        stopped = "preempted"
    except RankLostError as error:
        LOG.warning("%s", printed(error))
        abort_at_exit(RESUMABLE)
        stopped = "preempted"
    except BaseException as error:
        folder.end(begun, "failed", f"rank {rank}: {printed(error)}")
        abort_at_exit(FAILED)
        raise
    if rank == 0:
        _end(folder, begun, stopped, requeues)
    return stopped


def _end(folder: TrialDirectory, begun: Outcome, stopped: str, requeues: int) -> None:
    if stopped != "preempted":
        folder.end(begun, "finished", stopped)
        return
    restarts, why = int(os.environ.get("SLURM_RESTART_COUNT", "0")), "told to stop before its last round"
    if restarts >= requeues:
        why += f", after {restarts} restarts (slurm.requeues={requeues})"
    folder.end(begun, "stopped", why)
    if restarts < requeues and is_running(os.environ["SLURM_JOB_ID"]):
        # By now every rank has saved its round. The job is queued again when all have ended (`fedhpc.sweep.slurm`).
        write_bytes(folder.sweep.again(os.environ["SLURM_JOB_ID"]), b"")


def _job_id() -> str:
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID", "")


def main() -> int:
    """Without submitit's tasks: the arguments of `run_trial`; 0 also where it was told to stop: its file tells."""
    try:
        run_trial(sys.argv[1], int(sys.argv[2]))
    except InputError as error:
        configure()
        LOG.error("%s", printed(error))
        return BAD_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main())
