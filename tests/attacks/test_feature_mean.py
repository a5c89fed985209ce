"""The mean of the features is a release like a round: charged before it is made, once, and in the epsilon of a run."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from data_prep.shard_writer import write_shard
from fedhpc.api import load_config, train
from fedhpc.compression.update import pack_arrays
from fedhpc.config.schema import RunConfig
from fedhpc.errors import InputError, PayloadError, PrivacyError
from fedhpc.privacy.accountant import bounds_of
from fedhpc.privacy.ledger import read_ledger
from fedhpc.privacy.plan import BEFORE_ROUNDS, check_plan, plan_privacy
from fedhpc.run.rounds.feature_mean import read_sum
from fedhpc.run.start import public_features

N, SIZE, SITES = 30, 32, ("site1", "site2", "site3")
SHARED = {"trust": "sites", "colluding_sites": 1}


def shard(path: Path, rng: np.random.Generator) -> None:
    write_shard(
        path,
        site=path.stem,
        classes=["benign", "malignant"],
        images=rng.integers(0, 256, (N, 1, SIZE, SIZE), dtype=np.uint8),
        labels=np.arange(N) % 2,
        patient=[f"{path.stem}{row}" for row in range(N)],
        split=np.arange(N) % 3,
        modality=["MR"] * N,
        pixel_range=(0, 255),
        created_by="test",
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("feature_mean")
    rng = np.random.default_rng(0)
    for name in (*SITES, "reference"):
        shard(made / f"{name}.h5", rng)
    return made


def config(folder: Path, privacy: dict[str, object] | None = None) -> RunConfig:
    tree = {
        "name": "mean",
        "data": {
            "shards": f"{folder}/{{site}}.h5",
            "sites": [{"name": name, "weight": 10} for name in SITES],
            "public_reference": f"{folder}/reference.h5",
        },
        "model": {"name": "frozen", "backbone": "phantom", "features": 3, "feature_mean": "sites"},
        "training": {"rounds": 2, "local_epochs": 1, "lr": 1.0},
        "privacy": {
            "epsilon": 2.0,
            "sample_rate": 1.0,
            "feature_mean_noise": 8.0,
            "site_ledger": f"{folder}/accounts",
            **(privacy or {}),
        },
        "exchange": {"density": 1.0},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return load_config(folder / "run.yaml")


def test_phantoms_are_a_reference_that_nobody_sets_aside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(public_features, "REFERENCE_PHANTOMS", 16)
    wanted = config(folder).replace({"data.public_reference": "phantoms", "training.rounds": 1})
    made = wanted.data.reference_path(SIZE)
    assert made is not None and made.parent == folder and not made.exists()
    train(wanted, folder / "phantoms")
    content = made.read_bytes()
    train(wanted, folder / "again")
    assert made.read_bytes() == content


def means_charged(run: Path) -> dict[str, int]:
    ledgers = {name: read_ledger(run / "sites" / name / "ledger.jsonl")[1] for name in SITES}
    return {name: sum(one.round == BEFORE_ROUNDS for one in charges) for name, charges in ledgers.items()}


@pytest.mark.parametrize("privacy", [{}, SHARED], ids=["local", "shared"])
def test_release_is_charged_once_and_kept(folder: Path, privacy: dict[str, object]) -> None:
    run, wanted = folder / f"run-{len(privacy)}", config(folder, privacy)
    train(wanted, run, stop_after=1)
    released = (run / "state" / "feature_mean-0000.npz").read_bytes()
    train(wanted, run)
    assert (run / "state" / "feature_mean-0000.npz").read_bytes() == released
    assert means_charged(run) == dict.fromkeys(SITES, 1)
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    spent = bounds_of(plan_privacy(wanted).charges(2), 1e-5).epsilon
    assert summary["epsilon"] == pytest.approx(spent) and 1.99 < spent <= 2
    without = bounds_of([plan_privacy(wanted).charge(round) for round in range(2)], 1e-5).epsilon
    assert without < 0.99 * spent, "the mean must be part of what is spent"
    for kept, told in (("sites", "the mean of the features"), ("reference", "'sites' there and 'reference' here")):
        other = wanted.replace({"model.init_from": str(run), "model.feature_mean": kept})
        with pytest.raises(InputError, match=told):
            train(other, folder / f"from-{len(privacy)}")


def test_lost_release_is_made_and_charged_again_within_the_target(folder: Path) -> None:
    run, wanted = folder / "lost", config(folder)
    train(wanted, run, stop_after=1)
    kept = run / "state" / "feature_mean-0000.npz"
    content = kept.read_bytes()
    kept.unlink()
    with pytest.raises(InputError) as refused:
        train(wanted, run)
    assert refused.value.code == "resume.damaged-checkpoint"
    kept.write_bytes(content)
    # Whoever asks for a release again by removing all that says that there was one, pays for it.
    for path in (run / "state", *(run / "sites").glob("*/residual-*"), run / "rounds.jsonl"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(InputError) as stopped:
        train(wanted, run)
    assert stopped.value.code == "privacy.budget"
    assert means_charged(run) == dict.fromkeys(SITES, 2)
    _, charges = read_ledger(run / "sites" / "site1" / "ledger.jsonl")
    assert bounds_of([one for one in charges if one.population == "train"], 1e-5).epsilon <= 2


def test_plan_without_the_release_or_with_less_noise_is_refused(folder: Path) -> None:
    """An aggregator cannot make a site release its mean uncharged, or with noise that its config does not name."""
    wanted = config(folder)
    plan = plan_privacy(wanted)
    check_plan(wanted, plan)
    for noise in (None, 4.0, 0.0):
        with pytest.raises(PrivacyError) as refused:
            check_plan(wanted, replace(plan, feature_mean_noise=noise))
        assert refused.value.code == "privacy.plan"


def test_mean_that_costs_all_of_epsilon_is_refused(folder: Path) -> None:
    for privacy in ({"feature_mean_noise": 1.0}, {"feature_mean_noise": 1.0, **SHARED}):
        with pytest.raises(PrivacyError) as refused:
            plan_privacy(config(folder, privacy))
        assert refused.value.code == "privacy.out-of-reach"


@pytest.mark.parametrize("bad", [np.zeros(4), np.zeros(3, np.float32), np.array([0, np.nan, 0]), np.full(3, 1e13)])
def test_sum_that_is_none_is_refused(bad: np.ndarray) -> None:
    with pytest.raises(PayloadError, match="site1, features"):
        read_sum("site1", pack_arrays({"sum": bad}), 3)
