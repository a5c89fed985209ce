"""Secure aggregation in the real program under mpirun: the bits of one process, through dropouts and a resume."""

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml

from data_prep.shard_writer import write_shard
from fedhpc.privacy.accountant import Charge
from fedhpc.privacy.ledger import read_ledger
from fedhpc.run.start import sum_identities
from fedhpc.secagg.signatures import Introduction, PublicKey, Signatories, signatories_of
from fedhpc.site import hospital
from fedhpc.transport import pki
from fedhpc.util.rng import generator
from tests.conftest import REPO, Mpi, kill_session
from tests.mpi.secure_faults import failing
from tests.support.fault_tolerant import process_of

pytestmark = pytest.mark.mpi
SITES = ("site1", "site2", "site3", "site4")
ROUNDS = 3
FAULTS = ("-m", "tests.mpi.secure_faults")
Mpirun = Callable[..., tuple[int, str, str]]


def make_shard(folder: Path, site: str) -> None:
    """Images of noise with a bright square in the second class."""
    rng, n = generator(0, site, "test shard"), 60
    labels = np.arange(n) % 2
    pixels = rng.uniform(0, 120, (n, 1, 32, 32)).astype(np.float32)
    pixels[labels == 1, :, 8:20, 8:20] += 60
    write_shard(
        folder / f"{site}.h5",
        site=site,
        classes=("benign", "malignant"),
        images=pixels,
        labels=labels.astype(np.int64),
        patient=np.array([f"{site}-{i}".encode() for i in range(n)], "S16"),
        split=np.repeat([0, 1, 2], [40, 8, 12]).astype(np.uint8),
        modality=np.full(n, b"MR", "S2"),
        pixel_range=(0, 255),
        created_by="tests",
    )


@pytest.fixture(scope="session")
def secure_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four sites, their certificates and a config in one folder."""
    folder = tmp_path_factory.mktemp("secure")
    pki.init(folder / "pki", SITES)
    # Beside the aggregator's certificate it would let it sign as any site.
    (folder / "pki" / "ca.key").rename(folder / "ca.key")
    for site in SITES:
        make_shard(folder, site)
    tree = {
        "name": "secure",
        "data": {"shards": str(folder / "{site}.h5"), "sites": [{"name": name, "weight": 40} for name in SITES]},
        "training": {"rounds": ROUNDS, "local_epochs": 1, "lr": 0.5},
        "privacy": {"epsilon": 8, "sample_rate": 1, "noise_seed": 1, "trust": "sites", "colluding_sites": 1},
        "exchange": {"density": 1, "pki": str(folder / "pki")},
        "evaluation": {"bootstrap": 100},
        "runtime": {"threads": 1, "device": "cpu"},
    }
    (folder / "secure.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return folder


def arguments(cohort: Path, run_dir: Path, *sets: str) -> list[str]:
    overrides = [word for pair in sets for word in ("--set", pair)]
    return ["train", str(cohort / "secure.yaml"), "--run-dir", str(run_dir), *overrides]


def unwrapped(text: str) -> str:
    """Text without the breaks of its lines."""
    return " ".join(text.split())


def training_charges(run_dir: Path, site: str) -> list[Charge]:
    """What a site's training patients have paid; evaluation is charged to others."""
    return [c for c in read_ledger(run_dir / "sites" / site / "ledger.jsonl")[1] if c.population == "train"]


def params(run_dir: Path, round: int) -> np.ndarray:
    with np.load(run_dir / "state" / f"round-{round:04d}.npz") as saved:
        return saved["params"]


def records(run_dir: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run_dir / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]


def assert_same_run(one: Path, two: Path) -> None:
    for round in range(1, ROUNDS + 1):
        np.testing.assert_array_equal(params(one, round), params(two, round))
    summaries = [json.loads((path / "summary.json").read_text(encoding="utf-8")) for path in (one, two)]
    for key in ("auc", "auc_ci95", "per_site", "epsilon", "bytes_up_per_round", "bytes_down_per_round"):
        assert summaries[0][key] == summaries[1][key], key
    assert 7.9 < summaries[0]["epsilon"] <= 8


