"""How fast a site trains: measured before the first round on public random numbers, and slowed down in stress tests."""

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from fedhpc.config.schema import RunConfig
from fedhpc.models.device import Device
from fedhpc.models.loss import loss
from fedhpc.models.vector import from_vector, to_vector
from fedhpc.privacy.noise import source
from fedhpc.site.training.dp_sgd import NoiseConfig, PrivateStep
from fedhpc.site.training.local_sgd import LocalRound, make_optimizer, train_plain
from fedhpc.util.arrays import F32, I64

OnStep = Callable[[int, int], None]
USUAL_BATCH = 64
TURNS, QUICK_TURNS, MOST_TURNS = 5, 25, 50
"""Steps of each batch that are timed: at least, of quick steps, and where these give no times that can be."""
MOST_IMAGES, MOST_ROWS = 32, 256
"""How large the batches are at most, of images and of rows of features."""
SMALLER, LEAST_SHARE = 4, 0.05
"""The second batch is so many times smaller; an image costs at least this share of a step over its images."""
MORE_STEPS, ROUNDS, SLOW_STEP_S = 8, 20, 0.02
"""Steps of the longer round that is timed, and how many of both; beside a step of more seconds the rest is nothing."""
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
        round_units: what a round costs whatever its steps, in units of the site's weight; 0 with privacy.
    """

    seconds_per_step: float
    seconds_per_image: float
    round_units: float = 0.0

    def times(self, factor: float) -> "StepCost":
        """Return the cost on a machine that is slower by a factor."""
        step_s, image_s = _rounded(factor * self.seconds_per_step), _rounded(factor * self.seconds_per_image)
        return StepCost(step_s, image_s, self.round_units)

    def with_round(self, round_units: float) -> "StepCost":
        """Return the cost with what a round costs whatever its steps, in units of the site's weight."""
        return replace(self, round_units=_rounded(round_units))

    @property
    def usual_step_s(self) -> float:
        """What a step of a usual batch takes: what sites are compared by."""
        return self.seconds_per_step + USUAL_BATCH * self.seconds_per_image

    @property
    def step_images(self) -> float:
        """What a step costs whatever its batch, in images."""
        return self.seconds_per_step / self.seconds_per_image


@dataclass(frozen=True)
class Bench:
    """What is timed, and where.

    Attributes:
        model: on the device; left as it is.
        shape: of an input, without the batch.
        config: the run's: says whether gradients are clipped by unit.
        device: where to compute.
    """

    model: nn.Module
    shape: Sequence[int]
    config: RunConfig
    device: Device

    @property
    def batch(self) -> int:
        """Images, or rows of features, of the largest batch that is timed."""
        is_rows = len(self.shape) == 1 and self.config.private
        return MOST_ROWS if is_rows else min(MOST_IMAGES, self.config.training.batch_size)


def step_cost(bench: Bench) -> StepCost:
    """Measure a step at this machine, rounded to two significant digits (public).

    Each time is the shortest of several steps, on a CPU of the time of this thread, since others may use the machine.
    The steps are of a copy of the model on random numbers: no image and no label of the site is used, so that they
    tell of its machine only. With privacy on batches of two sizes tell what a step costs whatever its batch.
    """
    most = bench.batch
    step = _timed_step(most, bench)
    if not bench.config.private or most < SMALLER:
        return StepCost(0.0, _rounded(min(step() for _ in range(TURNS)) / most))
    few = most // SMALLER
    return shortest(StepTimes(few, most), _timed_step(few, bench), step).cost


@dataclass(frozen=True)
class StepTimes:
    """The shortest times of private steps with two batches.

    Attributes:
        few, most: images of the batches.
        few_s, most_s: seconds.
    """

    few: int
    most: int
    few_s: float = math.inf
    most_s: float = math.inf

    @property
    def is_plausible(self) -> bool:
        """Whether both the images and the step itself cost something: a disturbed machine gives other times."""
        return self._slope_s > self._least_s and self._slope_s * self.most < self.most_s

    @property
    def cost(self) -> StepCost:
        """The line through both times; neither an image nor the step itself costs less than nothing."""
        per_image_s = max(self._slope_s, self._least_s)
        return StepCost(_rounded(max(0.0, self.most_s - per_image_s * self.most)), _rounded(per_image_s))

    @property
    def _slope_s(self) -> float:
        return (self.most_s - self.few_s) / (self.most - self.few)

    @property
    def _least_s(self) -> float:
        return LEAST_SHARE * self.most_s / self.most


