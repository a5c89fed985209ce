"""One element of a sweep at one rank: `run.py train` in its directory, and a file that tells how it ended.

Started by submitit's tasks under srun, or by `python -m fedhpc.sweep.element DIRECTORY` under mpirun or alone. It
trains as `run.py train DIRECTORY/element.yaml --run-dir DIRECTORY` would, which can also be used to go on by hand.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from fedhpc.agreement import agree_on_config
from fedhpc.console import Console
from fedhpc.errors import InputError
from fedhpc.exchange.comm import Transport, abort_at_exit, connect
from fedhpc.launch import run
from fedhpc.session import open_session
from fedhpc.sweep.store import ElementDirectory, Outcome, beginning

FAILED, BAD_INPUT, RESUMABLE = 1, 2, 75


class OutOfTimeError(Exception):
    """An element that ran out of time more often than it may."""


def run_element(path: str, requeues: int) -> str:
    """Train the element in the directory `path`, from where it stands to its end.

    Args:
        path: absolute.
        requeues: how often SLURM may be asked to queue it again when its time is up.

    Returns:
        why it ended: "finished", "budget" or "preempted".

    Raises:
        Exception: whatever went wrong at this rank, after it was written down; the other ranks are ended too.
    """
    folder, rank = ElementDirectory(Path(path)), int(os.environ.get("SLURM_PROCID", "0"))
    begun = beginning(_job_id())
    try:
        transport = connect()
        rank = transport.rank
        if rank == 0:
            folder.write_outcome(begun)
        _heed_signals(rank, requeues)
        stopped = _train(folder, transport)
    except InputError as error:
        # All ranks raise it, with the same message.
        if rank == 0:
            folder.end(begun, "failed", str(error))
        raise
    except BaseException as error:
        folder.end(begun, "failed", f"rank {rank}: {error or type(error).__name__}")
        abort_at_exit(FAILED)
        raise
    if rank == 0:
        _end(folder, begun, stopped)
    return stopped


def _train(folder: ElementDirectory, transport: Transport) -> str:
    console = Console(speaks=transport.rank == 0)
    config, directory = agree_on_config(transport, (folder.config, []), folder.path)
    return run(open_session(config, directory, transport, console), None)


def _end(folder: ElementDirectory, begun: Outcome, stopped: str) -> None:
    if stopped == "preempted":
        folder.end(begun, "failed", "stopped before its last round; resume goes on from there")
    else:
        folder.end(begun, "finished", stopped)


def _job_id() -> str:
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID", "")


def _heed_signals(rank: int, requeues: int) -> None:
    """In place of submitit's handlers, which would outlive a cancelled job and count preemptions as time-outs.

    Every round that is over is saved at every rank, so that nothing needs to be saved in a handler.
    """
    if "SUBMITIT_EXECUTOR" not in os.environ:
        return
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def out_of_time(number: int, frame: FrameType | None) -> None:
        if rank == 0:
            _requeue(requeues)

    signal.signal(signal.SIGUSR2, out_of_time)


def _requeue(requeues: int) -> None:
    """Ask SLURM, once, to queue this job again; it then ends all ranks."""
    restarts, job = int(os.environ.get("SLURM_RESTART_COUNT", "0")), os.environ["SLURM_JOB_ID"]
    if restarts >= requeues:
        raise OutOfTimeError(
            f"out of time for the {restarts + 1}. time, and slurm.requeues={requeues}; `run.py sweep resume` goes on "
            "from the last round; raise slurm.time_min for the next sweep"
        )
    print(f"job {job}: out of time, asks to be queued again ({restarts + 1} of {requeues})", file=sys.stderr)
    subprocess.run(["scontrol", "requeue", job], check=True, timeout=60)


def main() -> int:
    """Without submitit: the directory is the only argument."""
    try:
        stopped = run_element(sys.argv[1], 0)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    return RESUMABLE if stopped == "preempted" else 0


if __name__ == "__main__":
    sys.exit(main())
