"""One trial of a sweep: its run directory, and the files of the sweep in it."""

import json
import os
import socket
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from fedhpc.config.loader import load_config
from fedhpc.config.schema import RunConfig
from fedhpc.errors import InputError
from fedhpc.records.run_directory import RunDirectory, config_text
from fedhpc.util.clock import now
from fedhpc.util.files import read_json, write_json, write_text
from fedhpc.util.section import Section

Ended = Literal["running", "finished", "failed", "stopped"]
JobId = Annotated[str, Field(pattern=r"^(\d+(_\d+)?)?$")]
"""Of SLURM, or empty; never an option of its commands, which are given what a sweep's files name."""
ProcessId = Annotated[int, Field(ge=1)]
"""Never 0 or below, which stand for groups of processes, up to all of an account. 1 is what a container starts."""
JOBS = "jobs"
"""The folder of a sweep's jobs: scripts, pickles, a log a rank."""
RESTORE = "Restore it from a backup, or start the sweep in a new --run-dir"
AGAIN = "Remove it: the trial then counts as not begun and goes on from its last round"


class Commands(Section):
    """commands.json: of a trial that is more, or other, than a training run; `Trial` has the meanings."""

    trains: bool
    commands: tuple[tuple[str, ...], ...]


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
    job: JobId
    host: str
    pid: ProcessId
    started: str
    seconds: float = 0.0


OUTCOME = TypeAdapter(Outcome)


class TrialDirectory:
    """One trial's run directory and the files of the sweep in it."""

    def __init__(self, path: Path) -> None:
        self.path, self.run = path, RunDirectory(path)
        self.config, self.log = path / "element.yaml", path / "log.txt"
        self.commands, self.result = path / "commands.json", path / "result.json"
        self._outcome = path / "outcome.json"

    def again(self, job: str) -> Path:
        """Return the file that asks the script of this trial's job to queue it again; see `again_file`."""
        return again_file(self.path.parents[1], job)

    def write_config(self, config: RunConfig) -> None:
        """As submitted."""
        write_text(self.config, config_text(config, self.path))

    def read_config(self) -> RunConfig:
        """As submitted.

        Raises:
            InputError: it is not there, or no config.
        """
        if not self.config.exists():
            kept = f"{self.config.name} and {self.commands.name}"
            raise InputError(
                f"{self.config}: is missing, and says what the trial is. {RESTORE}. To run a trial again from its "
                f"first round, remove all of its folder but {kept}, and resume",
                code="file.missing",
            )
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
            return OUTCOME.validate_json(json.dumps(read_json(self._outcome, AGAIN)), strict=True)
        except ValidationError:
            raise InputError(
                f"{self._outcome}: does not say how an attempt ended. {AGAIN}.", code="file.damaged"
            ) from None

    def write_outcome(self, outcome: Outcome) -> None:
        """In place of the last one."""
        write_json(self._outcome, asdict(outcome))

    def ledgers(self) -> frozenset[str]:
        """Return the ids of its privacy ledgers, by which the lifetime ledgers know what it has spent."""
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


def again_file(sweep: Path, job: str) -> Path:
    """The file that asks the script of a job to queue it again, by the sweep's directory and SLURM's plain id."""
    return sweep / JOBS / f"again-{job}"


def beginning(job: str) -> Outcome:
    """An attempt of this process that starts now."""
    return Outcome("running", "", job, socket.gethostname(), os.getpid(), now())
