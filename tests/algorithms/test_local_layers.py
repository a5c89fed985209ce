"""Layers that stay at home: what is sent, what each site keeps, what a run evaluates and resumes."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from fedhpc.algorithms.fedavg import site_round
from fedhpc.algorithms.local_layers import LOCAL, LocalLayers
from fedhpc.algorithms.round_types import RoundConfig
from fedhpc.algorithms.run_state import RESIDUAL, RunState
from fedhpc.compression.codec import decode
from fedhpc.compression.error_feedback import CompressionConfig
from fedhpc.models.build import build_model
from fedhpc.models.input_layer import with_input_layer
from fedhpc.models.saved import load_model
from fedhpc.models.vector import layers_of, local_entries, to_vector
from fedhpc.site.context import SiteContext
from fedhpc.site.data.samples import ImageSamples
from fedhpc.site.data.shard import Shard
from fedhpc.site.hospital import Hospital
from tests.algorithms.test_fedavg import Fixed
from tests.conftest import Outcome
from tests.mpi.test_federated import make_shard
from tests.site.training.test_local_sgd import BENCH, config, shard_file

SITES = ("site1", "site2", "site3")
D, ENTRIES = 40, np.array([3, 4, 17])


@pytest.mark.parametrize(("density", "value_bits"), [(1.0, 32), (0.5, 4)])
def test_payload_has_no_entry_that_stays(density: float, value_bits: int) -> None:
    """The largest entries of the update are at home: none is sent, none is in the residual, all are kept."""
    update = np.linspace(1, 2, D, dtype=np.float32)
    update[ENTRIES] = [1e4, -2e4, 3e4]
    coding = CompressionConfig(density, value_bits)
    terms = RoundConfig(1, coding, coding, ("a",), (1,), local=LocalLayers(ENTRIES))
    kept = {RESIDUAL: np.zeros(D, np.float32), LOCAL: np.array([5, 6, 7], np.float32)}
    state = RunState(0, np.zeros(D, np.float32))
    payload, after = site_round(Fixed("a", 0, update), state, kept, terms)
    sent = decode(payload, sender=0, round=0, size=D).entries
    assert not sent.dense()[ENTRIES].any()
    if not coding.sends_all:  # raw bytes hold every entry, these as zeros
        assert not set(ENTRIES) & set(sent.indices.tolist())
    assert np.abs(sent.values).max() < 3
    assert not after[RESIDUAL][ENTRIES].any()
    assert after[LOCAL].tolist() == [10005, -19994, 30007]


def test_no_local_layers_change_nothing() -> None:
    params, none = np.ones(D, np.float32), LocalLayers()
    assert none.at_site(params, {}) is params
    assert none.parted(params, params) == (params, {})
    state = RunState(0, params, sites={"a": {}})
    assert none.added_to(state) is state


def test_norm_entries_are_scales_and_shifts() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.GroupNorm(2, 4), torch.nn.Linear(4, 3))
    assert local_entries(model, "norm").tolist() == list(range(12, 20))
    assert local_entries(torch.nn.Linear(2, 2), "norm").size == 0
    assert local_entries(with_input_layer(model, 2), "input").tolist() == list(range(6))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, run_here: Any) -> Path:
    """Three small hospitals; two rounds with local layers, straight and in two starts."""
    folder = tmp_path_factory.mktemp("local")
    for site in SITES:
        make_shard(folder, site, 40)
    tree = {
        "name": "local_layers",
        "data": {"shards": f"{folder}/{{site}}.h5", "sites": [{"name": name} for name in SITES]},
        "privacy": "off",
        "model": {"input_layer": True},
        "algorithm": {"name": "scaffold", "local_layers": "norm"},
        "training": {"rounds": 2, "local_epochs": 1, "batch_size": 16},
        "evaluation": {"bootstrap": 100},
        "runtime": {"threads": 1, "device": "cpu"},
    }
    config = folder / "c.yaml"
    config.write_text(yaml.safe_dump(tree), encoding="utf-8")
    for name, more in (("straight", ()), ("parts", ("--stop-after", "1")), ("parts", ())):
        done: Outcome = run_here(["train", config, "--run-dir", folder / name, *more])
        assert done.returncode == (75 if more else 0), done.stderr
    return folder


def kept(run: Path, site: str) -> dict[str, np.ndarray]:
    with np.load(run / "sites" / site / "residual-0002.npz") as saved:
        return {name: saved[name] for name in saved.files}


def test_each_site_has_its_own_values(runs: Path) -> None:
    own = [kept(runs / "straight", site)[LOCAL] for site in SITES]
    assert (own[0] != own[1]).any()
    assert (own[1] != own[2]).any()
    saved = load_model(runs / "straight" / "model.pt")
    torch.manual_seed(saved.config.seed)
    fresh = build_model(saved.config, saved.task)
    entries = local_entries(saved.network, "norm")
    assert own[0].size == entries.size > 0
    # Scales of 1 and shifts of 0, as they were built; all other parameters have moved.
    np.testing.assert_array_equal(to_vector(saved.network)[entries], to_vector(fresh)[entries])
    assert sum(layer.size for layer in layers_of(saved.network)) > 10 * entries.size


def test_resumed_run_evaluates_and_ends_alike(runs: Path) -> None:
    for site in SITES:
        for name, array in kept(runs / "straight", site).items():
            if name not in ("owner", "sha256"):
                np.testing.assert_array_equal(array, kept(runs / "parts", site)[name], err_msg=name)
    ours, theirs = (json.loads((runs / name / "summary.json").read_text()) for name in ("straight", "parts"))
    assert [ours[key] for key in ("auc", "auc_val", "per_site")] == [
        theirs[key] for key in ("auc", "auc_val", "per_site")
    ]


def test_site_is_measured_with_its_own_values(tmp_path: Path) -> None:
    """Own scales of 0 make every score the same; the global model's own do not."""
    norm = torch.nn.GroupNorm(1, 4)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(32 * 32, 4), norm, torch.nn.Linear(4, 2))
    params, local = to_vector(model), LocalLayers(local_entries(model, "norm"))
    with Shard.open(shard_file(tmp_path), "a") as shard:
        place = SiteContext(config(), model, BENCH, None, lambda *_: None)
        site = Hospital("a", 0, 1, ImageSamples(shard), place)
        scores_of_global = np.count_nonzero(site.evaluator.exact_counts(params, "test").sum(axis=(0, 1)))
        site.evaluator.at_home = partial(local.at_site, kept={LOCAL: np.zeros(8, np.float32)})
        assert np.count_nonzero(site.evaluator.exact_counts(params, "test").sum(axis=1)) == 1 < scores_of_global
        np.testing.assert_array_equal(local.at_site(params, {LOCAL: np.zeros(8)})[local.entries], 0)


def test_lost_values_of_a_site_are_refused(runs: Path, run_here: Any) -> None:
    for path in (runs / "parts" / "sites" / "site2").glob("residual-*.npz"):
        path.unlink()
    words = ["train", runs / "c.yaml", "--run-dir", runs / "parts", "--set", "training.rounds=3"]
    done: Outcome = run_here(words)
    assert done.returncode == 2
    assert "resume.site-state-missing" in done.stderr
