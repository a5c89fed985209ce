"""Poisson sampling draws nobody in some steps, and one unit in others: whatever batches are made of, a step is made."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedhpc.config.harmonise import Smooth, ZScore
from fedhpc.config.schema import RunConfig
from fedhpc.models.device import Device
from fedhpc.models.input_layer import with_input_layer
from fedhpc.models.saved import load_backbone
from fedhpc.models.vector import to_vector
from fedhpc.privacy.plan import PrivacyPlan
from fedhpc.site.data.open_site import open_site
from fedhpc.site.data.resident import ResidentSamples, resident
from fedhpc.site.data.samples import PooledSamples, Samples
from fedhpc.site.training.dp_sgd import Units, entropy
from fedhpc.site.training.local_sgd import LocalRound, PrivateWork, train_private
from tests.mpi.test_federated import make_shard

CPU, IMAGES, STEPS = torch.device("cpu"), 20, 3


@dataclass(frozen=True)
class Site:
    """An open shard, by the kinds of samples that are made of it."""

    kinds: dict[str, Callable[[], Samples]]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("empty")
    make_shard(folder, "a", IMAGES)
    path, chain = folder / "a.h5", (Smooth(), ZScore(mask="foreground"))
    with open_site(path, "a") as kept, open_site(path, "a", in_memory=False, chain=chain) as read:
        images, backbone = kept.samples(None), load_backbone("phantom")
        yield Site(
            {
                "images": lambda: images,
                "scaled": lambda: resident(images, CPU, 0),
                "on the device": lambda: ResidentSamples(images, CPU),
                "harmonised from a file": lambda: read.samples(None),
                "features": lambda: kept.samples(backbone),
                "features on the device": lambda: ResidentSamples(kept.samples(backbone), CPU),
                "pooled": lambda: PooledSamples([images, images]),
            }
        )


KINDS = ("images", "scaled", "on the device", "harmonised from a file", "features", "features on the device", "pooled")
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "flipped": {"training.random_flip": True},
    "padded": {"privacy.pad_batches": True},
    "one image a batch": {"privacy.max_physical_batch": 1, "privacy.max_images_per_patient": 1},
    "by image": {"privacy.unit": "image"},
}


def settings(changes: dict[str, Any]) -> RunConfig:
    tree = {
        "name": "x",
        "data": {"shards": "{site}.h5", "sites": [{"name": "a", "weight": IMAGES}]},
        "training": {"lr": 0.1, "weight_decay": 0.0},
        "privacy": {"epsilon": 1.0},
    }
    return RunConfig.model_validate(tree).replace(changes)


def network(inputs: torch.Tensor) -> nn.Module:
    """A head for features; for images one that many users write, which fails on a batch of no image."""
    torch.manual_seed(0)
    if inputs.ndim == 2:
        return nn.Sequential(nn.Identity(), nn.Linear(inputs.shape[1], 2))

    class Viewed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(len(x), -1)

    return with_input_layer(nn.Sequential(nn.Conv2d(1, 2, 8, stride=8), Viewed(), nn.Linear(32, 2)), 1)


def moved(samples: Samples, config: RunConfig, plan: PrivacyPlan, drawn: int) -> np.ndarray:
    """What a round adds to the parameters in which so many units are drawn in each step."""
    model, done = network(samples.inputs(np.arange(1))), list[int]()
    start, p = to_vector(model), config.privacy
    units = Units.of(samples, p.unit, p.max_images_per_patient)
    local = LocalRound(model, samples, config, "a", 0, Device(CPU, bf16=False), lambda step, _: done.append(step))
    few = Units(units.rows[:drawn], units.max_images)
    train_private(local, PrivateWork(few, plan, entropy(1, "a", 0), IMAGES))
    assert done == list(range(1, plan.steps_per_round + 1))
    return to_vector(model) - start


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_step_of_nobody_is_noise_alone(site: Site, kind: str, way: str) -> None:
    """Without noise it moves nothing. A step of one unit moves the network."""
    samples, config = site.kinds[kind](), settings(WAYS[way])
    if kind.startswith("features") and way == "flipped":
        config = settings({})
    quiet, noisy = PrivacyPlan(0.0, 1.0, STEPS), PrivacyPlan(2.0, 1.0, STEPS)
    assert not moved(samples, config, quiet, drawn=0).any()
    noise = moved(samples, config, noisy, drawn=0)
    assert np.isfinite(noise).all() and noise.all()
    alone = moved(samples, config, quiet, drawn=1)
    assert np.isfinite(alone).all() and alone.any()
