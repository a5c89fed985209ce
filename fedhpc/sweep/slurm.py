"""A sweep on SLURM, by submitit: one array of MPI jobs, and a job after it that makes the report.

submitit's tasks are the MPI ranks. What it does badly for MPI is done otherwise here (`fedhpc.sweep.trial`): an
exception at one rank ends all of them; told to stop, all ranks save a whole round and end, and only then is the job
queued again, once and by its script: a step that is killed leaves behind what its successor of the same number falls
over. The bound on that is SLURM's own count of restarts.
"""

import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from fedhpc.errors import InputError
from fedhpc.run.rounds.preemption import SIGNALS
from fedhpc.sweep.config import Sweep, ranks_of
from fedhpc.sweep.directory import SweepDirectory
from fedhpc.sweep.environment import CHECKOUT, SAFE_PATH, outside_of_any_job
from fedhpc.sweep.final_report import write_report
from fedhpc.sweep.local import command_of
from fedhpc.sweep.resources import Slurm
from fedhpc.sweep.slurm_queue import requeue
from fedhpc.sweep.trial_directory import TrialDirectory, again_file, beginning

REPORT_MIN = 15
MB_PER_GB = 1024
ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",
    # Ranks that wait must not take the core of those that train.
    "OMPI_MCA_mpi_yield_when_idle": "1",
    # With SLURM's default fence Open MPI 5 crashed in one start of four over several nodes; with this one in none.
    "SLURM_PMIX_FENCE": "ring",
}


class _Executor(submitit.SlurmExecutor):
    """submitit's, which can also be made where there is no SLURM, to look at its scripts."""

    @classmethod
    def affinity(cls) -> int:
        return 2

    def script(self, jobs: int) -> str:
        """Return what sbatch would be given for so many jobs."""
        if jobs > 1:
            self.parameters["map_count"] = jobs
        return self._make_submission_file_text(self._submitit_command_str, "")


def scripts(directory: SweepDirectory, sweep: Sweep, count: int) -> dict[str, str]:
    """Return the scripts of `count` trials and of the report, as they would be given to sbatch."""
    after = f"afterany:{{job id of {sweep.name}}}"
    return {
        sweep.name: _executor(directory, trial_parameters(directory, sweep)).script(count),
        f"{sweep.name}-report": _executor(directory, report_parameters(sweep, after)).script(1),
    }


def submit(directory: SweepDirectory, sweep: Sweep, names: Sequence[str]) -> dict[str, str]:
    """Hand the named trials over as one array; their job ids by name.

    Raises:
        InputError: where there is no SLURM, or it refuses.
    """
    if shutil.which("sbatch") is None:
        raise InputError(
            "there is no sbatch here: log in to the cluster, or use --cluster local on this machine",
            code="slurm.not-here",
        )
    if "%" in str(directory.logs.resolve()):
        raise InputError(
            f"{directory.logs.resolve()}: SLURM reads % in a path in its own way; use another --run-dir",
            code="slurm.path",
        )
    executor = _executor(directory, trial_parameters(directory, sweep))
    paths = [str(directory.trial(name).path.resolve()) for name in names]
    try:
        with outside_of_any_job(), executor.batch():
            jobs = [_submitted(executor, sweep, path) for path in paths]
    except (FailedJobError, FailedSubmissionError) as error:
        raise InputError(
            f"sbatch refused the sweep: {str(error).strip()}; correct its section slurm", code="slurm.refused"
        ) from None
    return {name: str(job.job_id) for name, job in zip(names, jobs, strict=True)}


def submit_report(directory: SweepDirectory, sweep: Sweep, job: str) -> str:
    """Hand over what makes the report, after all trials of the array that `job` is of; its job id.

    Raises:
        InputError: where SLURM refuses.
    """
    after = _executor(directory, report_parameters(sweep, f"afterany:{job.partition('_')[0]}"))
    try:
        with outside_of_any_job():
            return str(after.submit(make_report, str(directory.path.resolve())).job_id)
    except (FailedJobError, FailedSubmissionError) as error:
        raise InputError(
            f"the trials are submitted, but sbatch refused the report: {str(error).strip()}; make it yourself when "
            f"they have ended: python run.py report {directory.path}",
            code="slurm.refused",
        ) from None


def _submitted(executor: _Executor, sweep: Sweep, path: str) -> Any:
    if sweep.slurm.mpi == "mpirun":
        ranks = ranks_of(sweep) if TrialDirectory(Path(path)).read_commands().trains else 1
        return executor.submit(run_by_mpirun, path, ranks, sweep.slurm.requeues)
    return executor.submit(run_under_srun, path, sweep.slurm.requeues)