@pytest.mark.slow
def test_mpi_run_resumed_from_one_process_equals_the_straight_run(
    secure_cohort: Path, mpirun: Mpirun, run_here: Callable[..., tuple[int, str, str]]
) -> None:
    """Every key is fresh in both, and of another number of ranks: the masks leave no trace in the model."""
    straight, resumed = secure_cohort / "straight", secure_cohort / "resumed"
    status, told, err = run_here(arguments(secure_cohort, straight))
    assert status == 0, err
    told = unwrapped(told)
    assert "each adds 1/3 of the noise variance: 1 may collude with it, 0 may drop out" in told
    assert "REHEARSAL: 4 sites run in the aggregator's own process" in told
    assert run_here([*arguments(secure_cohort, resumed), "--stop-after", "1"])[0] == 75
    status, out, err = mpirun(4, ["run.py", *arguments(secure_cohort, resumed)], timeout=240)
    assert status == 0, err
    out = unwrapped(out)
    assert "resuming after round 1" in out
    assert "REHEARSAL" not in out
    assert "protects from an aggregator that may send what it likes: round keys and survivors are signed" in out
    summaries = [json.loads((path / "summary.json").read_text(encoding="utf-8")) for path in (straight, resumed)]
    assert [summary["protects_from_aggregator"] for summary in summaries] == ["none", "none"]
    # Its first round was a rehearsal.
    assert [record["protects_from_aggregator"] for record in records(resumed)] == ["none", "malicious", "malicious"]
    # Noise of one share in three: sqrt(3) times less of it.
    assert 8 * 3**0.5 < summaries[1]["epsilon_if_unmasked"] < 8 * 3
    assert_same_run(straight, resumed)
    assert [record["dropped"] for record in records(resumed)] == [[], [], []]
    for site in SITES:
        charges = training_charges(resumed, site)
        assert [(c.round, c.steps, c.mechanism) for c in charges] == [(t, 1, "skellam") for t in range(ROUNDS)]


