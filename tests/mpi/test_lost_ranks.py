"""A rank that ends or hangs in mid-run: the others go on (ULFM) with the bits of a planned rest; nothing is lost."""

import itertools
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from fedhpc.chaos.invariants import Snapshot, violations
from fedhpc.records.run_directory import RunDirectory
from fedhpc.transport import pki
from tests.conftest import Mpi, Outcome
from tests.mpi.test_federated import NOISED, PRIVATE_SITES, SITES, charges, cohort, command, make_shard, params, summary
from tests.support.fault_tolerant import Blow, OutOfMemory, memory_group, struck

__all__ = ["cohort"]
pytestmark = pytest.mark.mpi
ROUNDS = 6
GO_ON = ("faults.on_death=continue", "faults.min_sites=3")
# Full batches: their noise is planned at once.
SETS = (*NOISED, "algorithm.name=fedavg", "privacy.sample_rate=1.0", *GO_ON, f"training.rounds={ROUNDS}")
Run = Callable[..., Outcome]


def records(run_dir: Path) -> list[dict[str, object]]:
    path = run_dir / "rounds.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def lines_of(run_dir: Path, site: str) -> int:
    path = run_dir / "sites" / site / "ledger.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def planned(cohort: Path, run_here: Run, run_dir: Path, lost: str, after: int) -> Path:
    """The run whose user takes a site out after so many rounds."""
    if after:
        begun = run_here([*command(cohort, run_dir, *SETS), "--stop-after", str(after)])
        assert begun.returncode == 75, begun.stderr
    done = run_here(command(cohort, run_dir, *SETS, f"faults.absent={json.dumps([lost])}"))
    assert done.returncode == 3, done.stderr
    return run_dir


@pytest.fixture(scope="module")
def survived(cohort: Path, mpi: Mpi, preloaded: list[str]) -> tuple[Path, Outcome]:
    """site3's rank is killed while it trains in round 3; its charge of that round is on disk."""
    run_dir = cohort / "survived"
    held = ["-m", "tests.support.broken_runs", "hold", "2:3:1"]
    words = [*held, *command(cohort, run_dir, *SETS), "--status", str(cohort / "status")]
    # The first line of a ledger is its start.
    blow = Blow(2, signal.SIGKILL, lambda: lines_of(run_dir, "site3") == 4)
    return run_dir, struck(mpi, 4, words, blow, python=preloaded)


def test_others_go_on_with_the_bits_of_a_planned_rest(
    survived: tuple[Path, Outcome], cohort: Path, run_here: Run
) -> None:
    run_dir, done = survived
    directory = RunDirectory(run_dir)
    declared = directory.read_config()
    assert declared is not None and violations(directory, declared, Snapshot())[0] == []
    assert (cohort / "status").read_text(encoding="utf-8") == "3\n", done.stdout + done.stderr
    assert "lost the rank(s) of site3: going on with 3 of 4 sites" in " ".join(done.stdout.split())
    assert "WITHOUT site3" in done.stdout
    made = records(run_dir)
    # The round that was done again is charged again, and the budget is planned for ROUNDS.
    assert [record["round"] for record in made] == list(range(1, ROUNDS))
    assert summary(run_dir)["stopped"] == "budget"
    whole = [record["absent"] for record in made].index(["site3"])
    assert whole == 2, "at most the round that was under way is done again"
    assert all(record["absent"] == ["site3"] for record in made[whole:])
    rest = planned(cohort, run_here, cohort / "planned", "site3", whole)
    np.testing.assert_array_equal(params(run_dir, ROUNDS - 1), params(rest, ROUNDS - 1))
    assert summary(run_dir)["absent"] == {"site3": ROUNDS - 1 - whole}
    assert set(summary(run_dir)["per_site"]) == set(SITES) - {"site3"}