def _executor(directory: SweepDirectory, parameters: Mapping[str, Any]) -> _Executor:
    # Without srun the program takes the place of the script's shell, and so gets the signals that SLURM sends to that.
    python = shlex.quote(sys.executable) if parameters["use_srun"] else f"exec {shlex.quote(sys.executable)}"
    executor = _Executor(folder=directory.logs.resolve(), python=python)
    executor.update_parameters(**parameters)
    return executor


def trial_parameters(directory: SweepDirectory, sweep: Sweep) -> dict[str, Any]:
    """submitit's parameters of the array."""
    slurm, ranks = sweep.slurm, ranks_of(sweep)
    by_srun = slurm.mpi != "mpirun"
    memory = slurm.memory_gb_per_rank
    return {
        **_common(slurm),
        "job_name": sweep.name,
        "time": slurm.time_min,
        "nodes": slurm.nodes,
        "ntasks_per_node": ranks // slurm.nodes,
        "cpus_per_task": slurm.cpus_per_rank,
        "gpus_per_task": slurm.gpus_per_rank or None,
        "mem_per_cpu": memory and f"{math.ceil(memory * MB_PER_GB / slurm.cpus_per_rank)}M",
        "constraint": slurm.constraint,
        "gres": slurm.gres,
        "array_parallelism": slurm.at_once or len(sweep.trials),
        "use_srun": by_srun,
        "teardown": _requeueing(directory) if by_srun else None,
        "srun_args": [f"--mpi={slurm.mpi}", "--kill-on-bad-exit=1"] if by_srun else None,
    }


def _requeueing(directory: SweepDirectory) -> list[str]:
    """Shell lines after the ranks have ended."""
    return [
        "status=$?",
        f"again={shlex.quote(str(again_file(directory.path, '').resolve()))}$SLURM_JOB_ID",
        # SLURM ends this script.
        'if [ -e "$again" ]; then rm "$again" && scontrol requeue "$SLURM_JOB_ID" && sleep 60; fi',
        "exit $status",
    ]


def report_parameters(sweep: Sweep, dependency: str) -> dict[str, Any]:
    """submitit's parameters of the job that makes the report, on one core."""
    return {
        **_common(sweep.slurm),
        "job_name": f"{sweep.name}-report",
        "time": REPORT_MIN,
        "nodes": 1,
        "ntasks_per_node": 1,
        "cpus_per_task": 1,
        "dependency": dependency,
        "use_srun": False,
    }


def _common(slurm: Slurm) -> dict[str, Any]:
    variables = {**ENVIRONMENT, "OMP_NUM_THREADS": slurm.cpus_per_rank, "SRUN_CPUS_PER_TASK": slurm.cpus_per_rank}
    told = f"{'B:' if slurm.mpi == 'mpirun' else ''}USR1@{slurm.signal_s}"
    path = f'export PYTHONPATH={shlex.quote(str(CHECKOUT))}"${{PYTHONPATH:+:$PYTHONPATH}}"'
    exports = [f"export {name}={value}" for name, value in variables.items()]
    return {
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        # submitit's own would be refused by clusters that check it.
        "wckey": None,
        # One log for standard output and error, in the order of what happened.
        "stderr_to_stdout": True,
        "setup": [*exports, path, *slurm.setup, *(f"export {name}={value}" for name, value in SAFE_PATH.items())],
        # Not submitit's SIGUSR2: the one that `run.py train` heeds.
        "additional_parameters": {"requeue": True, "signal": told, **slurm.extra},
    }


def run_under_srun(path: str, requeues: int) -> str:
    """One rank of a trial, in a task of submitit's; see `fedhpc.sweep.trial.run_trial`."""
    # It imports torch, which submitting needs not.
    from fedhpc.sweep.trial import run_trial

    return run_trial(path, requeues)


def run_by_mpirun(path: str, ranks: int, requeues: int) -> None:
    """One trial by mpirun over the job's allocation, for an MPI that SLURM cannot start.

    Raises:
        RuntimeError: where it failed.
    """
    process = subprocess.Popen(command_of(Path(path), ranks, requeues))
    for number in SIGNALS:
        # mpirun passes it on to the ranks.
        signal.signal(number, lambda number, frame: process.send_signal(signal.SIGUSR1))
    status, folder = process.wait(), TrialDirectory(Path(path))
    again = folder.again(os.environ["SLURM_JOB_ID"])
    if again.exists():
        again.unlink()
        requeue(os.environ["SLURM_JOB_ID"])
    # Not by mpirun's status alone: with a lost daemon, or under ULFM, it is 0 though its ranks were killed.
    message = (
        f"mpirun ended with status {status}, and the run had not ended; its log is in the folder jobs of the sweep"
    )
    folder.note_death(beginning(os.environ["SLURM_JOB_ID"]), message)
    ended = folder.outcome()
    if status or ended is None or ended.state == "failed":
        raise RuntimeError(message if ended is None else ended.message)


def make_report(path: str) -> None:
    """The last job of a sweep."""
    write_report(Path(path))
