"""Local epochs at one hospital, plain and private."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedhpc.config.schema import RunConfig, Training
from fedhpc.models.device import Device
from fedhpc.models.vector import from_vector, to_vector
from fedhpc.privacy.plan import PrivacyPlan
from fedhpc.site.data.samples import Samples
from fedhpc.site.training.dp_sgd import Entropy, NoiseConfig, PrivateStep, Units, physical_batches
from fedhpc.site.training.optimizers import Optimizer, Sgd
from fedhpc.util.arrays import F32
from fedhpc.util.rng import generator, seed_of

OnStep = Callable[[int, int], None]
"""Called after every step with (steps done, steps in all)."""


def learning_rate(training: Training, round: int) -> float:
    """The rate of a round: constant, or half a cosine over the run (Loshchilov & Hutter 2017, without restarts)."""
    if training.lr_schedule == "constant":
        return training.lr
    return training.lr * 0.5 * (1 + math.cos(math.pi * round / training.rounds))


def make_optimizer(model: nn.Module, training: Training, round: int) -> Optimizer:
    """A fresh optimiser for one round: momenta do not cross rounds, since the parameters they belong to have moved."""
    lr = learning_rate(training, round)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if training.optimizer == "adam":
        return torch.optim.AdamW(parameters, lr, weight_decay=training.weight_decay)
    return Sgd(parameters, lr, training.momentum, training.weight_decay)


def mirrored(images: torch.Tensor, uniform: NDArray[np.float64]) -> torch.Tensor:
    """Each image [b, C, H, W] turned left to right with chance 1/2, by itself: the unit of privacy is not touched.

    Args:
        images: private.
        uniform: [b], uniform in [0, 1).
    """
    turned = torch.from_numpy(uniform < 0.5)
    return torch.where(turned[:, None, None, None], images.flip(3), images)


def train_plain(
    model: nn.Module, samples: Samples, config: RunConfig, at: tuple[str, int, Device], on_step: OnStep
) -> None:
    """`local_epochs` epochs of mini-batches, in an order that is a function of (seed, site, round, epoch).

    So is what the network draws of PyTorch's generator (dropout), whichever rank plays the site.

    Args:
        model: set to the global parameters; left at the local ones.
        samples: the site's own (private).
        config: the run's.
        at: (site, round, where to compute).
        on_step: told of each step.
    """
    site, round, _ = at
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(config.seed, site, round, "forward"))
        _epochs(model, samples, config, at, on_step)


def _epochs(
    model: nn.Module, samples: Samples, config: RunConfig, at: tuple[str, int, Device], on_step: OnStep
) -> None:
    site, round, bench = at
    training, rows = config.training, samples.indices("train")
    optimizer = make_optimizer(model, training, round)
    per_epoch = math.ceil(len(rows) / training.batch_size)
    done = 0
    for epoch in range(training.local_epochs):
        rng = generator(config.seed, site, round, epoch, "shuffle")
        for batch in np.array_split(rng.permutation(rows), per_epoch):
            images, labels = samples.inputs(batch), torch.from_numpy(samples.labels[batch])
            images = (mirrored(images, rng.random(len(images))) if training.random_flip else images).to(bench.device)
            optimizer.zero_grad()
            with bench.autocast():
                loss = nn.functional.cross_entropy(model(images), labels.to(bench.device))
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            done += 1
            on_step(done, per_epoch * training.local_epochs)


def one_step(model: nn.Module, training: Training, at: tuple[int, F32], gradient: F32) -> F32:
    """What one step of the round's fresh optimiser along a mean gradient f32[d] adds to the parameters, f32[d].

    Args:
        model: whose parameters are used for the arithmetic, and left changed.
        training: names optimiser, rate and weight decay.
        at: (round, the global parameters f32[d]).
        gradient: private already; all here is post-processing.
    """
    round, params = at
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


def train_private(
    model: nn.Module, samples: Samples, config: RunConfig, at: tuple[int, Device, PrivateWork], on_step: OnStep
) -> None:
    """The same number of epochs as DP-SGD: `plan.steps_per_round` Poisson batches, clipped per unit, noised.

    Args:
        model: set to the global parameters; left at the local ones, which are private already.
        samples: the site's own (private).
        config: the run's.
        at: (round, where to compute, the private work).
        on_step: told of each step.
    """
    round, bench, work = at
    plan, p, stream = work.plan, config.privacy, work.entropy.sampling
    terms = NoiseConfig(p.clip_norm, plan.noise_multiplier, plan.sample_rate * work.weight, work.entropy.noise)
    step = PrivateStep.wrap(model, make_optimizer(model, config.training, round), terms)
    for done in range(1, plan.steps_per_round + 1):
        drawn = work.units.draw(plan.sample_rate, stream)
        for rows, owner, last in physical_batches(drawn, p.max_physical_batch):
            images, labels = samples.inputs(rows), torch.from_numpy(samples.labels[rows])
            images = mirrored(images, stream.uniform(len(images))) if config.training.random_flip else images
            images = images.to(bench.device)
            with bench.autocast():
                step(images, labels.to(bench.device), torch.from_numpy(owner).to(bench.device), last)
        on_step(done, plan.steps_per_round)
    step.unwrap()