def test_what_was_charged_stays_charged_and_a_lost_site_takes_part_again(
    survived: tuple[Path, Outcome], cohort: Path, run_here: Run
) -> None:
    run_dir, _ = survived
    assert charges(run_dir, "site3") == [0, 1, 2]
    # Those that had begun the round have charged it twice: it was done again with other noise.
    assert charges(run_dir, "site1") == [0, 1, 2, 2, 3, 4]
    residuals = sorted(path.name for path in (run_dir / "sites" / "site3").glob("residual-*.npz"))
    assert "residual-0002.npz" in residuals
    more = [*command(cohort, run_dir, *SETS, f"training.rounds={ROUNDS + 1}", "privacy.epsilon=30")]
    done = run_here(more)
    assert done.returncode == 0, done.stderr
    last = records(run_dir)[-1]
    assert (last["round"], last["absent"], set(last["per_site"])) == (ROUNDS + 1, [], set(SITES))
    assert charges(run_dir, "site3") == [0, 1, 2, ROUNDS - 1, ROUNDS]


def test_a_lost_aggregator_ends_the_start_which_can_be_resumed(
    cohort: Path, mpi: Mpi, preloaded: list[str], run_here: Run
) -> None:
    run_dir, status = cohort / "headless", cohort / "headless.status"
    lose = ["-m", "tests.support.broken_runs", "lose", "0:aggregate:3"]
    struck(mpi, 2, [*lose, *command(cohort, run_dir, *SETS), "--status", str(status)], python=preloaded)
    assert len(records(run_dir)) == 2
    assert status.read_text(encoding="utf-8") == "75\n", "as written when the rounds began"
    done = run_here([*command(cohort, run_dir, *SETS), "--take-over"])
    assert done.returncode == 0, done.stderr
    assert len(records(run_dir)) == ROUNDS - 1, "one less: the round that was under way had been charged"


SECURE = (
    PRIVATE_SITES, "privacy.epsilon=8", "privacy.sample_rate=1", "privacy.trust=sites", "privacy.colluding_sites=1",
    "training.local_epochs=1", "exchange.density=1", "evaluation.epsilon=4",
)  # fmt: skip


@pytest.mark.parametrize(
    "sets",
    [
        ("algorithm.name=fednova",),
        ("server.optimizer=fedadam", "aggregation.rule=centred_clipping"),
        SECURE,
    ],
    ids=["fednova", "fedadam", "secure"],
)
def test_site_may_leave_and_come_back_whatever_the_algorithm(
    cohort: Path, tmp_path: Path, run_here: Run, sets: tuple[str, ...]
) -> None:
    """Absent in round 2, there in round 3, another absent in round 4."""
    words = command(cohort, tmp_path / "run", *sets, "faults.min_sites=3", "training.rounds=4")
    starts = [
        ["--stop-after", "1"],
        ["--stop-after", "1", "--set", 'faults.absent=["site3"]'],
        ["--stop-after", "1"],
        ["--set", 'faults.absent=["site2"]'],
    ]
    ended = [run_here([*words, *more]) for more in starts]
    assert [one.returncode for one in ended] == [75, 75, 75, 3], ended[-1].stderr
    assert [record["absent"] for record in records(tmp_path / "run")] == [[], ["site3"], [], ["site2"]]
    assert summary(tmp_path / "run")["absent"] == {"site3": 1, "site2": 1}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_rank_without_memory_is_lost_and_the_others_go_on(cohort: Path, mpi: Mpi) -> None:
    """The kernel's own kill (OOM), which is announced to nobody."""
    run_dir, status = cohort / "oom", cohort / "oom.status"
    words = ["run.py", *command(cohort, run_dir, *SETS), "--status", str(status)]
    with memory_group(f"fedhpc-{os.getpid()}") as group:
        done = struck(mpi, 3, words, OutOfMemory(2, signal.SIGKILL, lambda: len(records(run_dir)) >= 2, group))
        control = (group / "memory.oom_control").read_text(encoding="ascii")
    assert "oom_kill 1" in control, control
    assert status.read_text(encoding="utf-8") == "3\n", done.stdout + done.stderr
    directory = RunDirectory(run_dir)
    declared = directory.read_config()
    assert declared is not None and violations(directory, declared, Snapshot())[0] == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_aggregator_that_hangs_ends_the_start(cohort: Path, mpi: Mpi) -> None:
    """The others cannot agree without it, and end it."""
    run_dir, status = cohort / "hung-head", cohort / "hung-head.status"
    words = ["run.py", *command(cohort, run_dir, *SETS, "faults.round_timeout_s=4"), "--status", str(status)]
    done = struck(mpi, 3, words, Blow(0, signal.SIGSTOP, lambda: len(records(run_dir)) >= 2))
    assert status.read_text(encoding="utf-8") == "75\n", done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_rank_lost_before_mpi_is_up_ends_the_start(cohort: Path, mpi: Mpi, blow: signal.Signals) -> None:
    """`MPI_Init` waits for all ranks, and under ULFM the launcher does not end it."""
    words = ["run.py", *command(cohort, cohort / f"never-up-{blow.name}", *SETS, "faults.join_timeout_s=15")]
    began = time.monotonic()
    done = struck(mpi, 3, words, Blow(2, blow, lambda: time.monotonic() - began > 1), timeout=120)
    assert done.returncode != 0
    assert ("before MPI was up" if blow == signal.SIGKILL else "MPI has not come up for 15 s") in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_rank_that_hangs_is_ended_and_the_others_go_on(cohort: Path, mpi: Mpi) -> None:
    run_dir, status = cohort / "hung", cohort / "hung.status"
    words = ["run.py", *command(cohort, run_dir, *SETS, "faults.round_timeout_s=5"), "--status", str(status)]
    done = struck(mpi, 4, words, Blow(3, signal.SIGSTOP, lambda: len(records(run_dir)) >= 2))
    assert status.read_text(encoding="utf-8") == "3\n", done.stdout + done.stderr
    assert "site4 (rank 3 on" in done.stderr and "has not answered for 5 s" in done.stderr


