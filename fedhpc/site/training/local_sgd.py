"""Local epochs at one hospital, plain and private."""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedhpc.config.schema import RunConfig
from fedhpc.config.training import Training
from fedhpc.errors import SiteError
from fedhpc.models.device import Device
from fedhpc.models.loss import loss
from fedhpc.models.vector import from_vector, to_vector
from fedhpc.privacy.plan import PrivacyPlan
from fedhpc.site.data.resident import ResidentSamples
from fedhpc.site.data.samples import Samples, reads_files
from fedhpc.site.training.dp_sgd import (
    LARGEST_PARAMETER,
    PAD_MULTIPLE,
    Entropy,
    NoiseConfig,
    PrivateStep,
    Units,
    physical_batches,
)
from fedhpc.site.training.optimizers import Optimizer, Sgd
from fedhpc.site.training.regularizers import NOTHING, Regularizer, regularized
from fedhpc.util.arrays import F32, I64
from fedhpc.util.read_ahead import read_ahead
from fedhpc.util.rng import generator, seed_of

OnStep = Callable[[int, int], None]
"""Called after every step with (steps done, steps in all)."""


def learning_rate(training: Training, round: int) -> float:
    """The rate of a round: constant, or half a cosine over the run (Loshchilov & Hutter 2017, without restarts)."""
    if training.lr_schedule == "constant":
        return training.lr
    return training.lr * 0.5 * (1 + math.cos(math.pi * round / training.rounds))


def steps_per_epoch(images: int, training: Training) -> int:
    """Return how many mini-batches an epoch over so many images has, without privacy."""
    return math.ceil(images / training.batch_size)


def local_steps(images: int, training: Training, effort: float = 1.0) -> int:
    """Return how many steps a round over so many images has, without privacy; `effort`: the share of them that is made.

    >>> local_steps(640, Training(batch_size=64, local_epochs=3)), local_steps(640, Training(local_epochs=3), 0.1)
    (30, 3)
    >>> local_steps(64, Training(), 0.01), local_steps(640, Training(local_epochs=0.25))
    (1, 2)
    """
    return max(1, int(effort * training.local_epochs * steps_per_epoch(images, training) * (1 + 1e-12)))


def gradient_weight(training: Training, round: int, steps: int) -> float:
    """By how much the mean gradient of a round of SGD enters its update: update = -weight * sum_k a_k g_k / sum_k a_k.

    With momentum m the k-th of K gradients is in K - k + 1 steps, so that a_k = (1 - m^(K - k + 1)) / (1 - m). The
    weight is the rate times their sum (Wang et al. 2020, "Tackling the Objective Inconsistency Problem", section 3,
    |a_i|_1). Without momentum it is the rate times the number of steps.

    Args:
        training: names rate and momentum.
        round: from 0 on.
        steps: K.

    >>> gradient_weight(Training(lr=0.5, lr_schedule="constant", momentum=0.0), 0, steps=4)
    2.0
    >>> gradient_weight(Training(lr=1.0, lr_schedule="constant", momentum=0.5), 0, steps=2)
    2.5
    """
    m = training.momentum
    factors = [(1 - m ** (steps - k)) / (1 - m) for k in range(steps)]
    return learning_rate(training, round) * math.fsum(factors)


def make_optimizer(model: nn.Module, training: Training, round: int) -> Optimizer:
    """Return a fresh optimiser for one round: momenta do not cross rounds, whose parameters have moved."""
    lr = learning_rate(training, round)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if training.optimizer == "adam":
        return torch.optim.AdamW(parameters, lr, weight_decay=training.weight_decay)
    return Sgd(parameters, lr, training.momentum, training.weight_decay)


def mirrored(images: torch.Tensor, uniform: NDArray[np.float64]) -> torch.Tensor:
    """Each image [b, C, ..., W] turned left to right with chance 1/2, by itself: the unit of privacy is not touched.

    Args:
        images: private.
        uniform: [b], uniform in [0, 1).
    """
    turned = torch.from_numpy(uniform < 0.5).to(images.device)
    return torch.where(turned.view(-1, *[1] * (images.ndim - 1)), images.flip(-1), images)


@dataclass(frozen=True)
class Batch:
    """One physical batch (private): images [n, ...], labels, and of a private step the unit of each image, int64 [n].

    `first` and `last` say where it stands in its step.
    """

    images: torch.Tensor
    labels: torch.Tensor
    owner: torch.Tensor
    first: bool = True
    last: bool = True


@dataclass(frozen=True)
class LocalRound:
    """One round of local training at one site.

    Attributes:
        model: set to the global parameters, and trained in place.
        samples: the site's own (private).
        config: the run's.
        site: the site's name (public).
        round: from 0 on.
        device: where to compute.
        on_step: called after each step.
        regularizer: what is added to the loss.
        effort: the share of its images that the site trains on, without privacy (`schedule`); with it the plan says.
    """

    model: nn.Module
    samples: Samples
    config: RunConfig
    site: str
    round: int
    device: Device
    on_step: OnStep
    regularizer: Regularizer = NOTHING
    effort: float = 1.0

    def optimizer(self) -> Optimizer:
        """Return a fresh optimiser for the round, while the model is set to the global parameters."""
        return regularized(make_optimizer(self.model, self.config.training, self.round), self.model, self.regularizer)

    def read(self, rows: I64, uniform: Callable[[int], NDArray[np.float64]]) -> Batch:
        """Return rows int64[b] as a batch (private); `uniform` draws f64[n] in [0, 1), for what is mirrored."""
        images = self.samples.inputs(rows)
        if self.config.training.random_flip:
            images = mirrored(images, uniform(len(images)))
        labels = torch.from_numpy(self.samples.labels[rows])
        return Batch(self.device.sendable(images), self.device.sendable(labels), torch.empty(0))

    @contextlib.contextmanager
    def batches(self, made: Iterator[Batch]) -> Iterator[Iterator[Batch]]:
        """Give the batches; a thread reads ahead where they come from files, or from the host to a GPU."""
        copied = self.device.device.type != "cpu" and not isinstance(self.samples, ResidentSamples)
        if not (copied or reads_files(self.samples)):
            yield made
            return
        with contextlib.closing(read_ahead(made)) as batches:
            yield batches


