"""Whole runs with a slow hospital: the plan is made once, kept, charged as it is, and changes nothing where none is."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fedhpc.privacy.accountant import Charge, bounds_of
from fedhpc.records.run_directory import RunDirectory
from tests.conftest import Outcome
from tests.mpi.test_federated import make_shard

SITES = ("site1", "site2", "site3", "site4")
SLOW = {"case": "slow", "sites": ["site3"], "strength": 100.0}
RunHere = Callable[..., Outcome]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A config of four tiny hospitals."""
    folder = tmp_path_factory.mktemp("schedule")
    for site in SITES:
        make_shard(folder, site, 40)
    return {
        "name": "tiny",
        "data": {"shards": f"{folder}/{{site}}.h5", "sites": [{"name": name, "weight": 20} for name in SITES]},
        "privacy": {"off": True},
        "algorithm": {"name": "fednova"},
        "training": {"rounds": 2, "local_epochs": 2, "batch_size": 4},
        "exchange": {"density": 1.0},
        "evaluation": {"bootstrap": 100},
        "runtime": {"threads": 1, "device": "cpu"},
    }


def train(run_here: RunHere, tree: Mapping[str, Any], folder: Path, *more: str, **sections: Any) -> Outcome:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({**tree, **sections}), encoding="utf-8")
    return run_here(["train", path, "--run-dir", folder / "run", *more])


def test_measured_plan_is_kept_for_all_starts(run_here: RunHere, tree: dict[str, Any], tmp_path: Path) -> None:
    """A site that a stress test slows 100 times is measured so; a later start in which it is fast keeps the plan."""
    planned = {"schedule": {"policy": "plan"}}
    first = train(run_here, tree, tmp_path, "--stop-after", "1", stress=SLOW, **planned)
    assert first.returncode == 75, first.stderr
    kept = json.loads((tmp_path / "run" / "schedule.json").read_text("utf-8"))
    efforts, seconds = kept["efforts"], kept["seconds_per_image"]
    assert seconds["site3"] > 2 * seconds["site1"]
    assert efforts["site3"] < 0.6
    said = " ".join(first.stdout.split())
    assert "STRESS TEST: slow at site3, by a factor of 100" in said
    assert f"site3 does {efforts['site3']:g} of its work" in said
    (tmp_path / "run" / "schedule.json").unlink()
    second = train(run_here, tree, tmp_path, stress=SLOW, **planned)
    assert second.returncode == 0, second.stderr
    config = RunDirectory(tmp_path / "run").read_config()
    assert config is not None
    assert config.schedule.efforts == efforts
    assert not (tmp_path / "run" / "schedule.json").exists(), "nothing was measured anew"
    other = train(run_here, tree, tmp_path, stress=SLOW, schedule={"policy": "wait"})
    assert (other.returncode, "schedule." in other.stderr) == (2, True)


def test_declared_speeds_of_one_change_no_bit(run_here: RunHere, tree: dict[str, Any], tmp_path: Path) -> None:
    """With equal sites and speeds the plan is the run that waits; with a slow site it is another."""
    params = {}
    for name, policy, speed in (("wait", "wait", 0.1), ("equal", "plan", 1.0), ("slow", "plan", 0.1)):
        (folder := tmp_path / name).mkdir()
        sites = [{**site, "speed": speed if site["name"] == "site3" else 1.0} for site in tree["data"]["sites"]]
        done = train(run_here, tree, folder, data={**tree["data"], "sites": sites}, schedule={"policy": policy})
        assert done.returncode == 0, done.stderr
        with np.load(folder / "run" / "state" / "round-0002.npz") as state:
            params[name] = state["params"]
    np.testing.assert_array_equal(params["wait"], params["equal"])
    assert np.abs(params["wait"] - params["slow"]).max() > 1e-4


def test_ledgers_of_a_private_plan_charge_its_own_rates(
    run_here: RunHere, tree: dict[str, Any], tmp_path: Path
) -> None:
    """The slow site's ledger holds its own sample rate and noise, and comes to the epsilon of the others."""
    sites = [{**site, "speed": 0.5} if site["name"] == "site3" else site for site in tree["data"]["sites"]]
    private = {"epsilon": 4.0, "delta": 1e-4, "sample_rate": 1.0}
    sections = {"algorithm": {"name": "fedavg"}, "privacy": private, "schedule": {"policy": "plan"}}
    done = train(run_here, tree, tmp_path, data={**tree["data"], "sites": sites}, **sections)
    assert done.returncode == 0, done.stderr
    spent, rates = {}, {}
    for site in SITES:
        lines = (tmp_path / "run" / "sites" / site / "ledger.jsonl").read_text("utf-8").splitlines()
        charges = [json.loads(line) for line in lines]
        trained = [one for one in charges if one.get("population") == "train" and "noise_multiplier" in one]
        keys = ("round", "noise_multiplier", "sample_rate", "steps")
        spent[site] = bounds_of([Charge(**{key: one[key] for key in keys}) for one in trained], 1e-4).epsilon
        rates[site] = {one["sample_rate"] for one in trained}
    assert rates == {site: {0.5 if site == "site3" else 1.0} for site in SITES}
    assert all(0.99 * 4 <= epsilon <= 4 for epsilon in spent.values()), spent


@pytest.mark.parametrize(
    "efforts",
    [
        [],
        {},
        {"site1": 1.0},
        dict.fromkeys(SITES, 1e-9),
        dict.fromkeys(SITES, 2.0),
        {**dict.fromkeys(SITES, 1.0), "x": 1.0},
    ],
)
def test_changed_plan_is_refused_by_one_message(
    run_here: RunHere, tree: dict[str, Any], tmp_path: Path, efforts: Any
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    declared = {site["name"]: [site["weight"], None] for site in tree["data"]["sites"]}
    kept = {"declared": declared, "seconds_per_image": None, "efforts": efforts}
    (run / "schedule.json").write_text(json.dumps(kept), encoding="utf-8")
    done = train(run_here, tree, tmp_path, schedule={"policy": "plan"})
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert "schedule" in done.stderr and "effort" in done.stderr


@pytest.mark.parametrize("content", [None, '{"round": 1}\n', '{"round": 1, "staleness": {"site1": 0}}\n'])
def test_record_that_cannot_be_repeated_is_refused_before_anything(
    content: str | None, run_here: RunHere, tree: dict[str, Any], tmp_path: Path
) -> None:
    """No such file, a run without deadlines, too few rounds: one message of the preflight, and no run is begun."""
    record = tmp_path / "rounds.jsonl"
    if content is not None:
        record.write_text(content, encoding="utf-8")
    done = train(run_here, tree, tmp_path, schedule={"policy": "deadline", "replay": str(record)})
    assert done.returncode == 2 and "schedule.replay=" in done.stderr and "[preflight]" in done.stderr, done
    assert not any((tmp_path / "run" / name).exists() for name in ("config.yaml", "run.json", "starts.jsonl"))
