"""A personal head on all features of a public backbone beside the few that the run has trained."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from fedhpc.config.schema import RunConfig
from fedhpc.models.build import build_model
from fedhpc.models.device import Device
from fedhpc.models.own_features import OwnFeatures
from fedhpc.models.saved import load_backbone, load_model, save_model
from fedhpc.models.task import Task
from fedhpc.site.context import SiteContext
from fedhpc.site.personal.last_layer import global_head, head_inputs, set_head
from fedhpc.site.personal.personalise import make_head
from fedhpc.util.arrays import I64

CPU = Device(torch.device("cpu"), bf16=False)
TASK = Task(("benign", "malignant"), (1, 64, 64))
CONFIG = RunConfig.model_validate(
    {
        "name": "own",
        "data": {"shards": "x/{site}.h5", "sites": [{"name": "a"}], "public_reference": "r.h5"},
        "model": {"name": "frozen", "backbone": "phantom", "features": 3},
        "privacy": {"off": True},
        "personalisation": {"method": "head", "strengths": [1e-3, 1e-2]},
    }
)


@dataclass
class Features:
    """Features of a hospital whose classes differ in one that the run has not kept."""

    features: torch.Tensor
    labels: I64
    patient: np.ndarray
    early: np.ndarray

    def indices(self, split: str) -> I64:
        third = len(self.labels) // 4
        first = {"train": 0, "val": 2 * third, "test": 3 * third}[split]
        return np.arange(first, first + (2 * third if split == "train" else third))

    def inputs(self, rows: I64) -> torch.Tensor:
        return self.features[torch.from_numpy(rows)]


def samples(size: int) -> Features:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 800)
    features = rng.normal(size=(800, size))
    features[:, -1] += 3 * labels
    patient = np.arange(800).astype("S8")
    return Features(torch.from_numpy(features.astype(np.float32)), labels, patient, np.zeros(800, bool))


def head() -> torch.nn.Module:
    """The run's head: three kept directions, none of them the last feature."""
    network = build_model(CONFIG, TASK, load_backbone("phantom"))
    with torch.no_grad():
        network[0].projection[:3] = torch.eye(3)
        network[1].weight.copy_(torch.tensor([[-1.0, 0.5, 0.0], [1.0, 0.0, 0.2]]))
    return network


def test_head_sees_what_the_network_computes() -> None:
    """The matrix times the inputs are the network's logits, before a correction and with any."""
    size = load_backbone("phantom").dim
    network, mine = OwnFeatures(head(), size, 2), samples(size)
    network.standardise(mine.inputs(mine.indices("train")))
    seen = head_inputs(network, mine, "val", CPU)
    before, logits = head()(mine.inputs(mine.indices("val"))), network(mine.inputs(mine.indices("val")))
    torch.testing.assert_close(logits, before)
    for matrix in (global_head(network), torch.randn_like(global_head(network))):
        set_head(network, matrix)
        torch.testing.assert_close(
            network(mine.inputs(mine.indices("val"))).double(), seen.inputs @ matrix.T, rtol=1e-4, atol=1e-4
        )


def test_all_features_find_what_was_not_kept() -> None:
    size = load_backbone("phantom").dim
    place = SiteContext(CONFIG, head(), CPU, None, lambda done, all: None)
    made = make_head(samples(size), place)
    kept = CONFIG.replace({"personalisation.features": "kept"})
    few = make_head(samples(size), SiteContext(kept, head(), CPU, None, lambda done, all: None))
    assert made.chosen.val_loss < 0.5 < few.chosen.val_loss
    assert math.isinf(few.chosen.setting) and few.facts == {}
    assert made.alone is not None and made.facts == {"own_features": size}


def test_personal_model_is_read_back(tmp_path: Path) -> None:
    size = load_backbone("phantom").dim
    network = OwnFeatures(head(), size, 2)
    network.standardise(samples(size).features)
    set_head(network, torch.randn_like(global_head(network)))
    facts = {"config": CONFIG.model_dump(mode="json"), **asdict(TASK), "f1_thresholds": [7]}
    save_model(tmp_path / "personal.pt", network, {**facts, "personal": "a", "own_features": size})
    read = load_model(tmp_path / "personal.pt")
    assert read.personal == "a"
    torch.testing.assert_close(read.network(samples(size).features), network(samples(size).features))
