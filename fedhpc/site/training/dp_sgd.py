"""DP-SGD at one hospital (Abadi et al. 2016, Algorithm 1): Poisson sampling, clipping, noise.

Formal guarantee: the sequence of updates that a site releases is (epsilon, delta)-differentially private for adding or
removing one unit (a patient with all images, or one image), by the ledger's accountant. What is sampled is what is
accounted: every step draws each unit independently with probability `sample_rate`, which is charged.

It rests on three things, each with its own proof: that one unit moves the sum of clipped gradients by at most
`clip_norm (1 + MARGIN)` (`fedhpc.site.per_example.clipped_sum`, which says what of that is proven and what is
measured); that the released sum is the exactly rounded sum plus Gaussian noise of standard deviation `noise_multiplier
clip_norm (1 + MARGIN)` (`fedhpc.privacy.noise`); and that nobody can tell or repeat the random numbers, all of which
are from an AES-256 keystream with a key of the operating system. `privacy.noise_seed` voids the last.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedhpc.privacy.gaussian import Noise, released
from fedhpc.privacy.keystream_ahead import KeystreamAhead
from fedhpc.privacy.noise import KeyStream, source
from fedhpc.site.data.samples import Samples
from fedhpc.site.per_example.clipped_sum import MARGIN, ClippedSum
from fedhpc.site.training.optimizers import Optimizer
from fedhpc.util.arrays import I64

PAD_MULTIPLE = 16
"""Images. A GPU's library searches anew for the kernels of each layer at every size of a batch that it has not seen,
which takes ten times as long as the step; Poisson batches of 64 images in the mean are padded to some five sizes."""
LARGEST_PARAMETER = 1e4
"""Of a model of which a private step is made. Weights of 1e7, which an aggregator could send and a large rate can make
in one step, amplify the rounding of features that a batch of another size gives, so that a clipped sum moves by more
than `clip_norm`."""


@dataclass(frozen=True)
class Entropy:
    """A site's secret randomness in one round: for what is drawn of the images, and for the noise."""

    sampling: KeyStream
    noise: KeyStream


def entropy(noise_seed: int | None, site: str, round: int) -> Entropy:
    """Return two streams keyed by the operating system, independent for each site, round and restart.

    A `noise_seed` makes them reproducible, though different at each site and round; it is for tests: no guarantee.
    """
    return Entropy(*(source(noise_seed, site, round, purpose) for purpose in ("sampling", "noise")))


@dataclass(frozen=True)
class Units:
    """The privacy units of a training split (private): `rows[u]` are the images of unit u."""

    rows: tuple[I64, ...]
    max_images: int

    @classmethod
    def of(cls, samples: Samples, unit: str, max_images: int) -> "Units":
        """Return the units of the training split: patients with all their images, or single images (unit="image")."""
        train = samples.indices("train")
        if unit == "image":
            return cls(tuple(train[:, None]), 1)
        _, owner = np.unique(samples.patient[train], return_inverse=True)
        order = np.argsort(owner, kind="stable")
        return cls(tuple(np.split(train[order], np.cumsum(np.bincount(owner))[:-1])), max_images)

    def draw(self, sample_rate: float, stream: KeyStream) -> list[I64]:
        """Draw each unit with probability `sample_rate` (Poisson sampling).

        Returns:
            of each unit that was drawn, int64[k]: its images, or `max_images` of them at random (private).
        """
        chosen = np.flatnonzero(stream.uniform(len(self.rows)) < sample_rate)
        return [self._some_images(self.rows[u], stream) for u in chosen]

    def _some_images(self, rows: I64, stream: KeyStream) -> I64:
        return rows if len(rows) <= self.max_images else rows[stream.chosen(len(rows), self.max_images)]


def physical_batches(drawn: list[I64], limit: int) -> Iterator[tuple[I64, I64, bool]]:
    """Yield (rows int64[k], unit of each row int64[k], whether it is the last part) of a drawn batch (private).

    A part has at most `limit` images, but for a unit that has more.

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
class NoiseConfig:
    """What a private optimiser needs: clip norm C, sigma / C, the public expected unit count, the noise's source.

    `multiple` as `ClippedSum` takes it.
    """

    clip_norm: float
    noise_multiplier: float
    expected_units: float
    noise: KeyStream
    multiple: int = 0


@dataclass(frozen=True)
class PrivateStep:
    """One clipped and noised optimiser step after another, on a wrapped model."""

    clipped: ClippedSum
    optimizer: Optimizer
    terms: NoiseConfig
    ahead: KeystreamAhead | None = None

    @classmethod
    def wrap(cls, model: nn.Module, optimizer: Optimizer, terms: NoiseConfig) -> "PrivateStep":
        """Attach to `model`, whose trained parameters `optimizer` steps; call `unwrap` when done.

        Raises:
            PrivacyError: where the model cannot be trained with privacy.
        """
        clipped = ClippedSum(model, terms.clip_norm, terms.multiple)
        if not clipped.mean.is_cuda or not terms.noise_multiplier:
            return cls(clipped, optimizer, terms)
        return cls(clipped, optimizer, terms, KeystreamAhead(terms.noise, len(clipped.mean), pinned=True))

    def __call__(self, images: Tensor, labels: Tensor, owner: Tensor, last: bool) -> None:
        """Accumulate the clipped gradients of these images' units; with `last`, add the noise and step.

        Args:
            images: [n, ...], n may be 0 (private).
            labels: int64 [n] (private).
            owner: int64 [n], the unit of each image, from 0 on with none left out; no unit is cut (private).
            last: whether the drawn batch is complete with these.
        """
        self.clipped.add(images, labels, owner)
        if last:
            self._step()

    def in_bounds(self) -> bool:
        """Whether all trained parameters, which are private already, are finite and at most LARGEST_PARAMETER."""
        norms = torch._foreach_norm([p.detach() for p in self.clipped.trained], math.inf)
        return bool(torch.stack(norms).max() <= LARGEST_PARAMETER)

    def unwrap(self) -> None:
        """Leave the model as it was."""
        self.clipped.close()
        if self.ahead is not None:
            self.ahead.close()

    def _step(self) -> None:
        """The one place where noise is added: once for each drawn batch, to the whole sum."""
        clipped, terms = self.clipped, self.terms
        std = terms.noise_multiplier * terms.clip_norm * (1 + MARGIN)
        noise = Noise(std, clipped.largest, terms.noise, None if self.ahead is None else self.ahead.bytes())
        mean = released(clipped.total, noise, terms.expected_units, clipped.mean)
        if self.ahead is not None:
            # Every copy of these bytes has ended: whether they are sure was read from the device.
            self.ahead.begin()
        clipped.clear()
        for p, part in zip(clipped.trained, clipped.split(mean), strict=True):
            p.grad = part.view_as(p)
        self.optimizer.step()
        self.optimizer.zero_grad()
