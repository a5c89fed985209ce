"""`run.py chaos`: runs of a small built-in cohort under mpirun, with a fault at a random moment of most starts.

A run is started again until it has finished, as a batch system does; after every start `fedhpc.chaos.invariants` are
checked. The same seed draws the same faults; when they meet the run depends on the machine.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedhpc.chaos.blows import KINDS, Blow, Place, drawn
from fedhpc.chaos.invariants import Snapshot, violations
from fedhpc.config.schema import RunConfig
from fedhpc.config.strict_yaml import dump_yaml
from fedhpc.errors import InputError
from fedhpc.records.run_directory import RunDirectory
from fedhpc.util.files import make_folder, write_text
from fedhpc.util.processes import session

RANKS, ROUNDS, MOST_STARTS, BLOWS_A_RUN = 4, 6, 8, 4
START_LIMIT_S = 240.0
"""A start that takes longer has hung."""
ENDS = {0: "finished", 3: "finished without a hospital", 75: "can be resumed"}
DISK_MB = 320
"""Of the small disk: more than the preflight wants free."""
TOP = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Start:
    """One start of a run, and how it ended.

    Attributes:
        run: the number of the run.
        fault_tolerant: under `mpirun --with-ft ulfm`.
        blow: the fault, in words; empty for none.
        status: that the run wrote itself; None where it was killed before it could.
        rounds: recorded after it.
        seconds: it took.
        violations: what did not hold after it.
    """

    run: int
    fault_tolerant: bool
    blow: str
    status: int | None
    rounds: int
    seconds: float
    violations: tuple[str, ...]

    def line(self) -> str:
        """For the user."""
        how = ENDS.get(-1 if self.status is None else self.status, f"status {self.status}")
        way = "ulfm" if self.fault_tolerant else "plain"
        bad = "".join(f"\n    VIOLATED {one}" for one in self.violations)
        return (
            f"run {self.run} {way:5s} {self.blow or 'no fault'}: {how}, {self.rounds} rounds, {self.seconds:.0f} s{bad}"
        )


@dataclass
class Campaign:
    """What is tried, and what came of it.

    Attributes:
        folder: where the runs are kept; its config and cohort are shared by all.
        minutes: no run is begun after them.
        seed: of the faults.
        starts: in order.
    """

    folder: Path
    minutes: float
    seed: int
    starts: list[Start] = field(default_factory=list)

    @property
    def violated(self) -> int:
        """How many starts left something that must not be."""
        return sum(bool(start.violations) for start in self.starts)

    def facts(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "seed": self.seed,
            "minutes": self.minutes,
            "runs": len({start.run for start in self.starts}),
            "starts": [start.__dict__ for start in self.starts],
            "violated": self.violated,
        }


def run_campaign(campaign: Campaign) -> Iterator[Start]:
    """Try runs until the time is over; yield each start as it ends.

    Raises:
        InputError: there is no mpirun.
        FileError: where the folder cannot be written.
    """
    if shutil.which("mpirun") is None:
        raise InputError("mpirun: is not on PATH: install an MPI, or load its module", code="mpi.launcher-missing")
    chance = random.Random(campaign.seed)
    make_folder(campaign.folder)
    until = time.monotonic() + 60 * campaign.minutes
    number = 0
    while time.monotonic() < until:
        number += 1
        fault_tolerant = chance.random() < 0.5
        with small_disk(campaign.folder / f"run{number}") as (place, small):
            config = _config(campaign.folder, place, fault_tolerant=fault_tolerant)
            for start in _until_finished(Trial(number, place, config, fault_tolerant, small), chance):
                campaign.starts.append(start)
                yield start


@dataclass(frozen=True)
class Trial:
    """One run: its number, its folder, its config and how its ranks are started; `small`: it has a small disk."""

    number: int
    folder: Path
    config: RunConfig
    fault_tolerant: bool
    small: bool

    @property
    def directory(self) -> RunDirectory:
        """Of the run."""
        return RunDirectory(self.folder / "run")


def _config(folder: Path, place: Path, *, fault_tolerant: bool) -> RunConfig:
    tolerant = {"on_death": "continue", "min_sites": 2} if fault_tolerant else {}
    tree = {
        "name": "chaos",
        "data": {
            "shards": str(folder / "data" / "{site}.h5"),
            "phantom": {"images": 200, "image_size": 32, "difficulty": 0.0},
            "sites": [{"name": f"site{n}", "weight": weight} for n, weight in enumerate((25, 20, 10, 8), 1)],
        },
        "training": {"rounds": ROUNDS, "local_epochs": 2, "batch_size": 16},
        "privacy": {"epsilon": 8.0, "sample_rate": 1.0},
        "evaluation": {"epsilon": None},
        "runtime": {"threads": 1, "device": "cpu", "patience_s": 2.0},
        "faults": {"round_timeout_s": 10.0, "join_timeout_s": 60.0, **tolerant},
    }
    config = RunConfig.model_validate(tree)
    make_folder(place)
    write_text(place / "chaos.yaml", dump_yaml(tree))
    return config


def _until_finished(trial: Trial, chance: random.Random) -> Iterator[Start]:
    """Start the run again and again; the last starts meet no fault, and must finish it."""
    before = Snapshot()
    for attempt in range(MOST_STARTS):
        blow = drawn(chance, RANKS, small_disk=trial.small) if attempt < BLOWS_A_RUN else None
        began = time.monotonic()
        status, hung = _start(trial, blow)
        found, before = violations(trial.directory, trial.config, before)
        if hung:
            found.append(f"hangs: the start had not ended after {START_LIMIT_S:.0f} s")
        finished = status in (0, 3)
        if blow is None and not finished:
            found.append(f"does not go on: without a fault it ended with status {status}")
        text = "" if blow is None else blow.text
        seconds = time.monotonic() - began
        yield Start(trial.number, trial.fault_tolerant, text, status, before.rounds, seconds, tuple(found))
        if finished:
            return


def _start(trial: Trial, blow: Blow | None) -> tuple[int | None, bool]:
    """Start the ranks, strike, wait; (the status that the run wrote, whether it hung)."""
    status, ballast = trial.folder / "status", trial.folder / "ballast"
    words = [shutil.which("mpirun") or "mpirun", *(["--with-ft", "ulfm"] if trial.fault_tolerant else [])]
    words += ["-n", str(RANKS), sys.executable, str(TOP / "run.py"), "train", str(trial.folder / "chaos.yaml")]
    words += ["--run-dir", str(trial.directory.path), "--status", str(status), "--take-over"]
    with (trial.folder.parent / f"{trial.folder.name}.txt").open("ab") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True, env=_environment())
    try:
        if blow is not None and _wait_for(trial, blow, process):
            KINDS[blow.kind].strike(Place(process.pid, ballast if trial.small else None), blow)
        process.wait(START_LIMIT_S)
        hung = False
    except subprocess.TimeoutExpired:
        hung = True
    finally:
        for pid in session(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        ballast.unlink(missing_ok=True)
    return int(status.read_text(encoding="utf-8")) if status.exists() else None, hung


def _environment() -> dict[str, str]:
    defaults = {"OMP_NUM_THREADS": "1", "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe"}
    return {**defaults, **os.environ}


def _wait_for(trial: Trial, blow: Blow, process: "subprocess.Popen[bytes]") -> bool:
    """Wait for the moment of the blow; False where the start ended before."""
    until = time.monotonic() + START_LIMIT_S
    earlier = _starts(trial.directory)
    while blow.in_rounds and _starts(trial.directory) == earlier:
        if process.poll() is not None or time.monotonic() > until:
            return False
        time.sleep(0.01)
    time.sleep(blow.moment_s)
    return process.poll() is None


def _starts(directory: RunDirectory) -> int:
    return directory.starts.read_bytes().count(b"\n") if directory.starts.exists() else 0


@contextlib.contextmanager
def small_disk(place: Path) -> Iterator[tuple[Path, bool]]:
    """The folder of a run: on a small file system of its own where this process may mount one."""
    make_folder(place)
    option = f"size={DISK_MB}m"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", option, "tmpfs", place], capture_output=True, check=False)
    small = mounted.returncode == 0
    try:
        yield place, small
    finally:
        if small:
            try:
                shutil.copytree(place, place.with_name(f"{place.name}-kept"), dirs_exist_ok=True)
            finally:
                # Lazily: a rank that was killed just now may not have closed its files.
                subprocess.run(["umount", "--lazy", place], capture_output=True, check=False)
