"""A learned layer in front of a network: gain, gamma and low-pass of each channel, the same for every image.

It is trained with the network, so by DP-SGD where privacy is on: its three parameters a channel are clipped, noised,
sent and averaged as any others. It acts on each image by itself. At its start it is the identity, bit by bit.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LEAST = 1e-3
"""Of the size that a power is taken of, in standard deviations of a harmonised image: below it the layer is linear."""
BLUR = {4: F.avg_pool2d, 5: F.avg_pool3d}


class InputLayer(nn.Module):
    """Images f32[b, C, ...] -> the same shape: `gain * x |x|^(gamma - 1)` of `x` with its local mean mixed in.

    Gain and gamma are exponentials of the parameters, so that they stay positive; the share of the local mean (3 pixels
    a side) is a hyperbolic tangent: 1 is a low-pass, and below 0 edges are sharpened. All parameters at 0: the
    identity, which weight decay draws them to.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.log_gain = nn.Parameter(torch.zeros(channels))
        self.log_gamma = nn.Parameter(torch.zeros(channels))
        self.low_pass = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return the images, changed."""
        return transformed(x, self.log_gain, self.log_gamma, self.low_pass)


def transformed(x: Tensor, log_gain: Tensor, log_gamma: Tensor, low_pass: Tensor) -> Tensor:
    """Return images [n, C, ...] by parameters [C], or [n, C] with those of each image."""
    gain, gamma, share = (
        t.view(*([1] * (2 - t.ndim)), *t.shape, *[1] * (x.ndim - 2))
        for t in (log_gain.exp(), log_gamma.exp(), low_pass.tanh())
    )
    mean = BLUR[x.ndim](x, 3, stride=1, padding=1, count_include_pad=False)
    mixed = x + share * (mean - x)
    return gain * mixed * mixed.abs().clamp_min(LEAST) ** (gamma - 1)


def with_input_layer(network: nn.Module, channels: int) -> nn.Module:
    """Return the network behind an `InputLayer`; its modules are `input_layer` and `network`."""
    return nn.Sequential(OrderedDict(input_layer=InputLayer(channels), network=network))
