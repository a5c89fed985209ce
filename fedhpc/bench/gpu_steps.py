"""Training steps that `run.py bench gpu` times: a bare loop, Opacus, and this program's own local rounds.

The bare loop and Opacus get one batch that already lies on the device, ready for the network. This program's rows are
whole local rounds by the functions of a real run (`train_plain`, `train_private`), from images as they lie in a shard.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import nn

from data_prep.shard_writer import write_shard
from fedhpc.bench.gpu_limits import StepTimer, matrix_precision
from fedhpc.config.schema import RunConfig
from fedhpc.models.build import build_model
from fedhpc.models.device import Device
from fedhpc.models.loss import loss
from fedhpc.models.task import Task
from fedhpc.privacy.noise import KeyStream
from fedhpc.privacy.plan import PrivacyPlan
from fedhpc.site.data.resident import free_bytes, resident
from fedhpc.site.data.samples import ImageSamples, Samples
from fedhpc.site.data.shard import Shard
from fedhpc.site.training.dp_sgd import Entropy, NoiseConfig, Units
from fedhpc.site.training.local_sgd import LocalRound, PrivateWork, train_plain, train_private
from fedhpc.util.arrays import I64, Images

CLASSES = ("no", "yes")
WARM_UP_STEPS = 4


@dataclass(frozen=True)
class Work:
    """What is trained, where: a network by name, images of `image_size` pixels a side, steps of `batch` images."""

    model: str
    batch: int
    image_size: int
    steps: int
    device: torch.device
    precision: str = "fp32"
    compiled: bool = False
    channels_last: bool = False

    @property
    def task(self) -> Task:
        """Two classes of grey images."""
        return Task(CLASSES, (1, self.image_size, self.image_size))

    @property
    def place(self) -> Device:
        """The device as a run has it."""
        return Device(self.device, self.precision == "bf16", compiled=self.compiled)

    def network(self) -> nn.Module:
        """Return the network as a run makes it, on the device."""
        model = build_model(self.config(), self.task).to(self.device)
        return model.to(memory_format=torch.channels_last) if self.channels_last else model  # type: ignore[call-overload]

    def config(self) -> RunConfig:
        """Of a run that makes such steps."""
        tree = {
            "name": "bench",
            "data": {"shards": "{site}.h5", "sites": [{"name": "a", "weight": self.images}]},
            "model": {"name": self.model},
            "training": {"batch_size": self.batch, "local_epochs": 1, "lr": 1e-3},
            "privacy": {"off": True, "max_physical_batch": 2 * self.batch},
        }
        return RunConfig.model_validate(tree)

    @property
    def images(self) -> int:
        """Of the training split: enough that a step sees others than the step before."""
        return self.batch * (self.steps + WARM_UP_STEPS)


class RandomRows:
    """A shard's rows in memory: random 8-bit images, each of its own patient, all for training."""

    site, digest = "a", ""

    def __init__(self, images: int, image_size: int) -> None:
        rng = np.random.default_rng(0)
        self.n = images
        self._images = rng.integers(0, 256, (images, 1, image_size, image_size), dtype=np.uint8)
        self.labels: I64 = np.arange(images) % len(CLASSES)
        self.patient = np.char.mod("%d", np.arange(images)).astype("S16")
        self.stage = np.zeros(images, np.uint8)

    def indices(self, split: str) -> I64:
        """All rows, for "train"."""
        return np.arange(self.n if split == "train" else 0)

    def read(self, rows: ArrayLike) -> Images:
        """Return the images of the rows."""
        images: Images = self._images[np.asarray(rows)]
        return images

    def written(self, path: Path) -> Shard:
        """Return the rows as a shard that is read from its file."""
        write_shard(
            path,
            site=self.site,
            classes=CLASSES,
            images=self._images,
            labels=self.labels,
            patient=self.patient,
            split=np.zeros(self.n, np.uint8),
            modality=np.full(self.n, b"CT", "S2"),
            pixel_range=(0, 255),
            created_by="bench gpu",
        )
        return Shard.open(path, self.site, in_memory=False)


def timed(work: Work, kind: str) -> dict[str, Any]:
    """Samples a second of one kind of steps: `bare`, `opacus MODE`, `fedhpc` or `fedhpc dp`."""
    if work.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    with matrix_precision(work.precision):
        seconds = (_round_seconds if kind.startswith("fedhpc") else _loop_seconds)(work, kind)
    kept = seconds[-work.steps :] if len(seconds) > work.steps else seconds[1:]
    median = statistics.median(kept)
    return {
        "samples_per_s": work.batch / median,
        "step_s": median,
        "slowest_s": max(kept),
        "steps": len(kept),
        "before_s": time.perf_counter() - start - sum(kept),
        "peak_mb": torch.cuda.max_memory_allocated() / 1e6 if work.device.type == "cuda" else None,
    }


def _loop_seconds(work: Work, kind: str) -> list[float]:
    step, timer = _loop_step(work, kind), StepTimer(work.device)
    for _ in range(WARM_UP_STEPS + work.steps):
        step()
        timer.mark()
    return timer.seconds()


def _loop_step(work: Work, kind: str) -> Callable[[], None]:
    model = work.network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    images = torch.randn(work.batch, 1, work.image_size, work.image_size, device=work.device)
    images = images.to(memory_format=torch.channels_last) if work.channels_last else images
    labels = torch.randint(0, len(CLASSES), (work.batch,), device=work.device)
    place = work.place
    if kind.startswith("opacus"):
        # Imported here, as it takes long, and other rows need none of it.
        from fedhpc.bench.opacus_modes import opacus_step

        private = opacus_step(
            kind.partition(" ")[2], model, optimizer, NoiseConfig(1.0, 1.0, work.batch, KeyStream.fresh())
        )

        def private_step() -> None:
            with place.autocast():
                private(images, labels)

        return private_step
    forward = place.forward(model)

    def step() -> None:
        optimizer.zero_grad()
        with place.autocast():
            value = loss(forward(images), labels)
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _round_seconds(work: Work, kind: str) -> list[float]:
    timer = StepTimer(work.device)
    local = local_round(work, lambda *_: timer.mark())
    if kind == "fedhpc":
        train_plain(local)
    else:
        train_private(local, private_work(local, work))
    return timer.seconds()


def local_round(work: Work, on_step: Callable[[int, int], None]) -> LocalRound:
    """A local round of a run over random images."""
    samples: Samples = ImageSamples(RandomRows(work.images, work.image_size))
    samples = resident(samples, work.device, free_bytes(work.device, 1))
    return LocalRound(work.network(), samples, work.config(), "a", 0, work.place, on_step)


def private_work(local: LocalRound, work: Work) -> PrivateWork:
    """Poisson samples of `work.batch` images in the mean, each image its own unit."""
    units = Units.of(local.samples, "image", 1)
    plan = PrivacyPlan(1.0, work.batch / work.images, WARM_UP_STEPS + work.steps)
    return PrivateWork(units, plan, Entropy(KeyStream.fresh(), KeyStream.fresh()), work.images)
