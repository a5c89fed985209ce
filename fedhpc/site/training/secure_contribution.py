"""What a site gives to a secure sum: its clipped gradients as integers, added exactly, and its share of the noise.

Formal guarantee. Each unit (a patient or an image) is clipped to `clip_norm` and rounded to integers *by itself*, and
the integers are added: so the sum over all units of all sites changes by one unit's integer vector when one unit is
added or removed, with an L2 norm of at most `IntegerGrid.l2`, whatever the order and the size of batches. (Rounding the
site's float sum instead would add the rounding errors of that sum, which depend on every unit.) The noise is Skellam on
the same integers: no real number is rounded after it. What remains float32 is each unit's own gradient, taken to be a
function of that unit alone. It is so, whatever the parameters are, for a linear head (`per_example.linear_head`), and
for any network with `privacy.max_physical_batch: 1`. Else float32 kernels round by the size of the batch: the tests
bound what that adds, less than 10^-4 of `l2` for a small DenseNet, but for parameters that were made for it. `MARGIN`,
which is part of `l2` as it is of the noise of `training.dp_sgd`, covers ten times as much.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedhpc.config.privacy import Privacy
from fedhpc.errors import PrivacyError
from fedhpc.models.device import Device
from fedhpc.models.loss import loss
from fedhpc.models.vector import parameter_count
from fedhpc.privacy.noise import KeyStream
from fedhpc.privacy.skellam import SMALLEST_VARIANCE, draw, variance_for
from fedhpc.site.per_example.clipped_sum import MARGIN
from fedhpc.site.per_example.linear_head import LinearHead
from fedhpc.site.training.dp_sgd import physical_batches
from fedhpc.site.training.local_sgd import LocalRound, PrivateWork, mirrored
from fedhpc.util.arrays import I64

FINENESS = 2**10
LARGEST_SIZE = 100_000
"""Every unit's own gradient is formed and rounded: with 600 units a linear head of 100,000 parameters takes about 1 s a
round on one core, three times a plain private step, and 0.4 GB; one of a million would take ten times both."""
WRAP_CHANCE_LOG2 = -40


@dataclass(frozen=True)
class IntegerGrid:
    """The integers of one run (public; the same at all sites and in all rounds).

    Attributes:
        clip_units: a gradient of norm `clip_norm` is `clip_units` long on the grid; a power of two.
        l2: what the noise covers: clip_units, the most that rounding to nearest can add, and MARGIN of clip_units. No
            unit's integer vector is longer.
        site_variance: of the Skellam noise that each site adds to every entry.
        width_bytes: sums are modulo 2^(8 width_bytes), wide enough for all sites' sums and noise.
    """

    clip_units: int
    l2: float
    site_variance: float
    width_bytes: int

    def check_noise(self, noise_multiplier: float, honest_sites: int) -> None:
        """Check that shares of `honest_sites` sites on this grid are at least the noise that a site is charged for.

        Raises:
            PrivacyError: they are less.
        """
        if not self.site_variance >= variance_for(noise_multiplier, self.l2) / honest_sites:
            raise PrivacyError(
                f"secure sum: shares of variance {self.site_variance:g} are less than the noise multiplier "
                f"{noise_multiplier:g} of {honest_sites} honest sites, which this site is charged for. Nothing was "
                "released",
                code="privacy.plan",
            )

    def bound(self, weight: int) -> int:
        """Return the largest entry of the sum of a site of this declared weight."""
        return weight * math.ceil(self.l2)

    def mean_gradient(self, total: I64, weight: int, privacy: Privacy) -> NDArray[np.float32]:
        """Return the private mean gradient f32[d] that an integer sum over sites of this total weight stands for."""
        units = weight * privacy.sample_rate
        return (total.astype(np.float64) * (privacy.clip_norm / (self.clip_units * units))).astype(np.float32)


def plan_grid(
    noise_multiplier: float, size: int, weights: Sequence[int], honest_sites: int, rounds: int
) -> IntegerGrid:
    """Return the grid on which `honest_sites` shares of the noise make the noise multiplier (all public).

    It is so fine that rounding adds less than 1 / (2 FINENESS) to the sensitivity. A true sum cannot wrap round, since
    each site keeps its own within `IntegerGrid.bound`; with the noise any entry in the whole run does with a chance
    below 2^-40, by Chernoff's bound for a Skellam variable of variance s^2, P(|X| >= x s) <= 2 exp(-x^2 / 2 (1 -
    10^-3)).

    Args:
        noise_multiplier: of the honest sites' noise together, by `fedhpc.privacy.skellam.calibrate`.
        size: d.
        weights: declared number of units of each site.
        honest_sites: how many sites' noise counts.
        rounds: of the run.

    Raises:
        PrivacyError: more than LARGEST_SIZE parameters, or weights too large for 64 bits.

    >>> grid = plan_grid(12.7927, 5124, (840, 630, 370, 260), 3, 10)
    >>> grid.clip_units == 2**17, round(grid.l2 / grid.clip_units, 5), grid.width_bytes
    (True, 1.00125, 4)
    >>> round((3 * grid.site_variance) ** 0.5 / grid.l2, 4)
    12.7927
    """
    if size > LARGEST_SIZE:
        raise PrivacyError(
            f"model: {size:,} parameters are trained; privacy.trust=sites forms every unit's gradient as integers and "
            f"takes at most {LARGEST_SIZE:,}: train a head on a frozen backbone, or use trust=aggregator",
            code="privacy.network",
        )
    clip_units, l2, variance = 1, 0.0, 0.0
    while clip_units < FINENESS * math.sqrt(size) or variance < SMALLEST_VARIANCE:
        clip_units *= 2
        l2 = clip_units * (1 + MARGIN) + math.sqrt(size) / 2
        variance = variance_for(noise_multiplier, l2) / honest_sites
    deviations = math.sqrt(2 * 1.001 * math.log(2 * size * rounds * 2**-WRAP_CHANCE_LOG2))
    largest = sum(weights) * math.ceil(l2) + math.ceil(deviations * math.sqrt(len(weights) * variance))
    width_bytes = math.ceil((largest.bit_length() + 1) / 8)
    if width_bytes > 8:
        raise PrivacyError(f"data.sites: sums of {sum(weights)} units do not fit into 64 bits; declare smaller weights")
    return IntegerGrid(clip_units, l2, variance, width_bytes)


def rounded_(gradients: Tensor, clip_norm: float, grid: IntegerGrid) -> Tensor:
    """Clip each unit's gradient and round it to the grid, in place: float64[u, d] -> integers as float64 (private).

    A unit whose gradient is not finite gives zeros, since no factor would bound it; to fail because of it would tell
    that the unit is there. All integers here are far below 2^53, so that float64 holds them, their squares' sum and
    their sum exactly.

    Raises:
        ValueError: where a vector is longer than `grid.l2`, which the clipping rules out.
    """
    norms = torch.linalg.vector_norm(gradients, dim=1, keepdim=True)
    finite = torch.isfinite(norms)
    if not finite.all():
        gradients.masked_fill_(~finite, 0)
        norms.masked_fill_(~finite, 0)
    units = gradients.mul_(grid.clip_units / norms.clamp_min(clip_norm)).round_()
    longest = float(torch.linalg.vecdot(units, units).max()) if len(units) else 0.0
    if longest > grid.l2**2:
        raise ValueError(f"a clipped unit is {longest**0.5} long where the noise covers {grid.l2}: this is a fault")
    return units


def contribution(local: LocalRound, work: PrivateWork, grid: IntegerGrid, noise: KeyStream) -> I64:
    """Return one site's vector for the secure sum of one round, int64[d]: to be masked before it leaves.

    By itself it carries only the site's share of the noise; under the masks only the sum of all is ever seen.

    Args:
        local: its model is set to the global parameters, and left so.
        work: what is sampled.
        grid: the integers of the run.
        noise: the source of the noise (secret).
    """
    samples, config, sampling = local.samples, local.config, work.entropy.sampling
    total = torch.zeros(parameter_count(local.model), dtype=torch.int64, device=local.device.device)
    drawn = work.units.draw(work.plan.sample_rate, sampling)
    with per_image_gradients(local.model, local.device) as gradients:
        for rows, owner, _ in physical_batches(drawn, config.privacy.max_physical_batch):
            if len(rows):
                images, labels = samples.inputs(rows), torch.from_numpy(samples.labels[rows])
                images = mirrored(images, sampling.uniform(len(images))) if config.training.random_flip else images
                units = mean_by_unit(gradients(images, labels), torch.from_numpy(owner).to(local.device.device))
                total += rounded_(units, config.privacy.clip_norm, grid).sum(dim=0).to(torch.int64)
    bound = grid.bound(work.weight)
    kept: I64 = total.clamp(-bound, bound).cpu().numpy()
    local.on_step(1, 1)
    return kept + draw(grid.site_variance, kept.size, noise)


@contextmanager
def per_image_gradients(model: nn.Module, device: Device) -> Iterator[Callable[[Tensor, Tensor], Tensor]]:
    """A function (inputs [b, ...], labels int64[b]) -> each image's own gradient, float64[b, d] (private).

    The hooks are off the model again at the end, also where a site fails and the round goes on without it.
    """
    head = LinearHead.of(model)
    if head is not None:
        yield partial(_head_gradients, head, device)
        return
    from opacus import GradSampleModule

    module = GradSampleModule(model, loss_reduction="sum")
    trained = [p for p in module.parameters() if p.requires_grad]

    def gradients(inputs: Tensor, labels: Tensor) -> Tensor:
        with device.autocast():
            outputs = module(inputs.to(device.device))
            value = loss(outputs, labels.to(device.device), "sum")
        # torch tells that images need no gradient of their own; Opacus's hooks don't use it.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        value.backward()  # type: ignore[no-untyped-call]
        per_image: list[Tensor] = [getattr(p, "grad_sample") for p in trained]  # noqa: B009
        flat = torch.cat([g.flatten(1) for g in per_image], dim=1).double()
        module.zero_grad()
        return flat

    try:
        yield gradients
    finally:
        module.remove_hooks()
        for p in trained:
            p.grad = None
            p.__dict__.pop("grad_sample", None)


@torch.no_grad()
def _head_gradients(head: LinearHead, device: Device, inputs: Tensor, labels: Tensor) -> Tensor:
    """In closed form: each row is a function of its own image alone, bit for bit, whatever the weights are."""
    x, labels = head.features(inputs.to(device.device)), labels.to(device.device)
    return head.gradients(x, head.residuals(x, labels, torch.arange(len(x), device=x.device)))


def mean_by_unit(per_image: Tensor, owner: Tensor) -> Tensor:
    """Return the mean gradient of each unit's images: float64[b, d] -> float64[u, d]."""
    counts = torch.bincount(owner)
    if len(counts) == len(owner):
        return per_image
    sums = per_image.new_zeros((len(counts), per_image.shape[1])).index_add_(0, owner, per_image)
    return sums.div_(counts[:, None])
