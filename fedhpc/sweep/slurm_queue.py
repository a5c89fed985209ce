"""SLURM's queue, asked and told by its own commands; without submitit, and without anything that trains."""

import os
import subprocess
from collections.abc import Sequence

from fedhpc.errors import InputError
from fedhpc.sweep.config import Sweep
from fedhpc.sweep.directory import SweepDirectory
from fedhpc.sweep.status import Line, known_jobs, lines

ASK_S = 60


def look(directory: SweepDirectory, sweep: Sweep) -> list[Line]:
    """How all trials stand; SLURM is asked where it has or had any of them."""
    jobs = known_jobs(directory, sweep)
    return lines(directory, sweep, jobs, queue() if any(jobs.values()) else {})


def queue() -> dict[str, str] | None:
    """SLURM's state of each job of this user that it still knows; None where it does not answer."""
    command = ["squeue", "--noheader", "--array", "--states=all", f"--user={os.getuid()}", "--format=%i|%T"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=ASK_S).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(line.split("|", 1) for line in answer.splitlines() if "|" in line)


def cancel(ids: Sequence[str]) -> None:
    """End these jobs, waiting or running.

    Raises:
        InputError: where SLURM does not answer.
    """
    try:
        subprocess.run(["scancel", *ids], capture_output=True, text=True, check=True, timeout=ASK_S)
    except FileNotFoundError:
        raise InputError(
            "there is no scancel here: cancel the sweep where it was submitted", code="slurm.not-here"
        ) from None
    except subprocess.CalledProcessError as error:
        raise InputError(
            f"scancel: {error.stderr.strip()}; try again, or see `squeue --me`", code="slurm.refused"
        ) from None


def is_running(job: str) -> bool:
    """Return whether nobody has ended it: SIGTERM comes from preemption and from scancel alike."""
    command = ["squeue", "--noheader", f"--jobs={job}", "--format=%T"]
    return (
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=ASK_S).stdout.strip() == "RUNNING"
    )


def requeue(job: str) -> None:
    """Queue it again; SLURM then ends what is left of it."""
    subprocess.run(["scontrol", "requeue", job], check=True, timeout=ASK_S)
