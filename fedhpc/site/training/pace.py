"""How fast a site trains: measured before the first round on public random numbers, and slowed down in stress tests."""

import copy
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from fedhpc.config.schema import RunConfig
from fedhpc.models.device import Device
from fedhpc.models.loss import loss
from fedhpc.site.per_example.clipped_sum import ClippedSum

OnStep = Callable[[int, int], None]
REPEATS, MOST_IMAGES = 5, 32
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


def seconds_per_image(model: nn.Module, shape: Sequence[int], config: RunConfig, device: Device) -> float:
    """Return the seconds that a step takes an image at this machine, rounded to two significant digits (public).

    It is the median of five steps, without their noise, of a copy of `model` on random numbers: no image and no label
    of the site is used, so the number tells of its machine only.

    Args:
        model: on the device; left as it is.
        shape: of an input, without the batch.
        config: the run's: says whether gradients are clipped by unit.
        device: where to compute.
    """
    images = torch.rand((min(MOST_IMAGES, config.training.batch_size), *shape), generator=torch.Generator())
    step = _step(copy.deepcopy(model), images.to(device.device), config, device)
    took = [_timed(step) for _ in range(REPEATS + 1)][1:]
    return float(f"{float(np.median(took)) / len(images):.{DIGITS}g}")


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
        clipped = ClippedSum(model, config.privacy.clip_norm)
        owner = torch.arange(len(images), device=images.device)

        def private() -> float:
            clipped.clear()
            with device.autocast():
                clipped.add(images, labels, owner)
            return float(clipped.total[0])

        return private

    def plain() -> float:
        model.zero_grad()
        with device.autocast():
            value = loss(model(images), labels)
        value.backward()  # type: ignore[no-untyped-call]
        return float(value.detach())

    return plain
