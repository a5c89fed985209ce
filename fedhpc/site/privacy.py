"""DP-SGD at one hospital (Abadi et al. 2016, Algorithm 1), by Opacus: calibration, Poisson sampling, clipping, noise.

Formal guarantee: the sequence of updates that a site releases is (epsilon, delta)-differentially private for adding or
removing one unit (a patient with all images, or one image), by the ledger's accountant. What is sampled is what is
accounted: every step draws each unit independently with probability `sample_rate`.
"""

import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from fedhpc.config import RunConfig
from fedhpc.rng import seed_of
from fedhpc.site.accountant import Bounds, Charge, Mechanism, bounds_of, calibrate_gaussian
from fedhpc.site.samples import Samples
from fedhpc.site.skellam import calibrate

I64 = NDArray[np.int64]


@dataclass(frozen=True)
class PrivacyPlan:
    """The noise that makes a whole run meet its target (public); equal at all sites, as sample rate and steps are."""

    noise_multiplier: float
    sample_rate: float
    steps_per_round: int
    mechanism: Mechanism = "gaussian"

    def charge(self, round: int) -> Charge:
        """What one round costs."""
        return Charge(round, self.noise_multiplier, self.sample_rate, self.steps_per_round, self.mechanism)

    def bounds(self, rounds: int, delta: float) -> Bounds:
        """What so many rounds will have cost."""
        return bounds_of(map(self.charge, range(rounds)), delta)


def plan_privacy(config: RunConfig) -> PrivacyPlan:
    """Calibrate the noise multiplier by PRV for all rounds of the run (Gopi et al. 2021).

    With privacy.trust=sites it is that of the honest sites' Skellam noise together, one release a round, by RDP.

    Raises:
        PrivacyError: where no noise reaches the target.
    """
    p = config.privacy
    if p.epsilon is None:
        raise ValueError("privacy.epsilon=null: a run without privacy has no plan")
    if p.trust == "sites":
        return PrivacyPlan(calibrate(p.epsilon, p.delta, config.training.rounds), 1.0, 1, "skellam")
    steps = config.training.local_epochs * max(1, round(1 / p.sample_rate))
    sigma = calibrate_gaussian(p.epsilon, p.delta, p.sample_rate, steps * config.training.rounds)
    return PrivacyPlan(sigma, p.sample_rate, steps)


@dataclass(frozen=True)
class Entropy:
    """A site's secret randomness in one round: for the Poisson draws and for the noise."""

    sampling: np.random.Generator
    noise: torch.Generator


def entropy(noise_seed: int | None, site: str, round: int, device: torch.device) -> Entropy:
    """Fresh randomness from the operating system, independent for each site, round and restart.

    A `noise_seed` makes it reproducible, though different at each site and round; it is for tests: no guarantee.
    """
    noise = torch.Generator(device)
    if noise_seed is None:
        noise.manual_seed(int.from_bytes(os.urandom(8), "little") >> 1)
        return Entropy(np.random.default_rng(), noise)
    noise.manual_seed(seed_of(noise_seed, site, round, "noise"))
    return Entropy(np.random.default_rng(seed_of(noise_seed, site, round, "sampling")), noise)


@dataclass(frozen=True)
class Units:
    """The privacy units of a training split (private): `rows[u]` are the images of unit u."""

    rows: tuple[I64, ...]
    max_images: int

    @classmethod
    def of(cls, samples: Samples, unit: str, max_images: int) -> "Units":
        """Patients with all their training images, or single images."""
        train = samples.indices("train")
        if unit == "image":
            return cls(tuple(train[:, None]), 1)
        _, owner = np.unique(samples.patient[train], return_inverse=True)
        order = np.argsort(owner, kind="stable")
        return cls(tuple(np.split(train[order], np.cumsum(np.bincount(owner))[:-1])), max_images)

    def draw(self, sample_rate: float, rng: np.random.Generator) -> list[I64]:
        """Poisson sampling: each unit with probability `sample_rate`; of a unit, at most `max_images` random images."""
        chosen = np.flatnonzero(rng.random(len(self.rows)) < sample_rate)
        return [self._some_images(self.rows[u], rng) for u in chosen]

    def _some_images(self, rows: I64, rng: np.random.Generator) -> I64:
        return rows if len(rows) <= self.max_images else rng.choice(rows, self.max_images, replace=False)


