"""Layers of networks of two and of three dimensions: of slices [b, C, H, W], and of patches [b, C, D, H, W]."""

from typing import Any, NamedTuple

from torch import nn

CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)


class Layers(NamedTuple):
    """The modules of one number of dimensions."""

    conv: Any
    max_pool: Any
    avg_pool: Any
    adaptive_avg_pool: Any


LAYERS = {
    2: Layers(nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d),
    3: Layers(nn.Conv3d, nn.MaxPool3d, nn.AvgPool3d, nn.AdaptiveAvgPool3d),
}
"""By the number of spatial dimensions."""
