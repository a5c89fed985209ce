"""One trial of a sweep at one rank: `run.py train` in its directory, and a file that tells how it ended.

Started by submitit's tasks under srun, or by `python -m fedhpc.sweep.trial DIRECTORY REQUEUES` under mpirun or alone.
It trains as `run.py train DIRECTORY/element.yaml --run-dir DIRECTORY` would, which can also be used to go on by hand.
"""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fedhpc.errors import InputError, RankLostError, Stopped, is_of_one_rank, printed
from fedhpc.run.rounds.preemption import StopRequest
from fedhpc.sweep.slurm_queue import is_running
from fedhpc.sweep.trial_commands import job_id, run_commands, run_commands_alone
from fedhpc.sweep.trial_directory import Commands, Outcome, TrialDirectory, beginning
from fedhpc.util.core_files import forbid_core_files
from fedhpc.util.files import write_bytes
from fedhpc.util.log import configure
from fedhpc.util.startup import Startup

LOG = logging.getLogger("fedhpc.sweep.trial")  # also where this module is run as __main__
FAILED, BAD_INPUT, RESUMABLE = 1, 2, 75


def run_trial(path: str, requeues: int) -> str:
    """Do the trial in the directory `path`, from where it stands to its end: train, and run its commands.

    Args:
        path: absolute.
        requeues: how often it may be queued again when it was told to stop; 0 outside SLURM.

    Returns:
        why it ended: "finished", "budget" or "preempted".

    Raises:
        Exception: whatever went wrong at this rank, after it was written down; the other ranks are ended too.
    """
    forbid_core_files()
    folder = TrialDirectory(Path(path))
    more = folder.read_commands()
    if not more.trains:
        return run_commands_alone(folder, more.commands) if _rank() == 0 else "finished"
    return _train(folder, more, requeues)


def _train(folder: TrialDirectory, more: Commands, requeues: int) -> str:
    # Before all that takes seconds to import. It takes the place of submitit's handlers, which at rank 0 raise in the
    # middle of a round and elsewhere do nothing.
    notice = StopRequest()
    notice.listen()
    startup = Startup()
    from fedhpc.run.start.agreement import Source
    from fedhpc.run.train import Machine, Work, train
    from fedhpc.transport.base import Wire
    from fedhpc.transport.mpi import connect

    rank, begun = _rank(), beginning(job_id())
    wire: Wire | None = None
    try:
        wire = connect()
        rank = wire.rank
        startup.mark("MPI")
        if rank == 0:
            folder.write_outcome(begun)
        stopped = train(Work(Source(folder.config, [], folder.path)), Machine(wire, notice, startup))
        _run_commands(rank, more.commands if stopped != "preempted" else (), folder, notice)
    except BaseException as error:
        ranks = 1 if wire is None else wire.size
        failure = _end_others(error, rank, ranks)
        if failure:
            folder.end(begun, "failed", failure)
        if not isinstance(error, RankLostError | Stopped):
            raise
        stopped = "preempted"
    if rank == 0:
        _end(folder, begun, stopped, requeues)
    return stopped


def _end_others(error: BaseException, rank: int, ranks: int) -> str:
    """Have the other ranks ended where they wait for this one; return what to write down as the failure, if anything.

    Args:
        error: what ended the trial at this rank.
        rank: this one.
        ranks: how many there are.
    """
    from fedhpc.transport.mpi_library import abort_at_exit

    if isinstance(error, RankLostError):
        LOG.warning("%s", printed(error))
        abort_at_exit(RESUMABLE)
        return ""
    if isinstance(error, Stopped):
        if ranks > 1:
            abort_at_exit(error.status)
        return ""
    if isinstance(error, InputError) and not is_of_one_rank(error, ranks):
        return "" if rank else printed(error)
    abort_at_exit(BAD_INPUT if isinstance(error, InputError) else FAILED)
    return f"rank {rank}: {printed(error)}"


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
        write_bytes(folder.again(os.environ["SLURM_JOB_ID"]), b"")


def _run_commands(rank: int, commands: Sequence[Sequence[str]], folder: TrialDirectory, notice: StopRequest) -> None:
    """Run what follows the training, at rank 0; from here on a signal ends it at once."""
    if rank == 0 and commands:
        notice.in_rounds = False
        run_commands(folder, commands)


def _rank() -> int:
    return int(os.environ.get("SLURM_PROCID", "0"))


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
