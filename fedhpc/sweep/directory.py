"""The sweep directory: all that is known of a sweep, in plain files, each put in place whole.

runs/<sweep>/
    sweep.yaml                    grid, resources, trials; written once
    jobs.json                     who was asked to run what: a submission a line, cancelled jobs
    calibration.json              the seconds that trials were expected to take, where that was measured before
    jobs/                         submitit's: scripts, pickles, a log a rank
    elements/<sweep>-003/         an ordinary run directory, and in it
        element.yaml              its config, as submitted
        commands.json             what is run after or in place of the training (`fedhpc.sweep.trial_commands`)
        result.json               what the last of these commands printed with --json
        outcome.json              how its last attempt stands, by the process that trained
        log.txt                   what it printed (on one machine)
    report.html, .json, .csv      when all have ended

On disk a trial is an `element`, as in earlier versions: a sweep is resumed across versions, and a later run looks for
the ledger heads of earlier trials (`fedhpc.run.start.recorded_heads`).
"""

import json
import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from fedhpc.config.schema import RunConfig
from fedhpc.config.strict_yaml import dump_yaml, parse_yaml
from fedhpc.errors import ConfigError, InputError
from fedhpc.sweep.config import Sweep, Trial
from fedhpc.sweep.resources import Local, Slurm
from fedhpc.sweep.trial_directory import JOBS, RESTORE, Commands, JobId, ProcessId, TrialDirectory
from fedhpc.util.clock import now
from fedhpc.util.files import make_folder, read_json, read_text, write_json, write_text
from fedhpc.util.processes import born
from fedhpc.util.section import Section

Cluster = Literal["slurm", "local"]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$")]


class Listed(Section):
    """A trial as sweep.yaml lists it; its config is in its directory."""

    name: FileName
    baseline: str
    point: dict[str, Any]


class Stored(Section):
    """sweep.yaml."""

    name: FileName
    grid: dict[str, list[Any]]
    slurm: Slurm
    local: Local
    elements: tuple[Listed, ...]


@dataclass(frozen=True)
class Submission:
    """Trials that were handed over together.

    Attributes:
        jobs: {trial: SLURM's job id}; of one machine, the id is empty.
        report: the id of the job that makes the report; empty on one machine, and before it was submitted.
        host, pid, born: of the process that handed them over, and on one machine runs them; `born` tells it from a
            later one of the same pid.
    """

    cluster: Cluster
    jobs: dict[str, JobId]
    report: JobId
    host: str
    pid: ProcessId
    born: str
    time: str


SUBMISSION = TypeAdapter(Submission)