def train_plain(local: LocalRound) -> None:
    """Train `local_epochs` epochs of mini-batches, in an order that is a function of (seed, site, round, epoch).

    With an effort below 1, or a part of an epoch, it ends after that share of the steps; where that is less than one,
    after one of a part of a batch.

    So is what the network draws of PyTorch's generator (dropout), whichever rank plays the site.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(local.config.seed, local.site, local.round, "forward"))
        _epochs(local)


def _epochs(local: LocalRound) -> None:
    device, optimizer = local.device, local.optimizer()
    forward = device.forward(local.model)
    images_in_all = len(local.samples.indices("train"))
    steps = local_steps(images_in_all, local.config.training, local.effort)
    with local.batches(_plain_batches(local)) as batches:
        for done, batch in enumerate(batches, 1):
            images, labels = device.take(batch.images), device.take(batch.labels)
            optimizer.zero_grad()
            with device.autocast():
                value = loss(forward(images), labels)
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            local.on_step(done, steps)


def _plain_batches(local: LocalRound) -> Iterator[Batch]:
    """Yield the batches of a round without privacy, each image in a unit of no meaning."""
    config, training, rows = local.config, local.config.training, local.samples.indices("train")
    per_epoch = steps_per_epoch(len(rows), training)
    left = local_steps(len(rows), training, local.effort)
    share = min(1.0, local.effort * training.local_epochs * per_epoch)
    for epoch in range(training.epochs_begun):
        rng = generator(config.seed, local.site, local.round, epoch, "shuffle")
        for whole in np.array_split(rng.permutation(rows), per_epoch)[:left]:
            batch = whole[: math.ceil(share * len(whole))]
            yield local.read(batch, rng.random)
            left -= 1


def one_step(model: nn.Module, training: Training, round: int, params: F32, gradient: F32) -> F32:
    """Return what one step of the round's fresh optimiser along a mean gradient f32[d] adds to the parameters, f32[d].

    Args:
        model: whose parameters are used for the arithmetic, and left changed.
        training: names optimiser, rate and weight decay.
        round: from 0 on.
        params: the global parameters f32[d].
        gradient: private already; all here is post-processing.
    """
    from_vector(model, gradient)
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = [p.detach().clone() for p in trained]
    from_vector(model, params)
    for p, g in zip(trained, gradients, strict=True):
        p.grad = g
    make_optimizer(model, training, round).step()
    model.zero_grad()
    return to_vector(model) - params


@dataclass(frozen=True)
class PrivateWork:
    """One private round: what is sampled, by which plan and randomness; `weight` is the declared unit count."""

    units: Units
    plan: PrivacyPlan
    entropy: Entropy
    weight: int


def train_private(local: LocalRound, work: PrivateWork) -> None:
    """Train the same number of epochs by DP-SGD: `plan.steps_per_round` Poisson batches, clipped per unit, noised.

    The parameters that it leaves in `local.model` are private already.

    Raises:
        SiteError: a step has moved a parameter beyond LARGEST_PARAMETER; no further one is made.
    """
    model, device, plan, p = local.model, local.device, work.plan, local.config.privacy
    padded = device.device.type == "cuda" if p.pad_batches == "auto" else p.pad_batches
    expected, noise = plan.sample_rate * work.weight, work.entropy.noise
    terms = NoiseConfig(p.clip_norm, plan.noise_multiplier, expected, noise, PAD_MULTIPLE if padded else 0)
    step = PrivateStep.wrap(model, local.optimizer(), terms)
    try:
        _private_steps(local, work, step)
    finally:
        step.unwrap()


def _private_steps(local: LocalRound, work: PrivateWork, step: PrivateStep) -> None:
    device, done = local.device, 0
    with local.batches(_private_batches(local, work)) as batches:
        for batch in batches:
            if batch.first and not step.in_bounds():
                raise SiteError(
                    f"site {local.site}, round {local.round + 1}, before step {done + 1}: a parameter is larger than "
                    f"{LARGEST_PARAMETER:g} or not finite, where clipping is not proven to bound one unit; nothing of "
                    "the round was released. Lower training.lr",
                    code="site.diverged",
                )
            images, labels, owner = (device.take(part) for part in (batch.images, batch.labels, batch.owner))
            with device.autocast():
                step(images, labels, owner, batch.last)
            if batch.last:
                done += 1
                local.on_step(done, work.plan.steps_per_round)


def _private_batches(local: LocalRound, work: PrivateWork) -> Iterator[Batch]:
    """Yield the physical batches of all steps of a round; what is drawn is a function of the stream alone."""
    stream = work.entropy.sampling
    for _ in range(work.plan.steps_per_round):
        first = True
        drawn = work.units.draw(work.plan.sample_rate, stream)
        for rows, owner, last in physical_batches(drawn, local.config.privacy.max_physical_batch):
            batch = local.read(rows, stream.uniform)
            yield replace(batch, owner=torch.from_numpy(owner), first=first, last=last)
            first = False
