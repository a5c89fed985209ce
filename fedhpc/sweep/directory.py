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
the ledger heads of earlier trials (`fedhpc.run.recorded_heads`).
"""

import json
import os
import socket
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from fedhpc.config.loader import load_config
from fedhpc.config.schema import RunConfig
from fedhpc.config.strict_yaml import dump_yaml, parse_yaml
from fedhpc.errors import ConfigError, InputError
from fedhpc.records.run_directory import RunDirectory, config_text
from fedhpc.sweep.config import Local, Slurm, Sweep, Trial
from fedhpc.util.files import make_folder, read_json, read_text, write_json, write_text
from fedhpc.util.processes import born
from fedhpc.util.section import Section

Ended = Literal["running", "finished", "failed", "stopped"]
Cluster = Literal["slurm", "local"]
RESTORE = "Restore it from a backup, or start the sweep in a new --run-dir"
AGAIN = "Remove it: the trial then counts as not begun and goes on from its last round"


class Listed(Section):
    """A trial as sweep.yaml lists it; its config is in its directory."""

    name: str
    baseline: str
    point: dict[str, Any]


class Commands(Section):
    """commands.json: of a trial that is more, or other, than a training run; `Trial` has the meanings."""

    trains: bool
    commands: tuple[tuple[str, ...], ...]


class Stored(Section):
    """sweep.yaml."""

    name: str
    grid: dict[str, list[Any]]
    slurm: Slurm
    local: Local
    elements: tuple[Listed, ...]


@dataclass(frozen=True)
class Outcome:
    """How a trial's last attempt stands.

    Attributes:
        state: `running` also of one that was killed before it could tell.
        message: why it failed or was stopped; of a finished run "finished" or "budget".
        job: SLURM's id; empty on one machine.
        host, pid: of the process that wrote it.
        seconds: from its start to its end.
    """

    state: Ended
    message: str
    job: str
    host: str
    pid: int
    started: str
    seconds: float = 0.0


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
    jobs: dict[str, str]
    report: str
    host: str
    pid: int
    born: str
    time: str


class SweepDirectory:
    """Owns the names of a sweep's files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.plan, self.jobs, self.logs = path / "sweep.yaml", path / "jobs.json", path / "jobs"
        self._calibration = path / "calibration.json"

    def trial(self, name: str) -> "TrialDirectory":
        """The directory of one trial."""
        return TrialDirectory(self.path / "elements" / name)

    def again(self, job: str) -> Path:
        """The file that asks the script of a job to queue it again, by SLURM's plain id."""
        return self.logs / f"again-{job}"

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
        """The sweep as it was started.

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
            return [Submission(**one) for one in self._jobs()["submissions"]]
        except TypeError:
            raise self._changed() from None

    def cancelled(self) -> frozenset[str]:
        """The trials that were cancelled and not submitted again since."""
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


class TrialDirectory:
    """One trial's run directory and the files of the sweep in it."""

    def __init__(self, path: Path) -> None:
        self.path, self.run = path, RunDirectory(path)
        self.config, self.log = path / "element.yaml", path / "log.txt"
        self.commands, self.result = path / "commands.json", path / "result.json"
        self._outcome = path / "outcome.json"

    @property
    def sweep(self) -> SweepDirectory:
        """Of which it is one."""
        return SweepDirectory(self.path.parents[1])

    def write_config(self, config: RunConfig) -> None:
        """As submitted."""
        write_text(self.config, config_text(config, self.path))

    def read_config(self) -> RunConfig:
        """As submitted."""
        return load_config(self.config)

    def write_commands(self, commands: Commands) -> None:
        """As submitted."""
        write_json(self.commands, commands.model_dump(mode="json"))

    def read_commands(self) -> Commands:
        """As submitted; of a trial that has none, that it trains and no more."""
        if not self.commands.exists():
            return Commands(trains=True, commands=())
        try:
            return Commands.model_validate(read_json(self.commands, RESTORE))
        except ValidationError:
            raise InputError(f"{self.commands}: is damaged. {RESTORE}.", code="file.damaged") from None

    def outcome(self) -> Outcome | None:
        """None where no attempt has begun."""
        if not self._outcome.exists():
            return None
        try:
            return Outcome(**read_json(self._outcome, AGAIN))
        except TypeError:
            raise InputError(
                f"{self._outcome}: does not say how an attempt ended. {AGAIN}.", code="file.damaged"
            ) from None

    def write_outcome(self, outcome: Outcome) -> None:
        """In place of the last one."""
        write_json(self._outcome, asdict(outcome))

    def ledgers(self) -> frozenset[str]:
        """The ids of its privacy ledgers, by which the lifetime ledgers know what it has spent."""
        found = set()
        for path in self.path.glob("sites/*/ledger.jsonl"):
            with path.open(encoding="utf-8") as lines:
                found.add(str(json.loads(next(lines, "{}")).get("ledger")))
        return frozenset(found)

    def end(self, begun: Outcome, state: Ended, message: str) -> None:
        """Write how the attempt that had `begun` ended."""
        started = datetime.fromisoformat(begun.started)
        seconds = round((datetime.now(UTC) - started).total_seconds(), 1)
        self.write_outcome(replace(begun, state=state, message=message, seconds=seconds))

    def note_death(self, begun: Outcome, message: str) -> None:
        """Say of an attempt whose processes have all ended that it failed, where none of them could."""
        known = self.outcome()
        if known is None or known.state == "running":
            self.end(known or begun, "failed", message)


def beginning(job: str) -> Outcome:
    """An attempt of this process that starts now."""
    return Outcome("running", "", job, socket.gethostname(), os.getpid(), now())


def submission(cluster: Cluster, jobs: dict[str, str]) -> Submission:
    """One made by this process now."""
    pid = os.getpid()
    return Submission(cluster, jobs, "", socket.gethostname(), pid, born(pid), now())


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def with_threads(config: RunConfig, cpus: int) -> RunConfig:
    """`runtime.threads: auto` as what a rank is given: several trials on a machine must not each take all of it."""
    if config.runtime.threads != "auto":
        return config
    return config.replace({"runtime.threads": cpus})
