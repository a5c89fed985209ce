"""Two networks for `model.build`: a function (task, **model.args) -> torch.nn.Module each."""

from itertools import pairwise

import torch
from torch import nn


def make(task, width=16, groups=4):
    """Three convolutions with group norm, and a linear layer.

    Args:
        task: `task.classes` are the names of the classes, `task.image_shape` is (channels, height, width).
        width: channels of the first convolution.
        groups: of each group norm. Batch norm would be refused: it keeps statistics of patients.
    """
    channels = (task.image_shape[0], width, 2 * width, 2 * width)
    layers = []
    for inputs, outputs in pairwise(channels):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.GroupNorm(groups, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], len(task.classes)))


def make_residual(task, width=16):
    """The same with a class of one's own: any module will do that treats each image by itself."""
    return Residual(task.image_shape[0], width, len(task.classes))


class Residual(nn.Module):
    """A convolution, a residual block, and the mean over the pixels."""

    def __init__(self, channels, width, classes):
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 5, stride=4, padding=2)
        self.norm = nn.GroupNorm(4, width)
        self.block = nn.Conv2d(width, width, 3, padding=1)
        self.scale = nn.Parameter(torch.ones(width, 1, 1))
        self.head = nn.Linear(width, classes)

    def forward(self, images):
        """Images f32[n, channels, height, width] -> logits f32[n, classes]."""
        x = torch.relu(self.norm(self.stem(images)))
        x = x + self.scale * torch.relu(self.block(x))
        return self.head(x.mean(dim=(2, 3)))
