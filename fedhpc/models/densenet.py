"""DenseNet (Huang et al. 2017, "Densely Connected Convolutional Networks") with group norms, for two dimensions.

It is MONAI's network: the same modules under the same names, initial weights and outputs, bit for bit, which
tests/models/test_build.py checks. It is written out because `import monai` loads all of MONAI, which takes longer than
all else that a rank imports. A network that is not here is taken from MONAI (`fedhpc.models.build`).
"""

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

GROUPS = 8
BOTTLENECK = 4
"""A layer's 1x1 convolution gives so many times `growth_rate` channels."""


class _DenseLayer(nn.Module):
    """[b, C, H, W] -> [b, C + growth_rate, H, W]: the input and what is computed from it."""

    def __init__(self, in_channels: int, growth_rate: int) -> None:
        super().__init__()
        width = BOTTLENECK * growth_rate
        self.layers = nn.Sequential(
            OrderedDict(
                norm1=_norm(in_channels),
                relu1=nn.ReLU(),
                conv1=nn.Conv2d(in_channels, width, kernel_size=1, bias=False),
                norm2=_norm(width),
                relu2=nn.ReLU(),
                conv2=nn.Conv2d(width, growth_rate, kernel_size=3, padding=1, bias=False),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """The input with `growth_rate` more channels."""
        return torch.cat([x, self.layers(x)], 1)


class _DenseBlock(nn.Sequential):
    """Layers that each see the outputs of all before them."""

    def __init__(self, layers: int, in_channels: int, growth_rate: int) -> None:
        super().__init__()
        for number in range(layers):
            self.add_module(f"denselayer{number + 1}", _DenseLayer(in_channels + number * growth_rate, growth_rate))


class _Transition(nn.Sequential):
    """[b, C, H, W] -> [b, C // 2, H // 2, W // 2]."""

    def __init__(self, in_channels: int) -> None:
        super().__init__(
            OrderedDict(
                norm=_norm(in_channels),
                relu=nn.ReLU(),
                conv=nn.Conv2d(in_channels, in_channels // 2, kernel_size=1, bias=False),
                pool=nn.AvgPool2d(kernel_size=2, stride=2),
            )
        )


class DenseNet(nn.Module):
    """Images f32[b, in_channels, H, W] -> f32[b, out_channels].

    Args:
        in_channels: of the images.
        out_channels: the number of classes.
        init_features: channels after the first convolution.
        growth_rate: channels that each layer adds.
        block_config: layers of each block; the defaults are those of DenseNet-121.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        init_features: int = 64,
        growth_rate: int = 32,
        block_config: Sequence[int] = (6, 12, 24, 16),
    ) -> None:
        super().__init__()
        self.features = nn.Sequential(
            OrderedDict(
                conv0=nn.Conv2d(in_channels, init_features, kernel_size=7, stride=2, padding=3, bias=False),
                norm0=_norm(init_features),
                relu0=nn.ReLU(),
                pool0=nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
            )
        )
        channels = init_features
        for number, layers in enumerate(block_config, 1):
            self.features.add_module(f"denseblock{number}", _DenseBlock(layers, channels, growth_rate))
            channels += layers * growth_rate
            if number == len(block_config):
                self.features.add_module("norm5", _norm(channels))
            else:
                self.features.add_module(f"transition{number}", _Transition(channels))
                channels //= 2
        self.class_layers = nn.Sequential(
            OrderedDict(
                relu=nn.ReLU(),
                pool=nn.AdaptiveAvgPool2d(1),
                flatten=nn.Flatten(1),
                out=nn.Linear(channels, out_channels),
            )
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """The classes' logits."""
        logits: Tensor = self.class_layers(self.features(x))
        return logits


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels)