class SweepDirectory:
    """Owns the names of a sweep's files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.plan, self.jobs, self.logs = path / "sweep.yaml", path / "jobs.json", path / JOBS
        self._calibration = path / "calibration.json"

    def trial(self, name: str) -> "TrialDirectory":
        """Return the directory of one trial."""
        return TrialDirectory(self.path / "elements" / name)

    def check_free(self) -> None:
        """Raises InputError where there is a sweep already."""
        if self.plan.exists():
            raise InputError(
                f"{self.path}: holds a sweep already; `run.py sweep resume {self.path}` runs what is missing of it, "
                "another --run-dir starts anew",
                code="sweep.exists",
            )

    def create(self, sweep: Sweep, cluster: Cluster) -> None:
        """Write down what is to be done."""
        make_folder(self.path)
        cpus = (sweep.slurm if cluster == "slurm" else sweep.local).cpus_per_rank
        for trial in sweep.trials:
            folder = self.trial(trial.name)
            folder.write_config(with_threads(trial.config, cpus))
            if trial.commands:
                folder.write_commands(Commands(trains=trial.trains, commands=trial.commands))
        listed = tuple(Listed(name=one.name, baseline=one.baseline, point=one.point) for one in sweep.trials)
        stored = Stored(name=sweep.name, grid=sweep.grid, slurm=sweep.slurm, local=sweep.local, elements=listed)
        write_text(self.plan, dump_yaml(stored.model_dump(mode="json")))

    def withdraw(self) -> None:
        """Forget a plan that nothing was asked to do."""
        self.plan.unlink()

    def read(self) -> Sweep:
        """Return the sweep as it was started.

        Raises:
            InputError: where there is none.
        """
        if not self.plan.exists():
            raise InputError(f"{self.path}: is no sweep: it has no {self.plan.name}", code="sweep.not-a-sweep")
        stored = self._stored()
        trials = tuple(self._trial(one) for one in stored.elements)
        return Sweep(stored.name, stored.grid, stored.slurm, stored.local, trials)

    def _trial(self, one: Listed) -> Trial:
        folder = self.trial(one.name)
        more = folder.read_commands()
        return Trial(one.name, one.baseline, one.point, folder.read_config(), more.trains, more.commands)

    def _stored(self) -> Stored:
        try:
            return Stored.model_validate(parse_yaml(read_text(self.plan, RESTORE), str(self.plan)))
        except (ConfigError, ValidationError):
            raise InputError(
                f"{self.plan}: is not the plan of a sweep; it was cut or changed. {RESTORE}.", code="file.damaged"
            ) from None

    def calibration(self) -> dict[str, float]:
        """Return the seconds that trials were expected to take before the first had ended, by name."""
        if not self._calibration.exists():
            return {}
        found = read_json(self._calibration, "Remove it: only the estimate of the time left needs it")
        return {str(name): float(seconds) for name, seconds in found.items()}

    def write_calibration(self, seconds: dict[str, float]) -> None:
        """Keep what trials are expected to take."""
        write_json(self._calibration, seconds)

    def submissions(self) -> list[Submission]:
        """All of them, oldest first."""
        try:
            return [SUBMISSION.validate_json(json.dumps(one), strict=True) for one in self._jobs()["submissions"]]
        except (TypeError, ValidationError):
            raise self._changed() from None

    def cancelled(self) -> frozenset[str]:
        """Return the trials that were cancelled and not submitted again since."""
        return frozenset(self._jobs()["cancelled"])

    def add(self, submission: Submission) -> None:
        """Remember a submission; what it holds is no longer cancelled."""
        jobs = self._jobs()
        jobs["submissions"].append(asdict(submission))
        jobs["cancelled"] = sorted(set(jobs["cancelled"]) - submission.jobs.keys())
        self._write_jobs(jobs)

    def add_report(self, job: str) -> None:
        """Remember the job that makes the report after the last submission."""
        jobs = self._jobs()
        jobs["submissions"][-1]["report"] = job
        self._write_jobs(jobs)

    def add_cancelled(self, names: list[str]) -> None:
        """Remember that these trials were cancelled."""
        jobs = self._jobs()
        jobs["cancelled"] = sorted({*jobs["cancelled"], *names})
        self._write_jobs(jobs)

    def _jobs(self) -> dict[str, Any]:
        if not self.jobs.exists():
            return {"submissions": [], "cancelled": []}
        jobs = read_json(self.jobs, RESTORE)
        if not jobs.keys() >= {"submissions", "cancelled"}:
            raise self._changed()
        return jobs

    def _changed(self) -> InputError:
        return InputError(
            f"{self.jobs}: does not list submissions; it was cut or changed. {RESTORE}.", code="file.damaged"
        )

    def _write_jobs(self, jobs: dict[str, Any]) -> None:
        write_json(self.jobs, jobs)


def submission(cluster: Cluster, jobs: dict[str, str]) -> Submission:
    """One made by this process now."""
    pid = os.getpid()
    return Submission(cluster, jobs, "", socket.gethostname(), pid, born(pid), now())


def with_threads(config: RunConfig, cpus: int) -> RunConfig:
    """`runtime.threads: auto` as what a rank is given: several trials on a machine must not each take all of it."""
    if config.runtime.threads != "auto":
        return config
    return config.replace({"runtime.threads": cpus})
