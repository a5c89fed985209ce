"""The real program under mpirun: the same bits as in one process, resume, baselines, quick and clear ends."""

import json
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import yaml

from data_prep.shard_writer import write_shard
from fedhpc.chaos.invariants import Snapshot, violations
from fedhpc.compression.codec import FIXED
from fedhpc.privacy.ledger import read_ledger
from fedhpc.records.run_directory import RunDirectory
from fedhpc.transport import pki
from fedhpc.util.rng import generator
from tests.conftest import Outcome

pytestmark = pytest.mark.mpi
SITES = ("site1", "site2", "site3", "site4")
ROUNDS = 3
Run = Callable[..., tuple[int, str, str]]


def make_shard(folder: Path, site: str, images: int) -> None:
    """Images of noise; those of the second class have a bright square. Two images a patient."""
    rng = generator(0, site, "test shard")
    labels = np.repeat(np.arange(images // 2) % 2, 2).astype(np.int64)
    pixels = rng.integers(0, 120, (images, 1, 32, 32), dtype=np.uint8)
    pixels[labels == 1, :, 8:20, 8:20] += 60
    write_shard(
        folder / f"{site}.h5",
        site=site,
        classes=("benign", "malignant"),
        images=pixels,
        labels=labels,
        patient=np.array([f"{site}-{i // 2}".encode() for i in range(images)], "S16"),
        split=np.repeat(np.resize([0, 0, 0, 0, 1, 1, 2, 2, 0, 0], images // 2), 2).astype(np.uint8),
        modality=np.full(images, b"MR", "S2"),
        stage=(np.arange(images) % 3 == 0).astype(np.uint8),
        pixel_range=(0, 255),
        created_by="tests",
    )


@pytest.fixture(scope="session")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four unequal shards, their certificates and a config in one folder."""
    folder = tmp_path_factory.mktemp("cohort")
    pki.init(folder / "pki", SITES)
    for number, site in enumerate(SITES):
        make_shard(folder, site, 60 - 8 * number)
    tree = {
        "name": "tiny",
        "data": {"shards": str(folder / "{site}.h5"), "sites": [{"name": name} for name in SITES]},
        "training": {"rounds": ROUNDS, "local_epochs": 2, "batch_size": 16},
        "privacy": "off",
        "evaluation": {"bootstrap": 100},
        "runtime": {"threads": 1, "device": "cpu"},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return folder


def train(start: Run, cohort: Path, run_dir: Path, *sets: str, more: tuple[str, ...] = ()) -> tuple[int, str, str]:
    return start([*command(cohort, run_dir, *sets), *more])


def under(mpirun: Callable[..., tuple[int, str, str]], ranks: int) -> Run:
    """Four ranks start as a user starts them; fewer with their imports done."""
    return lambda args: mpirun(ranks, ["run.py", *args], fresh=ranks == 4)


def params(run_dir: Path, round: int = ROUNDS) -> np.ndarray:
    with np.load(run_dir / "state" / f"round-{round:04d}.npz") as saved:
        return saved["params"]


def summary(run_dir: Path) -> dict[str, object]:
    return json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def sequential(cohort: Path, run_python: Run) -> tuple[Path, str]:
    """The run that the others must equal: (run directory, standard output)."""
    status, out, err = train(run_python, cohort, cohort / "sequential")
    assert status == 0, err
    return cohort / "sequential", out


PRIVATE_SITES = f"data.sites={json.dumps([{'name': name, 'weight': 20} for name in SITES])}"
UNEQUAL = json.dumps([{"name": name, "weight": weight} for name, weight in zip(SITES, (50, 40, 30, 10), strict=True)])
"""Two ranks play sites 1 and 4, and 2 and 3: not in the order of the ranks."""
CODED = (
    f"data.sites={UNEQUAL}",
    "exchange.rounding=stochastic", "exchange.selection=per_tensor", "exchange.value_bits=3",
    "exchange.density_down=0.3", "exchange.warm_up_rounds=1", "training.rounds=2", "algorithm.name=fednova",
    "algorithm.local_layers=norm",
)  # fmt: skip
NOISED = (
    PRIVATE_SITES, "privacy.epsilon=8", "privacy.sample_rate=0.25", "privacy.noise_seed=1", "training.rounds=2",
    "algorithm.name=scaffold",
)  # fmt: skip
BUDGET = (PRIVATE_SITES, "privacy.epsilon=4", "privacy.sample_rate=0.25", "training.rounds=5")
REWARDED = (
    "federation.aggregator_rank=dedicated", "rewards.altruism=2", "rewards.memory=0.5", "exchange.density=0.3",
    "training.rounds=2", "contribution.store_updates=true", "personalisation.method=head",
)  # fmt: skip
TIMED_SITES = ("site1", "site4")
TIMED = (
    f"data.sites={json.dumps([{'name': name, 'weight': 20} for name in TIMED_SITES])}",
    "privacy.epsilon=8", "privacy.sample_rate=0.5", "privacy.noise_seed=1", "training.rounds=4",
    "training.local_epochs=1", "exchange.density=0.3",
)  # fmt: skip
STRESSED = (
    "aggregation.rule=coordinate_median", "stress={case: sign_flip, sites: [site2]}", "training.rounds=2",
    "training.local_epochs=1", "exchange.density=1",
)  # fmt: skip
DEADLINE = (*TIMED, "schedule.policy=deadline")
TWO_RANKS: dict[str, tuple[str, ...]] = {
    "coded": CODED,
    "resumed": (),
    "local": ("mode=local", "name=local", "training.rounds=2"),
    "centralised": ("mode=centralised", "name=centralised", "training.rounds=2"),
    "noised": NOISED,
    "unbroken": BUDGET,
    "rewarded": REWARDED,
    "stressed": STRESSED,
    "in-time": (*DEADLINE, "schedule.deadline_s=60"),
    "late": (*DEADLINE, "schedule.deadline_s=0.001"),
}
"""Runs under one mpirun, one after the other: name -> what differs from the config."""


def command(cohort: Path, run_dir: Path, *sets: str) -> list[str]:
    overrides = [word for pair in sets for word in ("--set", pair)]
    return ["train", str(cohort / "tiny.yaml"), "--run-dir", str(run_dir), *overrides]


@pytest.fixture(scope="session")
def two_ranks(cohort: Path, run_here: Run, mpirun: Run) -> dict[str, Outcome]:
    """What each of TWO_RANKS said; its run directory is <name>-two. `resumed` had its first round in one process."""
    begun = run_here([*command(cohort, cohort / "resumed-two"), "--stop-after", "1"])
    assert begun[0] == 75
    assert run_here([*command(cohort, cohort / "rewarded-two", *REWARDED), "--stop-after", "1"])[0] == 75
    folder = cohort / "said"
    folder.mkdir()
    commands = {name: command(cohort, cohort / f"{name}-two", *sets) for name, sets in TWO_RANKS.items()}
    (folder / "commands").write_text(json.dumps(commands), encoding="utf-8")
    status, out, err = mpirun(2, ["-m", "tests.mpi.several", folder, folder / "commands"], timeout=280)
    assert status == 0, out + err
    said = {name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in TWO_RANKS}
    return {"begun": Outcome(*begun), **{name: Outcome(**outcome) for name, outcome in said.items()}}


ONE_RANK = pytest.param(1, "shared", marks=pytest.mark.slow)


@pytest.mark.parametrize(("ranks", "aggregator"), [ONE_RANK, (3, "dedicated"), (4, "shared")])
def test_mpi_run_equals_sequential_run_bitwise(
    cohort: Path, sequential: tuple[Path, str], mpirun: Run, ranks: int, aggregator: str
) -> None:
    run_dir = cohort / f"mpi{ranks}"
    status, out, err = train(under(mpirun, ranks), cohort, run_dir, f"federation.aggregator_rank={aggregator}")
    assert status == 0, err
    for round in range(1, ROUNDS + 1):
        np.testing.assert_array_equal(params(run_dir, round), params(sequential[0], round))
    ours, theirs = summary(run_dir), summary(sequential[0])
    for key in ("auc", "auc_ci95", "f1", "per_site", "bytes_up_per_round", "bytes_down_per_round"):
        assert ours[key] == theirs[key], key
    assert out.count("val AUC ") == ROUNDS, "one line a round, from rank 0 only"


def test_it_learns_and_says_so(sequential: tuple[Path, str]) -> None:
    run_dir, out = sequential
    found = summary(run_dir)
    assert found["mode"] == "federated"
    assert found["stopped"] == "finished"
    assert found["auc"] > 0.9  # type: ignore[operator]
    assert "\r" not in out, "no progress bar where standard output is no terminal"
    assert [line.split("/")[0].split()[-1] for line in out.splitlines() if line.startswith("round ")] == ["1", "2", "3"]


def test_run_directory_has_what_is_promised(sequential: tuple[Path, str]) -> None:
    run_dir, _ = sequential
    for name in ("config.yaml", "environment.json", "rounds.jsonl", "summary.json", "model.pt", "state/round-0003.npz"):
        assert (run_dir / name).is_file(), name
    assert {path.name for path in (run_dir / "sites").iterdir()} == set(SITES)
    assert not [path for path in run_dir.rglob("*.tmp")]
    needed = {
        "mode", "sites", "rounds", "auc", "auc_ci95", "f1", "sensitivity_early", "per_site", "epsilon", "delta", "unit",
        "bytes_up_per_round", "bytes_down_per_round", "dense_bytes_per_round", "seconds", "stopped", "git",
        "config_digest",
    }  # fmt: skip
    found = summary(run_dir)
    assert needed <= set(found)
    assert set(found["seconds"]) == {"train", "exchange", "aggregate", "evaluate", "checkpoint", "total"}  # type: ignore[call-overload]


def test_bytes_are_counted_for_each_site_and_add_up(sequential: tuple[Path, str]) -> None:
    """That they are the payloads' own lengths, algorithms/test_fedavg.py shows; here, that they reach the records."""
    run_dir, _ = sequential
    d = params(run_dir).size
    k = -(-d // 10)
    records = [json.loads(line) for line in (run_dir / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]
    for record in records:
        sites = record["per_site"].values()
        assert record["bytes_up"] == sum(site["bytes_up"] for site in sites)
        assert record["bytes_down"] == sum(site["bytes_down"] for site in sites)
        for site in sites:
            for sent in (site["bytes_up"], site["bytes_down"]):
                assert FIXED.size + k / 4 < sent < 12 / 450 * 4 * d, "between 2 bits an entry and the target"
    found = summary(run_dir)
    assert found["bytes_up_per_round"] == pytest.approx(np.mean([record["bytes_up"] for record in records]))
    assert found["bytes_down_per_round"] == pytest.approx(np.mean([record["bytes_down"] for record in records]))
    assert found["dense_bytes_per_round"] == 4 * 4 * d


def test_every_coding_gives_the_same_bits_under_mpi(cohort: Path, run_here: Run, two_ranks: dict[str, Outcome]) -> None:
    """Stochastic rounding draws by (seed, round, site), at whichever rank the site is."""
    dirs = [cohort / "coded-one", cohort / "coded-two"]
    status, _, err = train(run_here, cohort, dirs[0], *CODED)
    assert status == 0, err
    assert two_ranks["coded"].returncode == 0, two_ranks["coded"].stderr
    np.testing.assert_array_equal(params(dirs[0], 2), params(dirs[1], 2))
    for site in SITES:
        name = f"sites/{site}/residual-0002.npz"
        with np.load(dirs[0] / name) as one, np.load(dirs[1] / name) as two:
            assert one["residual"].any()
            np.testing.assert_array_equal(one["residual"], two["residual"])


def test_stop_and_resume_equals_the_straight_run(
    cohort: Path, sequential: tuple[Path, str], two_ranks: dict[str, Outcome]
) -> None:
    """At another number of ranks, too."""
    run_dir = cohort / "resumed-two"
    assert "the same command goes on" in " ".join(two_ranks["begun"].stdout.split())
    status, out, err = two_ranks["resumed"]
    assert status == 0, err
    assert "resuming after round 1" in out
    np.testing.assert_array_equal(params(run_dir), params(sequential[0]))
    assert summary(run_dir)["auc_ci95"] == summary(sequential[0])["auc_ci95"]


def test_rewards_differ_and_are_the_same_bits_at_two_ranks(
    cohort: Path, run_here: Run, two_ranks: dict[str, Outcome]
) -> None:
    """The first round of `rewarded-two` was in one process. Rank 0 has no hospital, and the true global model."""
    assert two_ranks["rewarded"].returncode == 0, two_ranks["rewarded"].stderr
    dirs = cohort / "rewarded-one", cohort / "rewarded-two"
    status, _, err = run_here(command(cohort, dirs[0], *REWARDED))
    assert status == 0, err
    np.testing.assert_array_equal(params(dirs[0], 2), params(dirs[1], 2))
    own = {}
    for site in SITES:
        saved = [run / "sites" / site / "residual-0002.npz" for run in dirs]
        with np.load(saved[0]) as one, np.load(saved[1]) as two:
            np.testing.assert_array_equal(one["received"], two["received"])
            own[site] = one["received"]
        assert {path.stat().st_mode & 0o777 for path in (dirs[1] / "sites" / site).glob("*.pt")} == {0o600}
    equal = [np.array_equal(mine, params(dirs[0], 2)) for mine in own.values()]
    assert 1 <= sum(equal) < len(SITES)
    per_site = json.loads((dirs[1] / "rounds.jsonl").read_text(encoding="utf-8").splitlines()[-1])["per_site"]
    assert len({one["bytes_down"] for one in per_site.values()}) > 1
    for path in ("round-0001.npz", "round-0002.npz"):
        updates = [run / "state" / "updates" / path for run in dirs]
        with np.load(updates[0]) as one, np.load(updates[1]) as two:
            assert all(one[site].tobytes() == two[site].tobytes() for site in map(str, range(len(SITES))))


def test_another_config_may_not_resume(cohort: Path, sequential: tuple[Path, str], run_here: Run) -> None:
    status, _, err = train(run_here, cohort, sequential[0], "training.lr=0.9")
    assert status == 2
    assert "training.lr (0.05 there, 0.9 here)" in err


@pytest.mark.parametrize("mode", ["local", "centralised"])
def test_baseline_under_mpi_equals_baseline_in_one_process(
    cohort: Path, run_here: Run, two_ranks: dict[str, Outcome], mode: str
) -> None:
    status, _, err = train(run_here, cohort, cohort / f"{mode}-one", *TWO_RANKS[mode])
    assert status == 0, err
    assert two_ranks[mode].returncode == 0, two_ranks[mode].stderr
    results = [summary(cohort / f"{mode}-{name}") for name in ("one", "two")]
    keys = ("mode", "auc", "auc_ci95", "f1", "per_site")
    assert [results[0][key] for key in keys] == [results[1][key] for key in keys]
    assert results[0]["mode"] == mode
    assert results[0]["bytes_up_per_round"] == 0
    if mode == "local":
        assert all("auc_all_sites" in site for site in results[0]["per_site"].values())  # type: ignore[attr-defined]


def test_private_run_under_mpi_equals_sequential_and_keeps_ledgers(
    cohort: Path, run_here: Run, two_ranks: dict[str, Outcome]
) -> None:
    """With the test seed of the noise; the epsilon of the summary is that of the steps really taken."""
    dirs = [cohort / "noised-one", cohort / "noised-two"]
    for status, out, err in (train(run_here, cohort, dirs[0], *NOISED), two_ranks["noised"]):
        assert status == 0, err
        assert "INSECURE" in out
    np.testing.assert_array_equal(params(dirs[0], 2), params(dirs[1], 2))
    found = summary(dirs[1])
    assert 7.9 < found["epsilon"] <= 8  # type: ignore[operator]
    assert found["unit"] == "patient"
    for site in SITES:
        charged = read_ledger(dirs[1] / "sites" / site / "ledger.jsonl")[1]
        trained = [(c.round, c.steps, c.insecure) for c in charged if c.population == "train"]
        assert trained == [(0, 8, True), (1, 8, True)]
        assert [c.mechanism for c in charged if c.population == "evaluation"] == ["laplace"]


def test_stressed_run_under_a_robust_rule_has_the_same_bits(
    cohort: Path, run_here: Run, two_ranks: dict[str, Outcome]
) -> None:
    assert two_ranks["stressed"].returncode == 0, two_ranks["stressed"].stderr
    status, out, err = train(run_here, cohort, cohort / "stressed-one", *STRESSED)
    assert status == 0, err
    assert "STRESS TEST: sign_flip at site2" in " ".join(out.split())
    np.testing.assert_array_equal(params(cohort / "stressed-one", 2), params(cohort / "stressed-two", 2))


def test_run_whose_sites_are_in_time_is_the_run_that_waits(
    cohort: Path, run_here: Run, two_ranks: dict[str, Outcome]
) -> None:
    assert two_ranks["in-time"].returncode == 0, two_ranks["in-time"].stderr
    status, _, err = train(run_here, cohort, cohort / "in-time-one", *TIMED)
    assert status == 0, err
    np.testing.assert_array_equal(params(cohort / "in-time-one", 4), params(cohort / "in-time-two", 4))
    assert all(charges(cohort / "in-time-two", site) == list(range(4)) for site in TIMED_SITES)


def test_late_run_is_repeated_by_its_record_and_charges_what_it_began(
    cohort: Path, run_here: Run, two_ranks: dict[str, Outcome]
) -> None:
    """Who is late is the clock's choice; the bits are those of the record, in one process, too."""
    assert two_ranks["late"].returncode == 0, two_ranks["late"].stderr
    late, again = cohort / "late-two", cohort / "late-one"
    status, _, err = train(run_here, cohort, again, *DEADLINE, f"schedule.replay={late / 'rounds.jsonl'}")
    assert status == 0, err
    np.testing.assert_array_equal(params(late, 4), params(again, 4))
    config = RunDirectory(late).read_config()
    assert config is not None and violations(RunDirectory(late), config, Snapshot())[0] == []
    made = [json.loads(line) for line in (late / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]
    told = summary(late)["late"]
    assert told == {site: n for site in TIMED_SITES if (n := sum(site in record["late"] for record in made))}
    assert not told or "Updates were late" in (late / "MODEL_CARD.md").read_text(encoding="utf-8")
    for site in TIMED_SITES:
        entered = [r["round"] - 1 - r["staleness"][site] for r in made if site in r["staleness"]]
        begun = charges(late, site)
        assert entered == begun[: len(entered)], "each charged round enters once, in order"
        assert len(begun) - len(entered) <= 1
        assert summary(late)["per_site"][site]["epsilon"] <= 8  # type: ignore[index]


def charges(run_dir: Path, site: str) -> list[int]:
    """The rounds of training that a site's ledger has charged, in order."""
    charged = read_ledger(run_dir / "sites" / site / "ledger.jsonl")[1]
    return [charge.round for charge in charged if charge.population == "train"]


def test_kill_9_in_the_third_round_is_charged_and_the_budget_holds(
    cohort: Path, mpirun: Run, mpirun_killed_when: Callable[..., None], two_ranks: dict[str, Outcome]
) -> None:
    """All ranks die by SIGKILL while they train; the same command again charges round 3 anew and stops in time."""
    dirs = {"unbroken": cohort / "unbroken-two", "killed": cohort / "killed"}
    assert two_ranks["unbroken"].returncode == 0, two_ranks["unbroken"].stderr
    words = command(cohort, dirs["killed"], *BUDGET)
    held = ["-m", "tests.support.broken_runs", "hold", "0:3:2,1:3:2", *words]
    mpirun_killed_when(partial(third_round_is_charged, dirs["killed"]), 2, held)
    assert [charges(dirs["killed"], site) for site in SITES] == [[0, 1, 2]] * 4
    assert len((dirs["killed"] / "rounds.jsonl").read_text().splitlines()) == 2
    status, _, err = mpirun(2, ["run.py", *words])
    assert status == 0, err
    records = {
        name: [json.loads(line) for line in (run_dir / "rounds.jsonl").read_text().splitlines()]
        for name, run_dir in dirs.items()
    }
    unbroken, killed = summary(dirs["unbroken"]), summary(dirs["killed"])
    assert (unbroken["stopped"], unbroken["rounds"]) == ("finished", 5)
    assert (killed["stopped"], killed["rounds"]) == ("budget", 4)
    assert charges(dirs["killed"], "site1") == [0, 1, 2, 2, 3]
    spent = {name: [record["epsilon"] for record in kept] for name, kept in records.items()}
    print(f"epsilon after each round: unbroken {spent['unbroken']}, killed in round 3 {spent['killed']}, target 4")
    assert spent["killed"][:2] == spent["unbroken"][:2]
    assert spent["killed"][2] == spent["unbroken"][3] > spent["unbroken"][2]
    assert max(spent["killed"]) == killed["epsilon"] == unbroken["epsilon"] <= 4
    assert (dirs["killed"] / "model.pt").is_file()


def third_round_is_charged(run_dir: Path) -> bool:
    """At all four sites; the first line of a ledger is its start."""
    paths = [run_dir / "sites" / site / "ledger.jsonl" for site in SITES]
    return all(path.exists() and path.read_bytes().count(b"\n") == 4 for path in paths)


def test_what_was_spent_is_told_and_what_was_changed_is_refused(cohort: Path, run_here: Run) -> None:
    """After the runs above: `run.py privacy` on a run and a shard; a ledger that was cut, lost, or another site's."""
    run_dir = cohort / "killed"
    status, out, err = run_here(["privacy", run_dir, "--json"])
    assert status == 0, err
    found = {site["site"]: site for site in json.loads(out)["sites"]}
    assert found["site1"]["charges"] == 5
    assert found["site1"]["replayed"] == 1
    assert found["site1"]["epsilon"] == summary(run_dir)["epsilon"]
    status, out, err = run_here(["privacy", cohort / "site1.h5", "--json"])
    assert status == 0, err
    assert {"killed", "unbroken-two"} <= {run["run"] for run in json.loads(out)["runs"]}
    ledger = run_dir / "sites" / "site1" / "ledger.jsonl"
    whole = ledger.read_text(encoding="utf-8")
    other = (run_dir / "sites" / "site2" / "ledger.jsonl").read_text(encoding="utf-8")
    # A last line alone may be lost in a crash, and is then taken from the site ledger: two cannot.
    cut = "".join(whole.splitlines(True)[:-2])
    for content, message in ((cut, "the site ledger"), (other, "ledger of site site2"), (None, "is missing beside")):
        ledger.unlink(missing_ok=True)
        if content is not None:
            ledger.write_text(content, encoding="utf-8")
        status, _, err = train(run_here, cohort, run_dir, *BUDGET)
        assert (status, err.count("error: "), "Traceback" in err) == (2, 1, False)
        assert message in err
    ledger.write_text(whole, encoding="utf-8")


def test_finished_model_on_another_shard(cohort: Path, sequential: tuple[Path, str], run_here: Run) -> None:
    make_shard(cohort, "elsewhere", 60)
    status, out, err = run_here(["evaluate", sequential[0], "--shard", cohort / "elsewhere.h5", "--json"])
    assert status == 0, err
    found = json.loads(out)
    assert found["site"] == "elsewhere"
    assert found["auc_ci95"][0] <= found["auc"] <= found["auc_ci95"][1]


def damaged(cohort: Path, tmp_path: Path, damage: Callable[[Path], object]) -> Path:
    """A copy of the cohort whose site3 is damaged."""
    copy = tmp_path / "cohort"
    shutil.copytree(
        cohort, copy, ignore=shutil.ignore_patterns("mpi*", "*-one", "*-two", "killed", "said", "sequential")
    )
    text = (copy / "tiny.yaml").read_text(encoding="utf-8")
    (copy / "tiny.yaml").write_text(text.replace(str(cohort), str(copy)), encoding="utf-8")
    damage(copy / "site3.h5")
    return copy


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_bad_shard_ends_all_ranks_with_one_message(cohort: Path, tmp_path: Path, mpirun: Run) -> None:
    copy = damaged(cohort, tmp_path, cut)
    started = time.monotonic()
    status, _, err = train(under(mpirun, 2), copy, tmp_path / "run")
    assert status == 2
    assert time.monotonic() - started < 60
    assert (err.count("error: "), err.count("[preflight]")) == (1, 1)
    assert "site3" in err
    assert "Traceback" not in err


def test_failure_in_training_ends_all_ranks(cohort: Path, tmp_path: Path, mpirun: Run) -> None:
    status, _, err = train(under(mpirun, 2), cohort, tmp_path / "run", "training.lr=1e30", "training.optimizer=sgd")
    assert status not in (0, 2, 75)
    assert "round 1" in err
    assert "site site" in err
    assert "of layer " in err
    assert "Traceback" not in err