def physical_batches(drawn: list[I64], limit: int) -> Iterator[tuple[I64, I64, bool]]:
    """(rows, unit number of each row, is the last) of a drawn batch in parts of at most `limit` images.

    A unit is never cut. There is always one part: an empty draw is a step too, of noise alone.
    """
    parts: list[list[I64]] = [[]]
    for rows in drawn:
        if parts[-1] and sum(map(len, parts[-1])) + len(rows) > limit:
            parts.append([])
        parts[-1].append(rows)
    for number, part in enumerate(parts):
        owner = np.repeat(np.arange(len(part)), [len(rows) for rows in part])
        yield np.concatenate([np.empty(0, np.int64), *part]), owner, number == len(parts) - 1


@dataclass(frozen=True)
class PrivateStep:
    """One clipped and noised optimiser step after another, on a wrapped model."""

    module: GradSampleModule
    optimizer: DPOptimizer

    @classmethod
    def wrap(cls, model: nn.Module, optimizer: torch.optim.Optimizer, terms: "Terms") -> "PrivateStep":
        """Hook `model` for per-sample gradients; call `unwrap` when done."""
        dp = DPOptimizer(
            optimizer,
            noise_multiplier=terms.noise_multiplier,
            max_grad_norm=terms.clip_norm,
            expected_batch_size=terms.expected_units,
            loss_reduction="mean",
            generator=terms.noise,
        )
        return cls(GradSampleModule(model, loss_reduction="sum"), dp)

    def __call__(self, images: Tensor, labels: Tensor, owner: Tensor, last: bool) -> None:
        """Accumulate the clipped gradients of these images' units; with `last`, add the noise and step."""
        if len(images):
            # torch tells that images need no gradient of their own; Opacus's hooks don't use it.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            loss = nn.functional.cross_entropy(self.module(images), labels, reduction="sum")
            loss.backward()  # type: ignore[no-untyped-call]
        for p in self._trained():
            # Opacus hangs the per-sample gradients [b, ...] on the parameter itself.
            per_image: Tensor = getattr(p, "grad_sample") if len(images) else p.new_zeros((0, *p.shape))  # noqa: B009
            p.grad_sample = _mean_by_unit(per_image, owner)  # type: ignore[attr-defined]
        self.optimizer.signal_skip_step(do_skip=not last)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def unwrap(self) -> None:
        """Take the hooks off the model."""
        self.module.remove_hooks()
        for p in self._trained():
            p.__dict__.pop("grad_sample", None), p.__dict__.pop("summed_grad", None)

    def _trained(self) -> list[nn.Parameter]:
        return [p for p in self.module.parameters() if p.requires_grad]


@dataclass(frozen=True)
class Terms:
    """What a private optimiser needs: clip norm C, sigma / C, the public expected unit count, the noise's source."""

    clip_norm: float
    noise_multiplier: float
    expected_units: float
    noise: torch.Generator


def _mean_by_unit(grad_sample: Tensor, owner: Tensor) -> Tensor:
    """Per-image gradients [b, ...] -> per-unit means [units, ...]: what is clipped is the unit's contribution."""
    counts = torch.bincount(owner)
    if len(counts) == len(owner):
        return grad_sample
    sums = grad_sample.new_zeros((len(counts), *grad_sample.shape[1:])).index_add_(0, owner, grad_sample)
    return sums / counts.view(-1, *[1] * (grad_sample.ndim - 1))
