"""The training steps that `bench dp` compares: networks, a step of each kind, and its noise alone."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedhpc.bench.opacus_modes import MODES, Step, opacus_step
from fedhpc.bench.round_networks import conv4
from fedhpc.config.schema import RunConfig
from fedhpc.models.backbones import Backbone
from fedhpc.models.build import build_model
from fedhpc.models.task import Task
from fedhpc.privacy.gaussian import Noise, released
from fedhpc.privacy.noise import KeyStream
from fedhpc.site.training.dp_sgd import NoiseConfig, PrivateStep

FEATURES = 1280
IMAGES_A_PATIENT = 3


@dataclass(frozen=True)
class Place:
    """Where and on what a step runs."""

    device: str
    threads: int
    batch: int
    image_size: int


def network(name: str, place: Place) -> nn.Module:
    """A network by name: one that is shipped, `head` (linear, on 1280 features) or `conv4`."""
    torch.manual_seed(0)
    task = Task(("no", "yes"), (1, place.image_size, place.image_size))
    if name == "conv4":
        return conv4(task)
    tree: dict[str, Any] = {"name": name}
    backbone = None
    if name == "head":
        tree, backbone = {"name": "frozen", "backbone": "efficientnet_lite0"}, Backbone(nn.Identity(), FEATURES, None)
    shards = {"shards": "{site}.h5", "sites": [{"name": "a"}]}
    config = RunConfig.model_validate({"name": "bench", "data": shards, "model": tree})
    return build_model(config, task, backbone)


def step_of(way: str, name: str, place: Place) -> Step:
    """A fresh model with its optimiser, as a function that takes one step."""
    model = network(name, place).to(place.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    if way == "plain":
        return _plain_step(model, optimizer)
    terms = NoiseConfig(1.0, 1.0, place.batch, KeyStream.fresh())
    if way in MODES:
        return opacus_step(way, model, optimizer, terms)
    private, images_a_unit = PrivateStep.wrap(model, optimizer, terms), IMAGES_A_PATIENT if "patients" in way else 1

    def step(images: Tensor, labels: Tensor) -> None:
        owner = torch.arange(len(images), device=images.device) // images_a_unit
        private(images, labels, owner, last=True)

    return step


def noise_of(kind: str, name: str, place: Place) -> Step:
    """Return the noise of one step of a model, by itself; the batch that it is given is not looked at."""
    model = network(name, place)
    size = sum(p.numel() for p in model.parameters() if p.requires_grad)
    out = torch.zeros(size, device=place.device)
    noise = Noise(1.0, float(place.batch), KeyStream.fresh())

    def make(images: Tensor, labels: Tensor) -> None:
        if kind == "torch.normal":
            out.normal_()
        else:
            released(out, noise, place.batch, out)

    return make


def _plain_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> Step:
    def step(images: Tensor, labels: Tensor) -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def batch_of(name: str, place: Place, images: int) -> tuple[Tensor, Tensor]:
    """Random images (n, 1, size, size), or features (n, 1280) of the head, and labels int64 (n), the same each time."""
    shape = (images, FEATURES) if name == "head" else (images, 1, place.image_size, place.image_size)
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (images,), generator=generator)
    return torch.randn(shape, generator=generator).to(place.device), labels.to(place.device)