def test_a_site_that_fails_in_training_is_left_out_and_the_run_goes_on(
    secure_cohort: Path,
    mpirun: Mpirun,
    run_here: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sets = ("privacy.tolerated_dropouts=1",)
    one, two = secure_cohort / "dropout-one", secure_cohort / "dropout-two"
    signed: list[bytes] = []

    def recorded(run: bytes, introductions: Sequence[Introduction], keys: Sequence[PublicKey]) -> Signatories:
        signed.append(run)
        return signatories_of(run, introductions, keys)

    with monkeypatch.context() as patch:
        patch.setattr(sum_identities, "signatories_of", recorded)
        patch.setattr(hospital, "contribution", hospital.contribution)
        patch.setattr(hospital.Hospital, "contribute", failing(["site3"]))
        assert run_here(arguments(secure_cohort, one, *sets))[0] == 0
    assert len(signed) == len(SITES) and len(set(signed)) == 1
    # What a site was told of the noise.
    assert b"PrivacyPlan(noise_multiplier=" in signed[0] and b"IntegerGrid(" in signed[0]
    status, out, err = mpirun(2, [*FAULTS, "fail-site3", *arguments(secure_cohort, two, *sets)], timeout=240)
    assert status == 0, err
    assert_same_run(one, two)
    for record in records(two):
        assert record["dropped"] == ["site3"]
        sent = record["per_site"]["site3"]["bytes_up"], record["per_site"]["site1"]["bytes_up"]  # type: ignore[index]
        assert sent[0] < 0.01 * sent[1]
    assert out.count("without site3") == ROUNDS
    assert err.count("rank 1: site site3, round ") == ROUNDS
    assert "training failed: " in err
    assert len(training_charges(two, "site3")) == ROUNDS


@pytest.mark.parametrize(
    "message",
    ["mask", *(pytest.param(name, marks=pytest.mark.slow) for name in ("advertise", "share", "confirm", "reveal"))],
)
def test_a_site_that_is_killed_in_a_round_is_charged_for_it_and_the_run_goes_on(
    secure_cohort: Path, mpirun: Mpirun, run_here: Callable[..., tuple[int, str, str]], message: str
) -> None:
    """SIGKILL to rank 1 in the second of three rounds; the budget is for three, so the replayed round is the last."""
    run_dir, straight = secure_cohort / f"killed-{message}", secure_cohort / "straight"
    command = arguments(secure_cohort, run_dir)
    status, _, err = mpirun(2, [*FAULTS, f"kill-{message}", *command], timeout=240)
    assert status not in (0, 2, 75), err
    assert len(records(run_dir)) == 1
    for _ in range(60):
        status, out, err = run_here(command)
        # mpirun may end before a rank that it has killed, which then still holds the lock of the run directory.
        if "another run is at work there" not in err:
            break
        time.sleep(1)
    assert status == 0, err
    assert "resuming after round 1" in out
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    assert (summary["stopped"], summary["rounds"]) == ("budget", 2)
    assert summary["epsilon"] <= 8
    for site in SITES:
        charged = [c.round for c in training_charges(run_dir, site)]
        # site3 is rank 1's first. Killed before the first message of the round: others may not have begun it.
        not_begun = message == "advertise" and site != "site3" and charged == [0, 1]
        assert charged == [0, 1, 1] or not_begun, site
    if straight.exists():
        np.testing.assert_array_equal(params(run_dir, 2), params(straight, 2))


def test_an_aggregator_that_replaces_round_keys_is_refused_by_the_sites(secure_cohort: Path, mpirun: Mpirun) -> None:
    run_dir = secure_cohort / "substituted"
    command = arguments(secure_cohort, run_dir)
    status, _, err = mpirun(2, [*FAULTS, "substitute", *command], timeout=240)
    assert status not in (0, 2, 75)
    assert "site site4, round 2: the signature of its message keys does not fit" in err
    assert "Traceback" not in err
    assert len(records(run_dir)) == 1


def stopped_process(session: int, rank: int) -> int | None:
    """The process of a rank, if SIGSTOP holds it."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError, LookupError):
        pid = process_of(session, rank)
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return pid if stat.rpartition(")")[2].split()[0] == "T" else None
    return None


def test_rank_0_names_whom_it_waits_for_and_goes_on(secure_cohort: Path, mpi: Mpi, preloaded: list[str]) -> None:
    """Rank 1 is stopped (SIGSTOP) between two messages of the second round until rank 0 has said so twice."""
    words = [*FAULTS, "stop-confirm", *arguments(secure_cohort, secure_cohort / "stopped")]
    process = subprocess.Popen(
        mpi.command(2, words, preloaded),
        cwd=REPO,
        env={**os.environ, **mpi.start_env(), "FEDHPC_WAIT_NOTICE_S": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    notices, held = 0, None
    try:
        for line in process.stderr:
            held = held or stopped_process(process.pid, 1)
            if held and "waiting for" in line:
                assert re.search(r"waiting for \d+ s: site3, site4 \(rank 1 on \S+\); the run goes on", line), line
                notices += 1
            if notices == 2 and held:
                os.kill(held, signal.SIGCONT)
        assert process.wait(60) == 0
    finally:
        kill_session(process.pid)
        process.wait()
        process.stderr.close()
    assert notices >= 2
    assert len(records(secure_cohort / "stopped")) == ROUNDS


@pytest.mark.slow  # tests/algorithms/test_secure_fedavg.py states it in one process
def test_too_many_dropouts_end_all_ranks_with_one_cause(secure_cohort: Path, mpirun: Mpirun) -> None:
    run_dir = secure_cohort / "refused"
    command = arguments(secure_cohort, run_dir, "privacy.tolerated_dropouts=1")
    status, _, err = mpirun(2, [*FAULTS, "fail-site2,site3", *command], timeout=240)
    assert status not in (0, 2, 75)
    assert "round 1: site2, site3 dropped out, 2 of 4 sites; privacy.tolerated_dropouts=1" in err
    assert "Traceback" not in err
    assert not (run_dir / "state").exists()
