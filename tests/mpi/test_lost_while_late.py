"""Ranks that are killed in rounds that a timer ends: what is late enters once, of its own start only."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from fedhpc.chaos.invariants import Snapshot, violations
from fedhpc.records.run_directory import RunDirectory
from tests.conftest import Mpi, Outcome
from tests.mpi.test_federated import cohort, command, params
from tests.mpi.test_lost_ranks import records, with_hospitals
from tests.support.fault_tolerant import struck

__all__ = ["cohort"]
pytestmark = [pytest.mark.mpi, pytest.mark.slow, pytest.mark.timeout(600)]
SITES = tuple(f"site{number}" for number in range(1, 8))
SLOW = ("site2", "site7")
ROUNDS = 14
SETS = (
    f"data.sites={json.dumps([{'name': name, 'weight': 20} for name in SITES])}",
    "schedule.policy=deadline", "training.local_epochs=1", "exchange.density=0.3", f"training.rounds={ROUNDS}",
    "faults.on_death=continue", "faults.min_sites=2",
)  # fmt: skip
TIMED = (
    *SETS, "schedule.deadline_s=0.05", f"stress={json.dumps({'case': 'slow', 'sites': SLOW, 'strength': 6})}",
    "faults.launcher_patience_s=5",
)  # fmt: skip
"""A timer shorter than any step: rounds end with the fast sites, however fast the machine is."""
PRIVATE = ("privacy.epsilon=8", "privacy.sample_rate=1.0", "privacy.noise_seed=1")
AGGREGATOR = "0:aggregate:3"
HOSPITALS = "1:train:2,2:exchange:4,3:evaluate:6,4:checkpoint:8"
"""rank:phase:round of the start. The first to go is a slow one, in training that it began a round earlier."""


@pytest.fixture(scope="module")
def seven(tmp_path_factory: pytest.TempPathFactory, cohort: Path) -> Path:
    """Seven hospitals with the config of the four."""
    return with_hospitals(cohort, tmp_path_factory.mktemp("seven"), SITES)


@pytest.mark.parametrize("sets", [(), PRIVATE], ids=["plain", "private"])
def test_update_that_is_late_at_a_kill_enters_once(
    seven: Path, mpi: Mpi, run_here: Callable[..., Outcome], preloaded: list[str], sets: tuple[str, ...]
) -> None:
    """The aggregator in one start; in the next a hospital in each phase, one after the other."""
    run_dir = seven / ("private" if sets else "plain")
    status = run_dir.with_suffix(".status")
    words = [*command(seven, run_dir, *TIMED, *sets), "--status", str(status), "--take-over"]
    ended = []
    for places in (AGGREGATOR, HOSPITALS):
        done = struck(mpi, 7, ["-m", "tests.support.broken_runs", "lose", places, *words], python=preloaded)
        ended.append(status.read_text(encoding="utf-8"))
    told = f"{done.stdout}\n{done.stderr}"
    assert ended == ["75\n", "3\n"], told
    made = records(run_dir)
    assert made[-1]["absent"] == ["site2", "site3", "site4", "site5"], told
    assert [record["round"] for record in made] == list(range(1, len(made) + 1))
    directory = RunDirectory(run_dir)
    declared = directory.read_config()
    assert declared is not None and violations(directory, declared, Snapshot())[0] == [], told
    assert any(late for record in made for late in record["staleness"].values()), "some updates were late"
    if not sets:
        assert len(made) == ROUNDS
        np.testing.assert_array_equal(params(run_dir, ROUNDS), replayed(seven, run_here, run_dir), err_msg=told)


def replayed(seven: Path, run_here: Callable[..., Outcome], run_dir: Path) -> np.ndarray:
    """The parameters of the run whose user takes the same hospitals out, and whose updates enter the same rounds."""
    again = run_dir.with_name("again")
    lines = (run_dir / "starts.jsonl").read_text(encoding="utf-8").splitlines()
    starts = [(start["after_round"], start["absent"]) for start in map(json.loads, lines)]
    for (first, absent), (end, _) in pairwise([*starts, (ROUNDS, [])]):
        if end > first:
            more = (f"schedule.replay={run_dir / 'rounds.jsonl'}", f"faults.absent={json.dumps(absent)}")
            done = run_here([*command(seven, again, *SETS, *more), "--stop-after", str(end - first)])
            assert done.returncode in (3, 75), done.stderr
    return params(again, ROUNDS)
