"""How fast a site trains: measured before the first round on public random numbers, and slowed down in stress tests."""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedhpc.config.schema import RunConfig
from fedhpc.models.device import Device
from fedhpc.models.loss import loss
from fedhpc.privacy.noise import source
from fedhpc.site.training.dp_sgd import NoiseConfig, PrivateStep
from fedhpc.site.training.local_sgd import make_optimizer

OnStep = Callable[[int, int], None]
USUAL_BATCH = 64
REPEATS, MOST_IMAGES, MOST_ROWS = 5, 32, 256
"""Steps that are timed, and how large their batches are at most, of images and of rows of features."""
SMALLER, LEAST_SHARE = 4, 0.05
"""The second batch is so many times smaller; an image costs at least this share of a step over its images."""
DIGITS = 2
"""Significant digits of what a site says of its speed."""


def slowed(on_step: OnStep, factor: float) -> OnStep:
    """`on_step`, which first sleeps so that each step takes `factor` times as long; its clock starts now."""
    if factor == 1:
        return on_step
    last_s = time.monotonic()

    def step(done: int, total: int) -> None:
        nonlocal last_s
        time.sleep((factor - 1) * (time.monotonic() - last_s))
        on_step(done, total)
        last_s = time.monotonic()

    return step


@dataclass(frozen=True)
class StepCost:
    """What a step of training takes at a site (public: of random numbers).

    Attributes:
        seconds_per_step: whatever its batch: noise and optimiser; 0 without privacy.
        seconds_per_image: for each image of its batch.
    """

    seconds_per_step: float
    seconds_per_image: float

    def times(self, factor: float) -> "StepCost":
        """Return the cost on a machine that is slower by a factor."""
        return StepCost(_rounded(factor * self.seconds_per_step), _rounded(factor * self.seconds_per_image))

    @property
    def usual_step_s(self) -> float:
        """What a step of a usual batch takes: what sites are compared by."""
        return self.seconds_per_step + USUAL_BATCH * self.seconds_per_image

    @property
    def step_images(self) -> float:
        """What a step costs whatever its batch, in images."""
        return self.seconds_per_step / self.seconds_per_image


def step_cost(model: nn.Module, shape: Sequence[int], config: RunConfig, device: Device) -> StepCost:
    """Measure a step at this machine, rounded to two significant digits (public).

    Each time is the shortest of five steps, since others may use the machine, of a copy of `model` on random numbers:
    no image and no label of the site is used, so it tells of its machine only. With privacy on batches of two sizes
    tell what a step costs whatever its batch.

    Args:
        model: on the device; left as it is.
        shape: of an input, without the batch.
        config: the run's: says whether gradients are clipped by unit.
        device: where to compute.
    """
    most = MOST_ROWS if len(shape) == 1 and config.private else min(MOST_IMAGES, config.training.batch_size)
    whole_s = _shortest_s(most, model, shape, config, device)
    if not config.private or most < SMALLER:
        return StepCost(0.0, _rounded(whole_s / most))
    few = most // SMALLER
    slope_s = (whole_s - _shortest_s(few, model, shape, config, device)) / (most - few)
    per_image_s = max(slope_s, LEAST_SHARE * whole_s / most)
    return StepCost(_rounded(max(0.0, whole_s - per_image_s * most)), _rounded(per_image_s))


def _rounded(seconds: float) -> float:
    return float(f"{seconds:.{DIGITS}g}")


def _shortest_s(count: int, model: nn.Module, shape: Sequence[int], config: RunConfig, device: Device) -> float:
    images = torch.rand((count, *shape), generator=torch.Generator())
    step = _step(copy.deepcopy(model), images.to(device.device), config, device)
    return min([_timed(step) for _ in range(REPEATS + 1)][1:])


def _timed(step: Callable[[], float]) -> float:
    """Seconds of a step, whose last act waits for the device."""
    start_s = time.perf_counter()
    step()
    return time.perf_counter() - start_s


def _step(model: nn.Module, images: Tensor, config: RunConfig, device: Device) -> Callable[[], float]:
    model.train()
    with torch.no_grad():
        logits = model(images)
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    if config.task == "multilabel":
        labels = torch.zeros(logits.shape, dtype=torch.int64, device=images.device)
    if config.private:
        owner = torch.arange(len(images), device=images.device)
        terms = NoiseConfig(config.privacy.clip_norm, 1.0, float(len(images)), source(None, "pace", 0, "noise"))
        private_step = PrivateStep.wrap(model, make_optimizer(model, config.training, 0), terms)
        first = private_step.clipped.trained[0]

        def private() -> float:
            with device.autocast():
                private_step(images, labels, owner, last=True)
            return float(first.detach().flatten()[0])

        return private

    def plain() -> float:
        model.zero_grad()
        with device.autocast():
            value = loss(model(images), labels)
        value.backward()  # type: ignore[no-untyped-call]
        return float(value.detach())

    return plain
