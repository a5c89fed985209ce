"""What a cell will take, measured before the first one starts: a few rounds of each kind of training, on this machine.

The first training of a cohort also makes the cohort and its features, once: that time is no cell's.
"""

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedhpc.errors import InputError
from fedhpc.records.run_directory import RunDirectory, config_text
from fedhpc.run.display import Console
from fedhpc.sweep.config import Sweep, Trial
from fedhpc.sweep.directory import SweepDirectory, with_threads
from fedhpc.sweep.environment import run_quietly
from fedhpc.sweep.pace import Kind
from fedhpc.util.files import make_folder, write_text
from fedhpc.util.progress import at_work
from fedhpc.util.text import clock

ROUNDS = 2
RUNS_OF_SCHEDULE, ROUNDS_OF_SCHEDULE = 3, 80
"""What `bench schedule` trains: runs for each seed, and rounds that it times beside them."""


@dataclass(frozen=True)
class Measured:
    """Seconds of a short run: of a round, and of all that is no round (start, evaluation, end)."""

    round_s: float
    rest_s: float

    def of(self, rounds: int) -> float:
        """Return the seconds of a run of so many rounds."""
        return self.rest_s + rounds * self.round_s


def calibrate(directory: SweepDirectory, sweep: Sweep, names: Sequence[str], console: Console) -> dict[str, float]:
    """Return the seconds that the named trials will take, by name; of a kind that no short run stands for, none.

    Of each kind of training one trial is run for a few rounds, in a folder that is removed. Of a benchmark that trains
    a known number of runs the time is that of these runs.

    Args:
        directory: of the sweep.
        sweep: what it is.
        names: of the trials that are to be run.
        console: for a line a kind.

    Raises:
        InputError: a short run failed; so would its cells.
    """
    trials = [trial for trial in sweep.trials if trial.name in names]
    found: dict[Kind, Measured] = {}
    seen = set[str]()
    for trial in trials:
        if not trial.trains or _training_kind(trial) in found:
            continue
        if trial.config.model.backbone is not None and trial.config.data.shards not in seen:
            # The first run on a cohort makes features, which are kept: its time is not that of a cell.
            _timed(directory, trial, sweep.local.cpus_per_rank)
        seen.add(trial.config.data.shards)
        one = found[_training_kind(trial)] = _timed(directory, trial, sweep.local.cpus_per_rank)
        console.say(f"  {trial.name}: {one.round_s:.2f} s a round, {clock(one.rest_s)} around the rounds")
    shutil.rmtree(directory.path / "calibration", ignore_errors=True)
    seconds = {trial.name: _expected(trial, found) for trial in trials}
    return {name: one for name, one in seconds.items() if one is not None}


def _training_kind(trial: Trial) -> Kind:
    """Return what decides how long a round of a trial takes: model, cohort and privacy, but not the mode."""
    config = trial.config
    return (config.private, config.model.label, config.data.shards, config.training.local_epochs)


def _expected(trial: Trial, found: Mapping[Kind, Measured]) -> float | None:
    own = found.get(_training_kind(trial))
    if own is None:
        return None
    if trial.trains:
        return own.of(trial.rounds)
    if trial.commands[0][:2] == ("bench", "schedule"):
        runs = RUNS_OF_SCHEDULE * _seeds_of(trial.commands[0])
        return runs * own.of(trial.config.training.rounds) + ROUNDS_OF_SCHEDULE * own.round_s
    return None


def _seeds_of(words: Sequence[str]) -> int:
    """Return how many seeds a benchmark has; they are its last words.

    >>> _seeds_of(("bench", "schedule", "c.yaml", "--seeds", "0", "1"))
    2
    """
    return len(words) - 1 - words.index("--seeds")


def _timed(directory: SweepDirectory, trial: Trial, cpus: int) -> Measured:
    folder = (directory.path / "calibration" / trial.name).absolute()
    shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder)
    changes: dict[str, object] = {"training.rounds": min(ROUNDS, trial.rounds)}
    if trial.config.privacy.site_ledger is not None:
        changes["privacy.site_ledger"] = f"{folder}/accounts/{{site}}"
    config = with_threads(trial.config.replace(changes), cpus)
    write_text(folder / "calibration.yaml", config_text(config, folder))
    begun_s = time.monotonic()
    with at_work(f"timing {trial.name}"):
        done = run_quietly("train", str(folder / "calibration.yaml"), "--run-dir", str(folder))
    if done.returncode:
        raise InputError(
            f"{trial.name}: a run of {ROUNDS} rounds to time it ended with status {done.returncode}, and so would its "
            f"cells: {done.stderr.strip()}\n--no-calibration starts without timing",
            code="study.calibration",
        )
    whole_s = time.monotonic() - begun_s
    rounds = [record["seconds"]["total"] for record in RunDirectory(folder).read_rounds()]
    shutil.rmtree(folder)
    # The first round of a run is slower than the others: it warms up.
    return Measured(rounds[-1], whole_s - sum(rounds))
