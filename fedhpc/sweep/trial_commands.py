"""The commands of a trial: what `run.py` does after its training, or in place of it, such as a benchmark or an audit.

Each is a process of its own outside any MPI program. What the last one prints with --json is kept as `result.json`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence

from fedhpc.errors import InputError, Stopped, printed
from fedhpc.privacy.places import SYNTHETIC_VARIABLE
from fedhpc.run.rounds.preemption import StopRequest
from fedhpc.sweep.environment import for_programs, without_job
from fedhpc.sweep.trial_directory import TrialDirectory, beginning
from fedhpc.util.files import write_json

GRACE_S = 10.0


def run_commands_alone(folder: TrialDirectory, commands: Sequence[Sequence[str]]) -> str:
    """Run the commands of a trial that trains nothing, and write how it ended.

    Returns:
        "finished"; "preempted" where a signal has ended it: it then begins anew.

    Raises:
        InputError: a command failed.
    """
    StopRequest().listen()
    begun = beginning(job_id())
    folder.write_outcome(begun)
    try:
        run_commands(folder, commands)
    except Stopped:
        folder.end(begun, "stopped", "told to stop before its end")
        return "preempted"
    except BaseException as error:
        folder.end(begun, "failed", printed(error))
        raise
    folder.end(begun, "finished", "finished")
    return "finished"


def run_commands(folder: TrialDirectory, commands: Sequence[Sequence[str]]) -> None:
    """Run commands one after another; stop at the first that fails.

    Args:
        folder: of the trial, whose log gets what they print.
        commands: the words after `run.py`.

    Raises:
        InputError: a command has failed; what it printed as JSON is kept nevertheless.
        Stopped: a signal has come; the command was ended.
    """
    environment = for_programs(without_job(os.environ))
    if folder.read_config().data.phantom is not None:
        # What a benchmark or audit spends of synthetic patients is kept in its own folder; for others it has no effect.
        environment[SYNTHETIC_VARIABLE] = str(folder.path.resolve() / "accounts" / "{site}")
    for words in commands:
        status, out = _run(words, environment)
        _keep(folder, out)
        if status:
            raise InputError(
                f"run.py {' '.join(words)}: ended with status {status}. See {folder.log}", code="sweep.command"
            )


def _run(words: Sequence[str], environment: dict[str, str]) -> tuple[int, str]:
    with subprocess.Popen(
        [sys.executable, "-m", "fedhpc", *words], stdout=subprocess.PIPE, env=environment, text=True
    ) as process:
        try:
            out, _ = process.communicate()
        except BaseException:
            _end(process)
            raise
    return process.returncode, out


def _end(process: "subprocess.Popen[str]") -> None:
    process.terminate()
    try:
        process.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()


def _keep(folder: TrialDirectory, out: str) -> None:
    """Write `result.json` where the output is one JSON object; else let the log have it."""
    try:
        found = json.loads(out)
    except ValueError:
        found = None
    if isinstance(found, dict):
        write_json(folder.result, found)
    else:
        print(out, flush=True)


def job_id() -> str:
    """Return SLURM's id of this job, with the number of its array; empty outside SLURM."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID", "")
