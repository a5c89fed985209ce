"""ResNet (He et al. 2016, "Deep Residual Learning for Image Recognition") with group norms, for 2 and 3 dimensions.

It is MONAI's network with other norms: the same parameters under the same names, initial weights and outputs, bit
for bit, which tests/models/test_build.py checks. Like `fedhpc.models.densenet` it is written out because `import monai`
takes longer than all else that a rank imports.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from fedhpc.models.densenet import GROUPS
from fedhpc.models.dimensions import CONVOLUTIONS, LAYERS

WIDTHS = (64, 128, 256, 512)
"""Channels of the four stages, before a bottleneck's expansion."""


class Copy(nn.Module):
    """Its input, copied: a block adds in place, which a backward hook on the layer before forbids."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the copy."""
        return x.clone()


class ResNetBlock(nn.Module):
    """Two 3x3 convolutions and the input added: [b, C, H, W] -> [b, width, H / stride, W / stride]."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, downsample: nn.Module | None, dims: int) -> None:
        super().__init__()
        conv = LAYERS[dims].conv
        self.conv1 = conv(in_channels, width, kernel_size=3, padding=1, stride=stride, bias=False)
        self.bn1 = _norm(width)
        self.act = nn.ReLU()
        self.conv2 = conv(width, width, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.Sequential(_norm(width), Copy())
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum, rectified."""
        out: Tensor = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        out += x if self.downsample is None else self.downsample(x)
        summed: Tensor = self.act(out)
        return summed


class ResNetBottleneck(nn.Module):
    """A 1x1, a 3x3 and a 1x1 convolution and the input added: [b, C, H, W] -> [b, 4 width, H / stride, W / stride]."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, downsample: nn.Module | None, dims: int) -> None:
        super().__init__()
        conv = LAYERS[dims].conv
        self.conv1 = conv(in_channels, width, kernel_size=1, bias=False)
        self.bn1 = _norm(width)
        self.conv2 = conv(width, width, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.Sequential(_norm(width), Copy())
        self.conv3 = conv(width, width * self.expansion, kernel_size=1, bias=False)
        self.bn3 = nn.Sequential(_norm(width * self.expansion), Copy())
        self.act = nn.ReLU()
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum, rectified."""
        out: Tensor = self.act(self.bn2(self.conv2(self.act(self.bn1(self.conv1(x))))))
        out = self.bn3(self.conv3(out))
        out += x if self.downsample is None else self.downsample(x)
        summed: Tensor = self.act(out)
        return summed


Block = type[ResNetBlock] | type[ResNetBottleneck]


class ResNet(nn.Module):
    """Images f32[b, in_channels, H, W], or [b, in_channels, D, H, W] with `dims` 3 -> f32[b, out_channels].

    Args:
        in_channels: of the images.
        out_channels: the number of classes.
        block: what the stages are made of.
        layers: how many blocks each stage has.
        dims: 2 or 3.
    """

    def __init__(self, in_channels: int, out_channels: int, block: Block, layers: Sequence[int], dims: int) -> None:
        super().__init__()
        of = LAYERS[dims]
        self._channels, self._dims = WIDTHS[0], dims
        self.conv1 = of.conv(in_channels, WIDTHS[0], kernel_size=7, padding=3, bias=False)
        self.bn1 = _norm(WIDTHS[0])
        self.act = nn.ReLU()
        self.maxpool = of.max_pool(kernel_size=3, stride=2, padding=1)
        for number, (width, blocks) in enumerate(zip(WIDTHS, layers, strict=True), 1):
            self.add_module(f"layer{number}", self._stage(block, width, blocks, stride=1 if number == 1 else 2))
        self.avgpool = of.adaptive_avg_pool((1,) * dims)
        self.fc = nn.Linear(WIDTHS[-1] * block.expansion, out_channels)
        for module in self.modules():
            if isinstance(module, CONVOLUTIONS):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def _stage(self, block: Block, width: int, blocks: int, stride: int) -> nn.Sequential:
        out = width * block.expansion
        shortcut = None
        if stride != 1 or self._channels != out:
            conv = LAYERS[self._dims].conv
            shortcut = nn.Sequential(conv(self._channels, out, kernel_size=1, stride=stride), _norm(out))
        first = block(self._channels, width, stride, shortcut, self._dims)
        self._channels = out
        return nn.Sequential(first, *(block(out, width, 1, None, self._dims) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """Return the classes' logits."""
        x = self.maxpool(self.act(self.bn1(self.conv1(x))))
        for number in range(1, len(WIDTHS) + 1):
            x = self.get_submodule(f"layer{number}")(x)
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def resnet18(in_channels: int, out_channels: int, dims: int = 2) -> ResNet:
    """Return ResNet-18: 11.2 million parameters in two dimensions, 33.2 million in three."""
    return ResNet(in_channels, out_channels, ResNetBlock, (2, 2, 2, 2), dims)


def resnet50(in_channels: int, out_channels: int, dims: int = 2) -> ResNet:
    """Return ResNet-50: 23.5 million parameters in two dimensions, 46.2 million in three."""
    return ResNet(in_channels, out_channels, ResNetBottleneck, (3, 4, 6, 3), dims)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels)
