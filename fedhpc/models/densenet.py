"""DenseNet (Huang et al. 2017, "Densely Connected Convolutional Networks") with group norms, for 2 and 3 dimensions.

It is MONAI's network: the same modules under the same names, initial weights and outputs, bit for bit, which
tests/models/test_build.py checks. It is written out because `import monai` loads all of MONAI, which takes longer than
all else that a rank imports. A network that is not here is taken from MONAI (`fedhpc.models.build`).
"""

from collections import OrderedDict
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedhpc.models.dimensions import CONVOLUTIONS, LAYERS

GROUPS = 8
BOTTLENECK = 4
"""A layer's 1x1 convolution gives so many times `growth_rate` channels."""


class Size(NamedTuple):
    """How wide and how deep a DenseNet is.

    Attributes:
        init_features: channels after the first convolution.
        growth_rate: channels that each layer adds.
        block_config: layers of each block.
    """

    init_features: int
    growth_rate: int
    block_config: tuple[int, ...]


SMALL, DENSENET_121 = Size(16, 8, (2, 4, 4)), Size(64, 32, (6, 12, 24, 16))


class _DenseLayer(nn.Module):
    """[b, C, H, W] -> [b, C + growth_rate, H, W]: the input and what is computed from it."""

    def __init__(self, in_channels: int, growth_rate: int, dims: int) -> None:
        super().__init__()
        conv = LAYERS[dims].conv
        width = BOTTLENECK * growth_rate
        self.layers = nn.Sequential(
            OrderedDict(
                norm1=_norm(in_channels),
                relu1=nn.ReLU(),
                conv1=conv(in_channels, width, kernel_size=1, bias=False),
                norm2=_norm(width),
                relu2=nn.ReLU(),
                conv2=conv(width, growth_rate, kernel_size=3, padding=1, bias=False),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the input with `growth_rate` more channels."""
        return torch.cat([x, self.layers(x)], 1)


class _DenseBlock(nn.Sequential):
    """Layers that each see the outputs of all before them."""

    def __init__(self, layers: int, in_channels: int, growth_rate: int, dims: int) -> None:
        super().__init__()
        for number in range(layers):
            width = in_channels + number * growth_rate
            self.add_module(f"denselayer{number + 1}", _DenseLayer(width, growth_rate, dims))


class _Transition(nn.Sequential):
    """[b, C, H, W] -> [b, C // 2, H // 2, W // 2]."""

    def __init__(self, in_channels: int, dims: int) -> None:
        super().__init__(
            OrderedDict(
                norm=_norm(in_channels),
                relu=nn.ReLU(),
                conv=LAYERS[dims].conv(in_channels, in_channels // 2, kernel_size=1, bias=False),
                pool=LAYERS[dims].avg_pool(kernel_size=2, stride=2),
            )
        )


class DenseNet(nn.Module):
    """Images f32[b, in_channels, H, W], or [b, in_channels, D, H, W] with `dims` 3 -> f32[b, out_channels].

    Args:
        in_channels: of the images.
        out_channels: the number of classes.
        size: how wide and how deep.
        dims: 2 or 3.
    """

    def __init__(self, in_channels: int, out_channels: int, size: Size = DENSENET_121, dims: int = 2) -> None:
        super().__init__()
        of = LAYERS[dims]
        self.features = nn.Sequential(
            OrderedDict(
                conv0=of.conv(in_channels, size.init_features, kernel_size=7, stride=2, padding=3, bias=False),
                norm0=_norm(size.init_features),
                relu0=nn.ReLU(),
                pool0=of.max_pool(kernel_size=3, stride=2, padding=1),
            )
        )
        channels = size.init_features
        for number, layers in enumerate(size.block_config, 1):
            self.features.add_module(f"denseblock{number}", _DenseBlock(layers, channels, size.growth_rate, dims))
            channels += layers * size.growth_rate
            if number == len(size.block_config):
                self.features.add_module("norm5", _norm(channels))
            else:
                self.features.add_module(f"transition{number}", _Transition(channels, dims))
                channels //= 2
        self.class_layers = nn.Sequential(
            OrderedDict(
                relu=nn.ReLU(),
                pool=of.adaptive_avg_pool(1),
                flatten=nn.Flatten(1),
                out=nn.Linear(channels, out_channels),
            )
        )
        for module in self.modules():
            if isinstance(module, CONVOLUTIONS):
                nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the classes' logits."""
        logits: Tensor = self.class_layers(self.features(x))
        return logits


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels)