KILLS = int(os.environ.get("FEDHPC_KILLS", "18"))
KILL_SEED = int(os.environ.get("FEDHPC_KILL_SEED", "20261126"))
MANY, KILLS_A_START = tuple(f"site{number}" for number in range(1, 11)), 6
"""Hospitals of a start, and how many of them are killed in it: from ten to four."""
IN_SHRINK = "(ompi_comm_shrink_internal"
"""In the stack of Open MPI 5.0.11 where a rank is lost while the others shrink their communicator: all crash."""
KILLED = (
    f"data.sites={json.dumps([{'name': name, 'weight': 20} for name in MANY])}",
    "privacy.epsilon=8", "privacy.sample_rate=1.0", "privacy.noise_seed=1", "training.local_epochs=1",
    "training.rounds=16", "faults.on_death=continue", "faults.min_sites=3",
)  # fmt: skip


def with_hospitals(cohort: Path, folder: Path, names: Sequence[str]) -> Path:
    """Make shards and certificates of these hospitals in the folder, with the cohort's config; return the folder."""
    pki.init(folder / "pki", names)
    for number, site in enumerate(names):
        make_shard(folder, site, 60 - 4 * number)
    config = (cohort / "tiny.yaml").read_text(encoding="utf-8").replace(str(cohort), str(folder))
    (folder / "tiny.yaml").write_text(config, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, cohort: Path) -> Path:
    """Ten hospitals with the config of the four."""
    return with_hospitals(cohort, tmp_path_factory.mktemp("many"), MANY)


@pytest.mark.slow
@pytest.mark.timeout(600 + 60 * KILLS)
def test_killed_at_any_moment_nothing_is_lost(many: Path, mpi: Mpi, run_here: Run, preloaded: list[str]) -> None:
    """Random hospitals, one after the other, at random moments of rounds and of going on: the laws above.

    FEDHPC_KILLS and FEDHPC_KILL_SEED say how many and which; `-s` shows each start with the seconds until the others
    went on.
    """
    chance = random.Random(KILL_SEED)
    kills, recovered = 0, []
    for number in range(1000):
        if kills >= KILLS:
            break
        start = RandomKills(many / f"random{number}", chance)
        began = time.monotonic()
        seconds = start.survived(mpi, run_here, preloaded)
        kills += len(start.killed)
        recovered += seconds
        shown = ", ".join(f"{one:.2f}" for one in seconds)
        print(f"{', '.join(start.killed)}: went on after {shown} s; {time.monotonic() - began:.0f} s", flush=True)
        middle, worst = np.quantile(recovered, [0.5, 0.95])
        told = f"{kills} kills in {number + 1} starts, seed {KILL_SEED}, 0 failures: went on after {middle:.2f} s "
        print(f"{told}(median), {worst:.2f} s (95 %), {max(recovered):.2f} s (longest)", flush=True)


