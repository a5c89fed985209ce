"""Updates that a run keeps: who may read them, that they make its model again, and what they may be judged on."""

import json
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import yaml

from fedhpc.aggregation.contribution import rebuilt
from fedhpc.algorithms.run_state import RunState
from fedhpc.compression.codec import encode
from fedhpc.compression.top_k import top_k
from fedhpc.compression.update import Update
from fedhpc.config.loader import load_config
from fedhpc.errors import ConfigError, InputError
from fedhpc.models.saved import load_model, saved_origin
from fedhpc.models.vector import to_vector
from fedhpc.records.run_directory import RunDirectory
from fedhpc.run.rounds.stored_updates import UpdateStore, read_history
from tests.mpi.test_federated import make_shard

SITES = ("a", "b", "c")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("contribution")
    for site in (*SITES, "public"):
        make_shard(folder, site, 60)
    tree = {
        "name": "kept",
        "data": {"shards": f"{folder}/{{site}}.h5", "sites": [{"name": site, "weight": 20} for site in SITES]},
        "training": {
            "rounds": 3,
            "local_epochs": 1,
            "batch_size": 16,
            "average_last": 0.5,
            "lr": 0.05,
            "weight_decay": 0.0,
        },
        "privacy": {"epsilon": 8.0, "sample_rate": 1.0},
        "exchange": {"tls": False, "density": 1.0, "value_bits": 32},
        "evaluation": {"bootstrap": 100},
        "contribution": {"store_updates": True},
        "runtime": {"threads": 1, "device": "cpu"},
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run(folder: Path, run_here: Callable[..., Any]) -> Path:
    """A run that was stopped and gone on with."""
    command = ["train", folder / "c.yaml", "--run-dir", folder / "run"]
    assert run_here([*command, "--stop-after", "1"]).returncode == 75
    done = run_here(command)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_stored_updates_make_the_model_again(run: Path) -> None:
    """The coalition of all has the released parameters, bit for bit."""
    directory = RunDirectory(run)
    history = read_history(directory, directory.read_config())  # type: ignore[arg-type]
    assert history.updates.shape[:2] == (3, 3) and history.present.all()
    np.testing.assert_array_equal(rebuilt(history, 0b111), to_vector(load_model(directory.model).network))


def test_stored_updates_are_for_rank_0_only(run: Path) -> None:
    paths = sorted((run / "state" / "updates").iterdir())
    assert [path.name for path in paths] == [f"round-{t:04d}.npz" for t in (1, 2, 3)]
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths} == {0o600}


def test_command_tells_every_sites_value(run: Path, folder: Path, run_here: Callable[..., Any]) -> None:
    command = ["contribution", run, "--on", folder / "public.h5", "--draws", "8"]
    done = run_here(command)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    facts = json.loads(run_here([*command, "--json"]).stdout)
    values = [facts["values"]["shapley"][site]["value"] for site in SITES]
    assert sum(values) == pytest.approx(facts["utilities"]["all"] - facts["utilities"]["none"])
    assert all(facts["values"]["shapley"][site]["sd_noise"] > 0 for site in SITES)
    assert all(facts["values"]["shapley"][site]["sd_patients"] > 0 for site in SITES)


def test_without_images_only_the_updates_are_judged(run: Path, run_here: Callable[..., Any]) -> None:
    facts = json.loads(run_here(["contribution", run, "--draws", "4", "--json"]).stdout)
    assert facts["utility"].startswith("cosine")
    assert sum(one["value"] for one in facts["values"]["shapley"].values()) == pytest.approx(1)
    assert all(one["sd_patients"] == 0 for kind in facts["values"].values() for one in kind.values())


def test_protected_patients_judge_no_model(run: Path, folder: Path, run_here: Callable[..., Any]) -> None:
    """2^n exact utilities on them would be a release that the run has not charged."""
    done = run_here(["contribution", run, "--on", folder / "a.h5"])
    assert done.returncode == 2 and "[privacy.contribution]" in done.stderr