def shortest(times: StepTimes, few: Callable[[], float], most: Callable[[], float]) -> StepTimes:
    """Return the shortest times of steps that take turns.

    There are QUICK_TURNS of them, and up to MOST_TURNS where their times cannot be. A step of more than SLOW_STEP_S is
    timed TURNS times: beside its images the step itself is nothing there.

    Args:
        times: of no step yet.
        few, most: make a step with each batch, and return its seconds.
    """
    for turn in range(MOST_TURNS):
        is_slow, is_plausible = times.most_s > SLOW_STEP_S, times.is_plausible
        if (turn >= TURNS and is_slow) or (turn >= QUICK_TURNS and is_plausible):
            break
        times = replace(times, few_s=min(times.few_s, few()), most_s=min(times.most_s, most()))
    return times


def round_cost_steps(bench: Bench) -> float:
    """Measure what a round without privacy costs whatever its steps, in steps of it (public).

    Rounds of one and of several steps on random numbers take turns, and the shortest of each counts: by the time of
    this thread on a CPU, which others that use it do not lengthen. 0 for a network a step of which takes so long that
    this does not count.
    """
    step = _timed_step(bench.batch, bench)
    if min(step() for _ in range(TURNS)) > SLOW_STEP_S:
        return 0.0
    usual = bench.config.training.batch_size
    batch = min(usual, MOST_ROWS if len(bench.shape) == 1 else MOST_IMAGES)
    training = bench.config.training.model_copy(update={"batch_size": batch, "local_epochs": 1})
    config = bench.config.model_copy(update={"training": training})
    images = torch.rand((MORE_STEPS * batch, *bench.shape), generator=torch.Generator())
    model = copy.deepcopy(bench.model)
    rows, start = _RandomRows(images, _no_labels(model, images.to(bench.device.device), config)), to_vector(model)
    clock = _clock(bench.device)
    one_s, more_s = math.inf, math.inf
    local = LocalRound(model, rows, config, config.site_names[0], 0, bench.device, lambda *_: None)
    for _ in range(ROUNDS):
        one_s = min(one_s, _timed(partial(_round, replace(local, effort=1 / MORE_STEPS), start), clock))
        more_s = min(more_s, _timed(partial(_round, local, start), clock))
    step_s = (more_s - one_s) / (MORE_STEPS - 1)
    return max(0.0, one_s / step_s - 1) * batch / usual if step_s > 0 else 0.0


def _round(local: LocalRound, start: F32) -> float:
    from_vector(local.model, start)
    train_plain(local)
    return float(to_vector(local.model)[0])


class _RandomRows:
    """Training images of random numbers, one a patient (public)."""

    def __init__(self, images: Tensor, labels: I64) -> None:
        self._images, self.labels, count = images, labels, len(images)
        self.patient = np.array([f"p{number}".encode() for number in range(count)], "S16")
        self.early = np.zeros(count, np.bool_)

    def indices(self, split: str) -> I64:
        """All of them."""
        return np.arange(len(self._images))

    def inputs(self, rows: I64) -> Tensor:
        """Those of some rows."""
        return self._images[torch.from_numpy(rows)]


def _rounded(seconds: float) -> float:
    return float(f"{seconds:.{DIGITS}g}")


def _clock(device: Device) -> Callable[[], float]:
    """Return a clock: of this thread on a CPU, which others that use the machine do not lengthen; else of the wall."""
    return time.thread_time if device.device.type == "cpu" else time.perf_counter


def _timed_step(count: int, bench: Bench) -> Callable[[], float]:
    """Return what makes a step with so many images and returns its seconds; one that is not timed has been made."""
    images = torch.rand((count, *bench.shape), generator=torch.Generator())
    step = _step(copy.deepcopy(bench.model), images.to(bench.device.device), bench.config, bench.device)
    step()
    return partial(_timed, step, _clock(bench.device))


def _timed(step: Callable[[], float], clock: Callable[[], float]) -> float:
    """Seconds of a step, whose last act waits for the device."""
    start_s = clock()
    step()
    return clock() - start_s


def _no_labels(model: nn.Module, images: Tensor, config: RunConfig) -> I64:
    """Labels 0, of the shape that the task asks for."""
    if config.task == "multiclass":
        return np.zeros(len(images), np.int64)
    with torch.no_grad():
        return np.zeros((len(images), model(images[:2]).shape[1]), np.int64)


def _step(model: nn.Module, images: Tensor, config: RunConfig, device: Device) -> Callable[[], float]:
    model.train()
    labels = torch.from_numpy(_no_labels(model, images, config)).to(images.device)
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
