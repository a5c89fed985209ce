"""What a site gives to the one release of `model.feature_mean: sites`: the sum of its units' whitened features.

Formal guarantee. A unit (an image, or a patient with the mean of all its training images) is one vector of length at
most 1, rounded to the integers of a public grid by itself, and the integers are added: adding or removing a unit moves
the sum by at most `IntegerGrid.l2`, whatever the order and the size of batches. With privacy.trust=aggregator the site
adds Gaussian noise of standard deviation `feature_mean_noise l2`, rounded exactly (`fedhpc.privacy.gaussian`); with
trust=sites its share of Skellam noise, so that the honest sites' shares together have at least that variance
(`fedhpc.privacy.skellam`). It is charged before it is computed, and the plan makes the rounds' noise larger by as much.
An image's features are a function of that image alone (`Whitening.by_rows`), whatever the map is.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from fedhpc.models.device import Device
from fedhpc.models.whitening import Whitening
from fedhpc.privacy.gaussian import Noise, released
from fedhpc.privacy.noise import KeyStream
from fedhpc.privacy.skellam import draw
from fedhpc.site.data.samples import Samples
from fedhpc.site.training.dp_sgd import Units, physical_batches
from fedhpc.site.training.secure_contribution import IntegerGrid, mean_by_unit, rounded_
from fedhpc.util.arrays import F64, I64

LENGTH = 1.0
"""Of a whitened feature vector, by construction."""


@dataclass(frozen=True)
class Features:
    """Where a site's whitened features come from: its model, samples and units (private), and the largest batch."""

    model: nn.Module
    samples: Samples
    units: Units
    device: Device
    batch: int


def whitened_sum(features: Features, grid: IntegerGrid, weight: int) -> I64:
    """The exact sum over all training units on the grid, int64[d], no entry beyond `grid.bound(weight)` (private)."""
    whitening = next(module for module in features.model.modules() if isinstance(module, Whitening))
    total = torch.zeros(whitening.projection.shape[1], dtype=torch.int64)
    for rows, owner, _ in physical_batches(list(features.units.rows), features.batch):
        if len(rows):
            with torch.no_grad():
                images = whitening.by_rows(features.samples.inputs(rows).to(features.device.device))
            units = mean_by_unit(images.double().cpu(), torch.from_numpy(owner))
            total += rounded_(units, LENGTH, grid).sum(dim=0).to(torch.int64)
    bound = grid.bound(weight)
    kept: I64 = total.clamp(-bound, bound).numpy()
    return kept


def noisy_sum(total: I64, grid: IntegerGrid, noise_multiplier: float, stream: KeyStream) -> F64:
    """Return the sum with all of the noise, f64[d] in lengths of a unit: private by itself.

    Args:
        total: int64[d] (private).
        grid: of the integers.
        noise_multiplier: 0 adds none, for a run without privacy.
        stream: the source of the noise (secret).
    """
    noise = Noise(noise_multiplier * grid.l2, float(np.abs(total).max(initial=0)), stream)
    out: F64 = (released(torch.from_numpy(total.astype(np.float64)), noise) / grid.clip_units).numpy()
    return out


def shared_sum(total: I64, grid: IntegerGrid, stream: KeyStream) -> I64:
    """Return the sum with this site's share of the noise, int64[d]: private only under the masks of a secure sum."""
    return total + draw(grid.site_variance, total.size, stream)