def test_config_cannot_call_protected_patients_synthetic(
    run: Path, folder: Path, run_here: Callable[..., Any], tmp_path: Path
) -> None:
    """`data.phantom` beside the shards of hospitals: no way to judge by their patients, nor to start from them."""
    shutil.copytree(run, tmp_path / "run")
    tree = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8"))
    tree["data"]["phantom"] = {}
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    done = run_here(["contribution", tmp_path / "run", "--on", folder / "a.h5"])
    assert done.returncode == 2 and "[privacy.contribution]" in done.stderr
    assert not saved_origin(run / "model.pt").synthetic


def test_protected_patients_are_known_by_another_name(run: Path, folder: Path, run_here: Callable[..., Any]) -> None:
    """A hospital's shard under a new name, with new pseudonyms: its site ledger knows the pixels."""
    shutil.copyfile(folder / "b.h5", folder / "other.h5")
    with h5py.File(folder / "other.h5", "r+") as other:
        other.attrs["site"] = "other"
        other["patient"][...] = np.array([f"{k:016x}" for k in range(len(other["patient"]))], "S16")
    done = run_here(["contribution", run, "--on", folder / "other.h5"])
    assert done.returncode == 2 and "site ledger of b" in done.stderr and "[privacy.contribution]" in done.stderr


def test_images_of_one_class_judge_nothing(run: Path, folder: Path, run_here: Callable[..., Any]) -> None:
    shutil.copyfile(folder / "public.h5", folder / "lone.h5")
    with h5py.File(folder / "lone.h5", "r+") as lone:
        lone["labels"][...] = 0
    done = run_here(["contribution", run, "--on", folder / "lone.h5"])
    assert done.returncode == 2 and "malignant" in done.stderr and "[contribution]" in done.stderr


def test_run_that_kept_nothing_is_refused(run: Path) -> None:
    directory = RunDirectory(run)
    config = directory.read_config()
    assert config is not None
    for changes in (
        {"contribution.store_updates": False},
        {"aggregation": {"rule": "geometric_median", "faulty_sites": 1}},
    ):
        with pytest.raises(InputError) as error:
            read_history(directory, config.replace(changes))
        assert error.value.code == "contribution"


@pytest.mark.parametrize(
    "changes",
    [
        ["privacy.trust=sites", "privacy.colluding_sites=1", "evaluation.epsilon=1.0"],
        ["mode=local"],
    ],
)
def test_updates_that_rank_0_never_has_are_refused(folder: Path, changes: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(folder / "c.yaml", changes)
    assert "contribution.store_updates" in str(error.value)


def test_updates_are_kept_by_the_sites_name(run: Path, tmp_path: Path) -> None:
    """A round without the first site: the messages of the others have other numbers, and are still theirs."""
    directory = RunDirectory(run)
    config = directory.read_config()
    assert config is not None
    whole = read_history(directory, config)
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    state = RunState(2, whole.start)
    messages = [encode(Update(k, 2, top_k(whole.updates[2, i], whole.start.size))) for k, i in enumerate((1, 2))]
    list(UpdateStore(copy / "state" / "updates", ("b", "c"), (20, 20))(messages, state))
    without = read_history(RunDirectory(copy), config)
    assert without.present[2].tolist() == [False, True, True]
    np.testing.assert_array_equal(without.updates[2, 1:], whole.updates[2, 1:])
    assert without.weights == whole.weights


REWARDED = [
    "rewards.altruism=2",
    "federation.aggregator_rank=dedicated",
    "exchange.tls=true",
    "training.average_last=0",
    "contribution.store_updates=false",
]


@pytest.mark.parametrize(
    "change",
    [
        ["privacy.trust=sites", "privacy.colluding_sites=1"],
        ["federation.aggregator_rank=shared"],
        ["exchange.tls=false"],
        ["training.average_last=0.5"],
        ["algorithm.name=fedprox"],
        ["mode=local", "federation.aggregator_rank=shared"],
    ],
)
def test_rewards_that_cannot_be_given_are_refused(folder: Path, change: list[str]) -> None:
    assert load_config(folder / "c.yaml", REWARDED).rewards.altruism == 2
    with pytest.raises(ConfigError) as error:
        load_config(folder / "c.yaml", [*REWARDED, *change])
    assert "rewards.altruism=2" in str(error.value)