@dataclass
class RandomKills:
    """One start whose hospitals are killed.

    Attributes:
        run_dir: of the run.
        chance: of moments and hospitals.
        killed: what was done, in words.
        since_s: the time that the next moment counts from; None until the others have gone on.
        starts: lines of starts.jsonl at the last kill.
    """

    run_dir: Path
    chance: random.Random
    killed: list[str] = field(default_factory=list)
    since_s: float | None = None
    starts: int = 0

    def survived(self, mpi: Mpi, run_here: Run, preloaded: list[str]) -> list[float]:
        """Check the laws; return the seconds until the others went on, of each recovery."""
        status = self.run_dir.with_suffix(".status")
        words = ["run.py", *command(self.run_dir.parent, self.run_dir, *KILLED), "--status", str(status)]
        blows = [self._kill(rank) for rank in self.chance.sample(range(1, len(MANY)), KILLS_A_START)]
        done = struck(mpi, len(MANY), words, *blows, timeout=500, python=preloaded)
        told = f"{self.killed}\n{done.stdout}\n{done.stderr}"
        if IN_SHRINK in done.stderr:
            assert status.read_text(encoding="utf-8") == "75\n", told
            self.killed.append("in MPIX_Comm_shrink: resumed")
            resumed = run_here([*command(self.run_dir.parent, self.run_dir, *KILLED), "--take-over"])
            assert resumed.returncode == 0, told + resumed.stderr
        else:
            assert status.read_text(encoding="utf-8") == "3\n", told
        made = records(self.run_dir)
        # A kill costs at most the round that is under way, which is charged again; the budget is for sixteen.
        assert [record["round"] for record in made] == list(range(1, len(made) + 1)), told
        assert len(made) >= 16 - len(self.killed), told
        directory = RunDirectory(self.run_dir)
        declared = directory.read_config()
        assert declared is not None and violations(directory, declared, Snapshot())[0] == [], told
        np.testing.assert_array_equal(params(self.run_dir, len(made)), self._planned(run_here, made), err_msg=told)
        lines = (self.run_dir / "starts.jsonl").read_text(encoding="utf-8").splitlines()
        shutil.rmtree(self.run_dir)
        return [one["recovered_s"] for one in map(json.loads, lines) if "recovered_s" in one]

    def _kill(self, rank: int) -> Blow:
        """Within a second after the others have gone on, or one time in four while they are about to."""
        moment_s, at_once = self.chance.uniform(0, 1), self.chance.random() < 0.25

        def reached() -> bool:
            if self.since_s is None and ((at_once and self.killed) or self._started() > self.starts):
                self.since_s = time.monotonic()
            if self.since_s is None or time.monotonic() - self.since_s < moment_s:
                return False
            where = "after the last" if at_once and self.killed else "into the rounds"
            self.killed.append(f"site{rank + 1} {moment_s:.3f} s {where}")
            self.since_s, self.starts = None, self._started()
            return True

        return Blow(rank, signal.SIGKILL, reached)

    def _started(self) -> int:
        path = self.run_dir / "starts.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def _planned(self, run_here: Run, made: list[dict[str, object]]) -> np.ndarray:
        """The parameters of the run whose user takes the same hospitals out after the same rounds."""
        rest = self.run_dir.with_name(f"{self.run_dir.name}-planned")
        for absent, group in itertools.groupby(made, lambda record: record["absent"]):
            words = command(self.run_dir.parent, rest, *KILLED, f"faults.absent={json.dumps(absent)}")
            done = run_here([*words, "--stop-after", str(len(list(group)))])
            assert done.returncode in (0, 3, 75), done.stderr
        found = params(rest, len(made))
        shutil.rmtree(rest)
        return found
