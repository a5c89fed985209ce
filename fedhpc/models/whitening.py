"""The public map from a backbone's features to the few that a head is trained on, fitted to public images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedhpc.errors import InputError
from fedhpc.util.arrays import F32


class Whitening(nn.Module):
    """Features f32[b, D] -> f32[b, d] of length 1, by a public affine map; nothing in it is trained.

    Length 1 bounds what any image can do to the gradient of a linear head, so clipping need not bend it.

    Args:
        size, kept: D and d.
        blocks: sizes of the parts of the features that each image standardises by itself first (`in_blocks`); none:
            the features are taken as they are.
    """

    mean: Tensor
    projection: Tensor

    def __init__(self, size: int, kept: int, blocks: Sequence[int] = ()) -> None:
        super().__init__()
        self.blocks = tuple(blocks)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("projection", torch.zeros(size, kept))

    def forward(self, features: Tensor) -> Tensor:
        """Return the leading whitened directions, scaled to the unit sphere."""
        return nn.functional.normalize((in_blocks(features, self.blocks) - self.mean) @ self.projection, dim=1)

    def by_rows(self, features: Tensor) -> Tensor:
        """The same, to within rounding; the bits of a row are a function of that row alone.

        A matrix product rounds a row by the number of rows. With a map that was made to cancel, as a malicious
        aggregator can send, rounding is all that is left, and its length is 1 like that of any image.
        """
        centred, turned = in_blocks(features, self.blocks) - self.mean, self.projection.t().contiguous()
        rows = [torch.mv(turned, row) for row in centred]
        return unit_rows(torch.stack(rows) if rows else centred @ self.projection)


def unit_rows(rows: Tensor) -> Tensor:
    """Rows f32[b, d] scaled to length 1; the bits of a row are a function of that row alone.

    A CPU computes the length of each row in one way, whatever the number of rows (tests/attacks/test_neighbours.py). On
    a GPU its sum may be divided by how many rows there are, so there each row is computed by itself.
    """
    if rows.is_cpu or not len(rows):
        return nn.functional.normalize(rows, dim=1)
    return rows_alone(rows)


def rows_alone(rows: Tensor) -> Tensor:
    """Rows f32[b, d], b at least 1, scaled to length 1 one after another."""
    return torch.stack([nn.functional.normalize(row, dim=0) for row in rows])


def in_blocks(features: Tensor, blocks: Sequence[int]) -> Tensor:
    """Features f32[b, D] with each part of an image's features at mean 0 and deviation 1; no parts: as they are.

    Another scanner makes all channels of a layer weaker or stronger at once. What is left after this is which channels
    answer most, and no other image is asked for it.

    Args:
        features: of images, each by itself.
        blocks: the sizes of the parts, D in all.

    >>> in_blocks(torch.tensor([[1.0, 3.0, 10.0, 10.0]]), (2, 2))
    tensor([[-1.,  1.,  0.,  0.]])
    """
    if not blocks:
        return features
    parts = torch.split(features, list(blocks), dim=1)
    # The smallest deviation is far below that of any layer: it only keeps a constant part finite.
    pairs = zip(parts, blocks, strict=True)
    return torch.cat([nn.functional.layer_norm(part, (size,), eps=1e-12) for part, size in pairs], dim=1)


class StageNorm(nn.Module):
    """Features f32[b, D] -> f32[b, D], each part of an image's features standardised by itself (`in_blocks`).

    Args:
        blocks: the sizes of the parts, D in all.
    """

    def __init__(self, blocks: Sequence[int]) -> None:
        super().__init__()
        self.blocks = tuple(blocks)

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        return in_blocks(features, self.blocks)


class Centring(nn.Module):
    """Whitened features f32[b, d] less the mean of all sites' own, of length 1 again; nothing in it is trained.

    A reference of another collection has another mean: all images of the sites then look alike, and what tells them
    apart is small. `mean` f32[d] is what the sites have released (private already).
    """

    mean: Tensor

    def __init__(self, kept: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(kept))

    def forward(self, whitened: Tensor) -> Tensor:
        """See the class."""
        return nn.functional.normalize(whitened - self.mean, dim=1)

    def by_rows(self, whitened: Tensor) -> Tensor:
        """The same, to within rounding; the bits of a row are a function of that row alone.

        The mean comes from the aggregator. Where it is made to cancel, rounding is all that is left.
        """
        return unit_rows(whitened - self.mean)


def centre(model: nn.Module, mean: F32) -> None:
    """Set the mean f32[d] of the model's `Centring` modules."""
    for module in model.modules():
        if isinstance(module, Centring):
            module.mean.copy_(torch.from_numpy(mean))


@dataclass(frozen=True)
class PublicMap:
    """What a `Whitening` does, fitted to public images (public): `mean` f32[D], `projection` f32[D, d]."""

    mean: F32
    projection: F32

    def load_into(self, model: nn.Module) -> None:
        """Set the model's `Whitening` modules."""
        for module in model.modules():
            if isinstance(module, Whitening):
                module.mean.copy_(torch.from_numpy(self.mean))
                module.projection.copy_(torch.from_numpy(self.projection))


def fit_public_map(features: F32, kept: int, exponent: float) -> PublicMap:
    """Standardise each feature, keep the `kept` leading principal directions, divide each by its deviation^exponent.

    The projection is also the public mask of private training: of a head on all D features only the entries along
    these directions are trained, clipped and noised.

    Args:
        features: f32[n, D] of public images, without labels, as `in_blocks` leaves them.
        kept: d, at most n - 1 and D.
        exponent: 0 keeps the directions' own sizes, 1 makes all equally wide.

    Raises:
        InputError: fewer images or features than directions.

    >>> rng = np.random.default_rng(0)
    >>> found = fit_public_map(rng.normal(size=(200, 5)).astype(np.float32) * [1, 2, 3, 4, 5] + 7, 2, 1.0)
    >>> found.projection.shape, bool(np.allclose(found.mean, 7, atol=1.5))
    ((5, 2), True)
    """
    n, size = features.shape
    if kept > min(n - 1, size):
        raise InputError(
            f"model.features={kept}: data.public_reference has {n} images of {size} features; allowed: at most "
            f"{min(n - 1, size)}",
            code="model.features",
        )
    values = features.astype(np.float64)
    mean, deviation = values.mean(axis=0), values.std(axis=0)
    scale = np.where(deviation > 1e-6 * deviation.max(initial=1e-30), deviation, np.inf)
    _, singular, directions = np.linalg.svd((values - mean) / scale, full_matrices=False)
    widths = singular[:kept] / np.sqrt(n)
    turned = directions[:kept] * np.sign(directions[:kept].sum(axis=1, keepdims=True) + 1e-30)
    projection = (turned / widths[:, None] ** exponent).T / scale[:, None]
    return PublicMap(mean.astype(np.float32), projection.astype(np.float32))
